import numpy as np
import pytest
import torch
from torch import nn

import ferd.evaluation
from ferd.checkpoint import load_state, save_state
from ferd.config import Evaluation as Settings
from ferd.datasets import Images
from ferd.errors import FerdError
from ferd.evaluation import Evaluation
from ferd.models.classifier import Classifier

CPU = torch.device("cpu")
WHITE_BOX = {"clean": "all", "fgsm": "all", "pgd20": "all", "cw30": "all"}


class Linear(Classifier):
    """f(x) = W x over the pixels: its robust accuracy is known in closed form."""

    def __init__(self, classes):
        super().__init__(classes, 1)
        self.linear = nn.Linear(64, classes)

    def stem(self, inputs):
        return inputs.flatten(1)[:, :, None, None]

    def blocks(self):
        return [nn.Identity()]


@pytest.fixture
def evaluation(teacher, digits, threat):
    def make(attacks, network=teacher, data=digits["test"], batch_size=8, seed=0):
        settings = Settings(batch_size=batch_size, attacks=attacks, threads=1)
        return Evaluation(network, data, settings, threat, seed, CPU)

    return make


@pytest.fixture
def linear(threat):
    """A linear network and 30 images, and which of them no attack can turn."""
    source = torch.Generator().manual_seed(6)
    network = Linear(10).requires_grad_(False)
    network.linear.weight.normal_(generator=source)
    network.linear.bias.zero_()
    labels = torch.arange(30) % 10
    toward = network.linear.weight[labels].sign().view(30, 1, 8, 8)
    strength = torch.linspace(0, 80, 30).view(30, 1, 1, 1)
    noise = torch.empty(30, 1, 8, 8).uniform_(-10, 10, generator=source)
    images = (127 + strength * toward + noise).to(torch.uint8)  # within 37 and 217
    flat = (images / 255).flatten(1)
    weight = network.linear.weight
    slopes = (weight[labels][:, None] - weight[None]).abs().sum(2)
    gaps = ((weight[labels][:, None] - weight[None]) * flat[:, None]).sum(2)
    worst = (gaps - threat.epsilon * slopes).scatter(1, labels[:, None], torch.inf).amin(1)
    safe = worst.abs() > 0.05  # neither attack nor rounding decides nearer ones
    return network, Images(images[safe], labels[safe]), worst[safe] > 0


def judged(evaluation):
    list(evaluation.batches())
    return evaluation.verdicts


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_every_attack_gives_a_verdict_on_each_of_its_images(evaluation):
    run = evaluation({"clean": "all", "fgsm": 10, "pgd20": 20})
    progress = list(run.batches())
    assert progress == [
        ("clean", 8, 20),
        ("clean", 16, 20),
        ("clean", 20, 20),
        ("fgsm", 8, 10),
        ("fgsm", 10, 10),
        ("pgd20", 8, 20),
        ("pgd20", 16, 20),
        ("pgd20", 20, 20),
    ]
    assert {name: len(verdict) for name, verdict in run.verdicts.items()} == {
        "clean": 20,
        "fgsm": 10,
        "pgd20": 20,
    }


