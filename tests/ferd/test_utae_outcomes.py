import pytest
import torch

from ferd.attacks import utae
from ferd.checkpoint import load_state, save_state
from ferd.datasets import Images
from ferd.models.folding import Folded
from ferd.utae_outcomes import UtaeOutcomes, normalised_entropy

CPU = torch.device("cpu")


@pytest.fixture
def outcomes(trained, teacher, digits, threat):
    def make(gammas=(0.0, 0.5), student=trained, teacher=teacher, data=digits["test"], batch_size=8):
        return UtaeOutcomes(student, teacher, data, gammas, threat, batch_size, 0, CPU)

    return make


def test_entropy_is_a_share_of_the_largest():
    assert normalised_entropy(torch.tensor([3, 3, 3])) == pytest.approx(1)
    assert str(normalised_entropy(torch.tensor([5, 0, 0]))) == "0.0"  # not -0.0
    assert normalised_entropy(torch.tensor([2, 2, 0, 0])) == pytest.approx(0.5)


def test_figures_derive_from_predictions_and_divergences(outcomes, digits):
    labels = torch.tensor([0, 0, 1, 1])
    some = Images(digits["test"].images[:4], labels)
    run = outcomes(gammas=(0.3,), data=some)
    run.load_state_dict(
        {"predicted": [torch.tensor([0, 1, 1, 1])], "divergences": [torch.tensor([1.0, 2.0, 3.0, 4.0])]}
    )
    (figures,) = run.figures()
    assert figures["gamma"] == 0.3
    assert figures["n"] == 4
    assert figures["correct"] == 0.75
    assert figures["kl_from_uniform"] == 2.5
    assert figures["distribution"] == [0.25, 0.75, *[0.0] * 8]
    assert [row[:2] for row in figures["counts"][:2]] == [[1, 1], [0, 2]]
    assert figures["entropy"] == pytest.approx(0.562335 / 2.302585, abs=1e-6)


@pytest.mark.parametrize(
    ("ends", "entropy"), [([0, 1, 2, 3], None), ([0, 1, 2, 9], 0), ([0, 7, 7, 9], 0.636514 / 2.302585)]
)
def test_entropy_of_the_fooled_is_of_images_that_are_no_longer_correct(outcomes, digits, ends, entropy):
    some = Images(digits["test"].images[:4], torch.arange(4))
    run = outcomes(gammas=(0.3,), data=some)
    run.load_state_dict({"predicted": [torch.tensor(ends)], "divergences": [torch.zeros(4)]})
    assert run.figures()[0]["entropy_fooled"] == pytest.approx(entropy, abs=1e-6)


def test_every_gamma_attacks_every_image(outcomes):
    run = outcomes()
    assert list(run.batches()) == [(8, 40), (16, 40), (20, 40), (28, 40), (36, 40), (40, 40)]
    for figures in run.figures():
        assert sum(map(sum, figures["counts"])) == 20
        assert [sum(row) for row in figures["counts"]] == [2] * 10
        assert sum(figures["distribution"]) == pytest.approx(1)


def test_they_are_the_utaes_of_the_student_with_the_teachers_prediction(
    outcomes, trained, teacher, digits, threat
):
    run = outcomes(gammas=(0.5,), batch_size=20)
    list(run.batches())
    images = digits["test"].images / 255
    rng = torch.Generator().manual_seed(0)
    expected = utae(Folded(trained).network, images, teacher(images).softmax(1), 0.5, threat, rng)
    assert torch.equal(run.predicted[0], trained(expected).argmax(1))


def test_a_larger_gamma_leaves_predictions_nearer_to_uniform(outcomes, trained, digits):
    some = Images(digits["train"].images[:200], digits["train"].labels[:200])
    run = outcomes(gammas=(0.0, 0.5, 0.9), teacher=trained, data=some, batch_size=100)
    list(run.batches())
    plain, half, most = (figures["kl_from_uniform"] for figures in run.figures())
    assert 0 < most < half < plain


@pytest.mark.parametrize("stop", [1, 4])
def test_resumed_outcomes_are_the_same(outcomes, tmp_path, stop):
    whole, stopped, rest = outcomes(), outcomes(), outcomes()
    expected = list(whole.batches())
    batches = stopped.batches()
    progress = [next(batches) for _ in range(stop)]
    save_state(tmp_path / "state.pt", stopped.state_dict())
    rest.load_state_dict(load_state(tmp_path / "state.pt"))
    assert progress + list(rest.batches()) == expected
    assert rest.figures() == whole.figures()


def test_networks_and_global_generator_are_left_alone(outcomes, make_network, teacher, untouched):
    student, before = make_network(seed=1), torch.get_rng_state()
    with untouched(student), untouched(teacher):
        list(outcomes(student=student).batches())
    assert torch.equal(torch.get_rng_state(), before)
