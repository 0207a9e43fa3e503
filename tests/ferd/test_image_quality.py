import pytest
import torch
from torch import nn
from torchvision.models import inception_v3

from ferd.datasets import Images
from ferd.errors import FerdError
from ferd.image_quality import (
    InceptionEmbedding,
    TeacherEmbedding,
    agreement,
    class_balance,
    embed,
    frechet_distance,
    image_quality,
    inception_score,
    moments,
)
from ferd.models.classifier import Classifier
from tests.ferd.test_utae_outcomes import seen_tf32

CPU = torch.device("cpu")


def doubles(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("classes", [2, 10])
def test_even_certain_predictions_score_the_number_of_classes(classes):
    probs = torch.eye(classes).repeat(3, 1)
    assert inception_score(probs) == pytest.approx(classes)


def test_equal_predictions_score_one_whatever_they_are():
    assert inception_score(torch.tensor([[0.2, 0.5, 0.3]]).repeat(4, 1)) == pytest.approx(1)
    assert inception_score(torch.tensor([[1.0, 0.0]]).repeat(4, 1)) == pytest.approx(1)


def test_an_inception_score_between_them_is_the_exponential_of_the_mutual_information():
    probs = torch.tensor([[0.75, 0.25], [0.25, 0.75]])  # ln 2 − H(¾, ¼) = 0.130812
    assert inception_score(probs) == pytest.approx(1.139754, abs=1e-6)


def test_the_distance_of_diagonal_gaussians_is_literal():
    means = doubles([0, 0]), doubles([3, 4])
    covs = doubles([1, 4]).diag(), doubles([9, 16]).diag()
    assert frechet_distance(means[0], covs[0], means[1], covs[1]) == pytest.approx(25 + 2**2 + 2**2)


def test_the_distance_of_gaussians_that_do_not_commute_is_literal():
    mean, one, two = doubles([0, 0]), doubles([[2, 1], [1, 2]]), doubles([1, 4]).diag()
    assert frechet_distance(mean, one, mean, two) == pytest.approx(9 - 2 * (10 + 2 * 12**0.5) ** 0.5)
    assert frechet_distance(mean, two, mean, one) == pytest.approx(9 - 2 * (10 + 2 * 12**0.5) ** 0.5)


def test_features_are_at_no_distance_from_themselves_even_where_they_are_few(rng):
    few = torch.randn(5, 12, generator=rng)
    assert frechet_distance(*moments(few), *moments(few)) == pytest.approx(0, abs=1e-6)


def test_moments_are_those_of_the_sample():
    mean, cov = moments(torch.tensor([[0.0, 1.0], [2.0, 5.0]]))
    assert mean.tolist() == [1, 3]
    assert cov.tolist() == [[2, 4], [4, 8]]


def test_a_pool_of_one_class_has_no_entropy_and_an_even_one_all():
    assert class_balance(torch.tensor([1, 1, 1]), 3) == {"counts": [0, 3, 0], "entropy": 0}
    even = class_balance(torch.tensor([0, 1, 2, 2, 1, 0]), 3)
    assert even["counts"] == [2, 2, 2]
    assert even["entropy"] == pytest.approx(1)


def test_agreement_is_the_share_taken_for_their_labels(teacher, digits):
    test = digits["test"]
    with torch.no_grad():
        predicted = teacher(test.images / 255).argmax(1)
    labels = predicted.clone()
    labels[:5] = (labels[:5] + 1) % 10
    assert agreement(teacher, Images(test.images, labels), 8, CPU) == 0.75


def test_agreement_of_no_images_is_refused(teacher, digits):
    nothing = Images(digits["test"].images[:0], digits["test"].labels[:0])
    with pytest.raises(FerdError, match=r"^there are no images; give some"):
        agreement(teacher, nothing, 8, CPU)


def test_the_teachers_embedding_is_its_pooled_features_and_its_softmax(teacher, digits):
    features, probs = embed(TeacherEmbedding(teacher, CPU), digits["test"], 8, CPU)
    images = digits["test"].images / 255
    with torch.no_grad():
        torch.testing.assert_close(probs, teacher(images).softmax(1))
        torch.testing.assert_close(features, teacher.features(images).mean((2, 3)))


def test_on_a_gpu_images_are_looked_at_in_float32_whatever_the_caller_has_set(teacher, digits, monkeypatch):
    seen = seen_tf32(teacher.conv1, monkeypatch)
    agreement(teacher, digits["test"], 20, CPU)
    embed(TeacherEmbedding(teacher, CPU), digits["test"], 20, CPU)
    assert seen == [False] * 2


def test_a_pool_of_the_real_images_is_at_distance_zero_and_noise_is_not(trained, digits, rng):
    real = Images(digits["train"].images[:300], digits["train"].labels[:300])
    noise = torch.randint(0, 256, (300, 1, 8, 8), generator=rng).to(torch.uint8)
    embedding = TeacherEmbedding(trained, CPU)
    same = image_quality(real, real, trained, trained, embedding, 100, CPU)
    other = image_quality(Images(noise, real.labels), real, trained, trained, embedding, 100, CPU)
    assert same["frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert other["frechet_distance"] > 1
    assert same["inception_score"] > other["inception_score"] > 1
    assert same["agreement"]["judge"] == same["agreement"]["teacher"] == same["judge_on_real"] > 0.8
    assert other["agreement"]["judge"] < 0.3
    assert other["judge_on_real"] == same["judge_on_real"]
    assert (same["features"], same["feature_dim"], same["n"], same["n_real"]) == ("teacher", 32, 300, 300)


def test_judge_and_teacher_are_not_confused(trained, teacher, digits):
    test = digits["test"]
    found = image_quality(test, test, teacher, trained, TeacherEmbedding(teacher, CPU), 10, CPU)
    assert found["agreement"]["judge"] == agreement(trained, test, 10, CPU) == found["judge_on_real"]
    assert found["agreement"]["teacher"] == agreement(teacher, test, 10, CPU)
    assert found["agreement"]["judge"] > 0.5 > found["agreement"]["teacher"]


def test_inception_sees_images_as_torchvisions_preprocessing_gives_them(tmp_path, rng):
    network = inception_v3(weights=None, aux_logits=True, init_weights=False, transform_input=True).eval()
    network.fc.weight.data *= 1e7  # features are tiny by random weights
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    embedding, seen = InceptionEmbedding(tmp_path / "inception.pth", CPU), []
    embedding.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    assert embedding.name == "inception-v3"
    grey = torch.rand(2, 1, 32, 32, generator=rng)
    large = nn.functional.interpolate(grey, (299, 299), mode="bilinear").repeat(1, 3, 1, 1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        features, probs = embedding(grey)
    expected = network._transform_input((large - mean[:, None, None]) / std[:, None, None])
    torch.testing.assert_close(seen, [expected])
    assert features.shape == (2, 2048)
    torch.testing.assert_close(probs, network.fc(features).softmax(1))


@pytest.mark.parametrize("content", [{"weight": torch.zeros(2)}, [1, 2]])
def test_a_file_that_is_not_inceptions_is_refused_in_one_line(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(
        FerdError, match=r"other\.pth: not a state dict of torchvision's inception_v3"
    ) as raised:
        InceptionEmbedding(tmp_path / "other.pth", CPU)
    assert "\n" not in str(raised.value)


class Largest(Classifier):
    """A network that does not pool by the mean."""

    def __init__(self):
        super().__init__(3, 1)
        self.linear = nn.Linear(1, 3)

    def stem(self, inputs):
        return inputs

    def blocks(self):
        return [nn.Identity()]

    def head(self, features, layer=-1):
        return self.classify(features.amax((2, 3)))


def test_the_softmax_is_that_of_a_network_with_a_head_of_its_own():
    network, images = Largest(), torch.rand(4, 1, 8, 8)
    features, probs = TeacherEmbedding(network, CPU)(images)
    torch.testing.assert_close(probs, network(images).softmax(1))
    torch.testing.assert_close(features, images.mean((2, 3)))