def test_figures_derive_from_the_verdicts(evaluation):
    data = Images(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    run = evaluation({"clean": "all"}, network=Linear(2), data=data)
    run.load_state_dict({"clean": torch.tensor([True, True, False, True])})
    figures = run.figures()["clean"]
    assert figures.pop("nsd") == pytest.approx(1 / 3)
    assert figures == {"n": 4, "average": 0.75, "worst": 0.5, "per_class": [0.5, 1.0]}


def test_a_stratified_number_takes_the_first_images_of_each_class(evaluation):
    labels = torch.tensor([1, 0, 1, 1, 0, 0])
    images = torch.arange(6).to(torch.uint8).view(6, 1, 1, 1).expand(6, 1, 8, 8)
    run = evaluation({"clean": 4}, network=Linear(2), data=Images(images, labels))
    assert run.subsets["clean"].images[:, 0, 0, 0].tolist() == [0, 1, 2, 4]
    assert run.subsets["clean"].labels.tolist() == [1, 0, 1, 0]


def test_a_number_that_classes_cannot_share_is_refused(evaluation):
    with pytest.raises(FerdError, match=r"15 images .* 10 classes") as raised:
        evaluation({"pgd20": 15})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("stop", [1, 7])
def test_a_resumed_evaluation_gives_the_same_verdicts(evaluation, tmp_path, stop):
    whole = evaluation(WHITE_BOX)
    expected = list(whole.batches())
    stopped, rest = evaluation(WHITE_BOX), evaluation(WHITE_BOX)
    batches = stopped.batches()
    progress = [next(batches) for _ in range(stop)]
    save_state(tmp_path / "state.pt", stopped.state_dict())
    rest.load_state_dict(load_state(tmp_path / "state.pt"))
    progress += list(rest.batches())
    assert progress == expected
    assert same(rest.verdicts, whole.verdicts)


def test_an_attack_finds_the_same_whatever_ran_before_it(evaluation):
    alone, after = judged(evaluation({"pgd20": "all"})), judged(evaluation(WHITE_BOX))
    assert torch.equal(alone["pgd20"], after["pgd20"])


def test_each_batch_has_random_numbers_of_its_own(evaluation, monkeypatch, digits):
    starts = []
    real = ferd.evaluation.pgd

    def spy(network, inputs, objective, threat, start):
        starts.append(start - inputs)
        return real(network, inputs, objective, threat, start)

    monkeypatch.setattr(ferd.evaluation, "pgd", spy)
    grey = Images(torch.full((20, 1, 8, 8), 127, dtype=torch.uint8), digits["test"].labels)
    for seed in (0, 0, 1):
        judged(evaluation({"pgd20": "all"}, data=grey, batch_size=10, seed=seed))
    first, second = starts[:2]
    assert not torch.equal(first, second)
    assert torch.equal(starts[2], first) and torch.equal(starts[3], second)
    assert not torch.equal(starts[4], first)


def test_stronger_attacks_leave_no_more_correct(evaluation, trained, digits):
    some = Images(digits["train"].images[:400], digits["train"].labels[:400])
    verdicts = judged(evaluation(WHITE_BOX, network=trained, data=some, batch_size=200))
    shares = {name: verdict.float().mean().item() for name, verdict in verdicts.items()}
    assert shares["clean"] > 0.8
    assert 0 < shares["pgd20"] < shares["fgsm"] < shares["clean"]
    assert 0 < shares["cw30"] < shares["fgsm"]
    assert (verdicts["pgd20"] & ~verdicts["clean"]).sum() <= 2  # an attack hardly ever mends


def test_white_box_attacks_judge_a_linear_model_by_its_closed_form(evaluation, linear):
    network, data, robust = linear
    assert 5 < robust.sum() < len(robust) - 5
    verdicts = judged(evaluation(WHITE_BOX, network=network, data=data))
    assert torch.equal(verdicts["cw30"], robust)
    assert (verdicts["pgd20"] | ~robust).all()  # robust ones stand, others may
    assert (verdicts["clean"] | ~verdicts["pgd20"]).all()


def test_autoattack_judges_a_linear_model_by_its_closed_form(
    evaluation,
    linear,
    untouched,
    capsys,
):
    network, data, robust = linear
    rows = slice(8, 18)
    some = Images(data.images[rows], data.labels[rows])
    assert 0 < robust[rows].sum() < 10
    torch.manual_seed(1)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    run = evaluation({"pgd20": "all", "autoattack": "all"}, network.eval(), some, batch_size=10)
    with untouched(network):
        verdicts = judged(run)
    assert torch.equal(verdicts["autoattack"], robust[rows])
    assert verdicts["autoattack"].sum() <= verdicts["pgd20"].sum()
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()
    assert capsys.readouterr().out == ""


def test_autoattack_leaves_running_statistics_alone(evaluation, teacher, digits, untouched):
    test = digits["test"]
    with torch.no_grad():
        wrong = teacher(test.images / 255).argmin(1)  # nothing to attack, and so fast
    run = evaluation({"autoattack": "all"}, data=Images(test.images, wrong), batch_size=20)
    with untouched(teacher):
        assert not judged(run)["autoattack"].any()


def test_white_box_attacks_leave_teacher_and_global_generator_alone(evaluation, teacher, untouched):
    before = torch.get_rng_state()
    with untouched(teacher):
        judged(evaluation(WHITE_BOX))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_in_train_mode_is_judged_in_eval_mode(evaluation, make_network):
    expected = judged(evaluation(WHITE_BOX))
    network = make_network().train()
    statistics = {key: value.clone() for key, value in network.named_buffers()}
    assert same(judged(evaluation(WHITE_BOX, network=network)), expected)
    assert all(torch.equal(value, statistics[key]) for key, value in network.named_buffers())
