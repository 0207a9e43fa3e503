import sys
from functools import partial
from typing import get_args

import numpy as np
import pyautoattack
import pytest
import torch
from torch import nn

import ferd.evaluation_attacks
from ferd.attacks import cross_entropy, negative_margin
from ferd.checkpoint import load_state, save_state
from ferd.config import Attack, EvaluationSettings, OtherBall, ThreatModel
from ferd.datasets import Images
from ferd.errors import FerdError
from ferd.evaluation import Evaluation
from ferd.evaluation_attacks import ATTACKS, ManySteps, OwnAttack
from ferd.models.classifier import Classifier
from ferd.models.registry import build

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
    def make(
        attacks,
        network=teacher,
        data=digits["test"],
        batch_size=8,
        seed=0,
        other_balls=(),
        within=threat,
        **own,
    ):
        settings = EvaluationSettings(
            batch_size=batch_size, attacks=attacks, other_balls=list(other_balls), threads=1
        )
        return Evaluation(network, data, settings, within, seed, CPU, **own)

    return make


def ball(epsilon, attacks):
    return OtherBall(epsilon=epsilon, step_size=epsilon / 4, attacks=attacks)


SMALLER, LARGER = ball(0.05, {"pgd20": 10, "cw30": "all"}), ball(0.15, {"cw30": "all"})


class Linears:
    """A linear network, 30 images (but those near an edge), and which of them no attack can turn, by ε."""

    def __init__(self, classes, epsilons):
        source = torch.Generator().manual_seed(6)
        self.network = Linear(classes).requires_grad_(False)
        weight = self.network.linear.weight.normal_(generator=source)
        self.network.linear.bias.zero_()
        labels = torch.arange(30) % classes
        toward = weight[labels].sign().view(30, 1, 8, 8)
        strength = torch.linspace(0, 80, 30).view(30, 1, 1, 1)
        noise = torch.empty(30, 1, 8, 8).uniform_(-10, 10, generator=source)
        images = (127 + strength * toward + noise).to(torch.uint8)  # within 37 and 217
        flat = (images / 255).flatten(1)
        slopes = (weight[labels][:, None] - weight[None]).abs().sum(2)
        gaps = ((weight[labels][:, None] - weight[None]) * flat[:, None]).sum(2)
        worst = {
            epsilon: (gaps - epsilon * slopes).scatter(1, labels[:, None], torch.inf).amin(1)
            for epsilon in epsilons
        }
        # neither attack nor rounding decides those further from every edge
        safe = torch.stack([value.abs() > 0.05 for value in worst.values()]).all(0)
        self.data = Images(images[safe], labels[safe])
        self.robust = {epsilon: value[safe] > 0 for epsilon, value in worst.items()}


@pytest.fixture
def linear(threat):
    linears = Linears(10, [threat.epsilon])
    return linears.network, linears.data, linears.robust[threat.epsilon]


def judged(evaluation):
    list(evaluation.batches())
    return evaluation.verdicts


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_what_is_said_of_gradients_is_of_the_weights_that_are_judged(evaluation, make_network):
    network = make_network()
    right = network.linear.weight.detach().clone()
    with torch.no_grad():
        network.linear.weight.zero_()
    run = evaluation({"clean": "all"}, network)
    assert run.zero_gradients.cross_entropy == 1
    with torch.no_grad():
        network.linear.weight.copy_(right)
    judged(run)
    assert run.zero_gradients.cross_entropy == 0


def test_images_are_attacked_alike_in_whatever_order_they_lie_in_memory(evaluation, digits):
    data = digits["test"]
    other = Images(data.images.movedim(1, -1).contiguous().movedim(-1, 1), data.labels)
    one, two = evaluation({"pgd20": "all"}), evaluation({"pgd20": "all"}, data=other)
    assert other.images.is_contiguous()
    assert same(judged(one), judged(two))


def test_autoattack_leaves_a_debuggers_tracing_on(evaluation):
    def trace(*_):
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        judged(evaluation({"autoattack": 10}))
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)


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


def put_in(run, verdicts):
    run.load_state_dict(run.state_dict() | {"verdicts": verdicts})


def test_figures_derive_from_the_verdicts(evaluation):
    data = Images(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    run = evaluation({"clean": "all"}, network=Linear(2), data=data)
    put_in(run, {"clean": torch.tensor([True, True, False, True])})
    figures = run.figures()["clean"]
    assert figures.pop("nsd") == pytest.approx(1 / 3)
    assert figures == {"n": 4, "average": 0.75, "worst": 0.5, "per_class": [0.5, 1.0]}


def test_a_stratified_number_takes_the_first_images_of_each_class(evaluation):
    labels = torch.tensor([1, 0, 1, 1, 0, 0])
    images = torch.arange(6).to(torch.uint8).view(6, 1, 1, 1).expand(6, 1, 8, 8)
    run = evaluation({"clean": 4}, network=Linear(2), data=Images(images, labels))
    assert run.trials["clean"].rows.tolist() == [0, 1, 2, 4]


def test_a_number_that_classes_cannot_share_is_refused(evaluation):
    with pytest.raises(FerdError, match=r"15 images .* 10 classes") as raised:
        evaluation({"pgd20": 15})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("stop", [1, 7, 13])
def test_a_resumed_evaluation_gives_the_same_verdicts(evaluation, tmp_path, stop):
    whole, stopped, rest = (evaluation(WHITE_BOX, other_balls=[SMALLER]) for _ in range(3))
    expected = list(whole.batches())
    assert expected[12][0] == "pgd20@0.05"
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
    real = ferd.evaluation_attacks.pgd

    def spy(network, inputs, objective, threat, start):
        starts.append(start - inputs)
        return real(network, inputs, objective, threat, start)

    monkeypatch.setattr(ferd.evaluation_attacks, "pgd", spy)
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


def test_further_balls_judge_a_linear_model_by_its_closed_form(evaluation, threat):
    linears = Linears(2, [0.05, threat.epsilon, 0.14])
    white_box = {"fgsm": "all", "pgd20": "all", "cw30": "all"}
    run = evaluation(
        white_box,
        linears.network,
        linears.data,
        other_balls=[ball(0.14, white_box), ball(0.05, white_box)],
    )
    verdicts = judged(run)
    for attack in white_box:
        for suffix, epsilon in (("@0.05", 0.05), ("", threat.epsilon), ("@0.14", 0.14)):
            assert torch.equal(verdicts[f"{attack}{suffix}"], linears.robust[epsilon])
    assert 0 < verdicts["pgd20@0.14"].sum() < verdicts["pgd20"].sum() < verdicts["pgd20@0.05"].sum()


def test_further_balls_leave_the_verdicts_of_the_first_alone(evaluation):
    alone, among = judged(evaluation(WHITE_BOX)), judged(evaluation(WHITE_BOX, other_balls=[SMALLER, LARGER]))
    assert same({name: among[name] for name in WHITE_BOX}, alone)
    assert {name: len(verdict) for name, verdict in among.items() if "@" in name} == {
        "pgd20@0.05": 10,
        "cw30@0.05": 20,
        "cw30@0.15": 20,
    }


def test_a_further_ball_is_reported_with_its_threat_model(evaluation, threat):
    run = evaluation({"pgd20": "all"}, other_balls=[SMALLER])
    verdicts = judged(run)
    (found,) = run.other_balls()
    assert found["threat_model"] == {
        "norm": "linf",
        "epsilon": 0.05,
        "step_size": 0.0125,
        "steps": threat.steps,
    }
    assert {attack: figures["n"] for attack, figures in found["attacks"].items()} == {"pgd20": 10, "cw30": 20}
    assert found["attacks"]["cw30"]["average"] == verdicts["cw30@0.05"].double().mean()
    assert run.figures().keys() == {"pgd20", "all"}


def test_a_further_ball_that_stands_there_twice_is_refused(evaluation):
    with pytest.raises(
        FerdError, match=r"^evaluation\.other_balls: pgd20@0\.05 stands there twice; .*[^\n]$"
    ):
        evaluation({"pgd20": "all"}, other_balls=[SMALLER, ball(0.05, {"pgd20": "all"})])


def test_all_counts_what_every_attack_left_on_the_images_that_all_were_given(evaluation):
    data = Images(torch.zeros(6, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 1, 1, 0, 0]))
    run = evaluation(
        {"clean": "all", "pgd20": 4, "cw30": "all"},
        Linear(2),
        data,
        other_balls=[ball(0.05, {"pgd20": 2})],  # another adversary: it takes no part
    )
    put_in(
        run,
        {
            "clean": torch.tensor([True, False, True, True, True, True]),
            "pgd20": torch.tensor([True, True, True, True]),  # rows 0, 1, 2, 4
            "cw30": torch.tensor([True, True, True, True, False, False]),
            "pgd20@0.05": torch.tensor([False, False]),
        },
    )
    figures = run.figures()
    assert figures["all"] == {"n": 4, "average": 0.5, "worst": 0.5, "nsd": 0.0, "per_class": [0.5, 0.5]}
    assert figures["cw30"]["average"] == pytest.approx(4 / 6)


def test_all_judges_a_linear_model_by_its_closed_form(evaluation, linear):
    network, data, robust = linear
    run = evaluation(WHITE_BOX, network, data)
    judged(run)
    assert run.figures()["all"]["average"] == robust.double().mean()


def test_checks_compare_two_attacks_on_the_images_that_both_were_given(evaluation):
    data = Images(torch.zeros(6, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 1, 1, 0, 0]))
    run = evaluation({"clean": "all", "pgd20": 4}, Linear(2), data)
    put_in(
        run,
        {
            "clean": torch.tensor([True, True, True, False, True, False]),
            "pgd20": torch.tensor([True, False, False, True]),
        },
    )
    (found,) = run.checks().comparisons
    assert (found.weaker, found.stronger, found.images) == ("clean", "pgd20", 4)
    assert (found.weaker_accuracy, found.stronger_accuracy) == (1.0, 0.5)


def test_checks_compare_every_white_box_attack_with_a_stronger_one(evaluation, linear):
    network, data, _ = linear
    run = evaluation(WHITE_BOX | {"autoattack": 10}, network, data)
    judged(run)
    pairs = {(found.weaker, found.stronger) for found in run.checks().comparisons}
    assert {weaker for weaker, _ in pairs} == {"clean", "fgsm", "pgd20", "cw30"}
    assert {("pgd20", "autoattack"), ("cw30", "autoattack")} < pairs


def test_attacks_have_the_strength_that_their_names_promise(evaluation, monkeypatch):
    """A linear network falls to any of them: what they are is looked at, not what they find."""
    steps, made = [], []

    class Seen(pyautoattack.AutoAttack):
        def __init__(self, *arguments, **settings):
            super().__init__(*arguments, **settings)
            made.append((settings, self))

        def run_standard_evaluation(self, images, labels, **_):
            return images, labels

    def pgd(network, images, objective, threat, start):
        steps.append(threat.steps)
        return start

    monkeypatch.setattr(pyautoattack, "AutoAttack", Seen)
    monkeypatch.setattr(ferd.evaluation_attacks, "pgd", pgd)
    run = evaluation({"pgd20": 10, "cw30": 10, "autoattack": 10}, batch_size=10)
    list(run.batches())
    assert steps == [20, 30]
    [(settings, attack)] = made
    assert {key: settings[key] for key in ("norm", "eps", "version")} == {
        "norm": "Linf",
        "eps": 0.1,
        "version": "standard",
    }
    assert attack.attacks_to_run == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert (attack.apgd.n_iter, attack.apgd_targeted.n_iter, attack.fab.n_iter) == (100, 100, 100)
    assert (attack.apgd_targeted.n_target_classes, attack.fab.n_target_classes) == (9, 9)
    assert attack.square.n_queries == 5000


def test_autoattack_takes_as_many_targets_as_there_are(make_network):
    network = make_network(classes=4).requires_grad_(False)
    source = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 1, 8, 8), generator=source).to(torch.uint8)
    threat = ThreatModel(norm="linf", epsilon=1e-4, step_size=1e-4, steps=1)
    settings = EvaluationSettings(batch_size=4, attacks={"autoattack": "all"}, other_balls=[], threads=1)
    with torch.no_grad():
        labels = network(images / 255).argmax(1)
    run = Evaluation(network, Images(images, labels), settings, threat, 0, CPU)
    list(run.batches())
    assert len(run.verdicts["autoattack"]) == 4


def test_too_few_classes_for_autoattack_are_refused_in_one_line(make_network):
    with pytest.raises(FerdError, match="autoattack needs 4 classes, not 3; drop it"):
        settings = EvaluationSettings(batch_size=4, attacks={"autoattack": "all"}, other_balls=[], threads=1)
        images = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
        threat = ThreatModel(norm="linf", epsilon=0.1, step_size=0.1, steps=1)
        Evaluation(make_network(classes=3), Images(images, torch.arange(3)), settings, threat, 0, CPU)


def test_on_a_gpu_float32_is_float32_whatever_the_caller_has_set(evaluation, monkeypatch, teacher):
    """The switch is looked at: only a GPU follows it."""
    cudnn, seen = torch.backends.cudnn, []
    monkeypatch.setattr(cudnn, "allow_tf32", True)
    run = evaluation({"clean": 10, "fgsm": 10})
    for network in (run.network, run.attacked):
        network.register_forward_pre_hook(lambda *_: seen.append(cudnn.allow_tf32))
    list(run.batches())
    assert len(seen) >= 3 and not any(seen)
    assert cudnn.allow_tf32


def test_attacks_are_on_the_weights_that_are_judged(evaluation, make_network, trained):
    """A network that is trained on after an evaluation of it was made, here to one that attacks do turn."""
    runs = [evaluation({"clean": "all", "pgd20": "all"}, network) for network in (make_network(), trained)]
    runs[0].network.load_state_dict(trained.state_dict())
    for run in runs:
        list(run.batches())
    assert same(runs[0].verdicts, runs[1].verdicts)
    assert runs[0].verdicts["clean"].sum() > runs[0].verdicts["pgd20"].sum() > 0


def test_figures_of_images_that_lack_a_class_are_refused(evaluation, digits):
    some = digits["test"].labels != 3
    run = evaluation({"clean": "all"}, data=Images(digits["test"].images[some], digits["test"].labels[some]))
    assert len(judged(run)["clean"]) == some.sum()
    with pytest.raises(
        FerdError, match=r"^there is no image of class 3 of 0 to 9; give some of every class$"
    ):
        run.figures()


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("attacks", {"attacks": {"clean": "all", "fgsm": "all"}}),
        ("weights", {"network": build("resnet8-w8", classes=10, channels=1, seed=5)}),
        ("batch_size", {"batch_size": 7}),
        ("attacks", {"own_attacks": {"up": OwnAttack(lambda _, images, *__: images)}}),
        ("attacks", {"other_balls": [SMALLER]}),
        ("attacks", {"within": ThreatModel(norm="linf", epsilon=0.2, step_size=0.025, steps=5)}),
        ("attacks", {"within": ThreatModel(norm="linf", epsilon=0.1, step_size=0.05, steps=5)}),
    ],
)
def test_the_state_of_another_evaluation_is_refused(evaluation, what, change):
    state = evaluation({"clean": "all"}).state_dict()
    with pytest.raises(FerdError, match=f"^{what}: not what the state was saved with"):
        evaluation(**{"attacks": {"clean": "all"}} | change).load_state_dict(state)


def test_verdicts_are_of_the_weights_that_they_were_found_with(evaluation):
    run = evaluation({"clean": "all"}, build("resnet8-w8", classes=10, channels=1, seed=5))
    before = run.state_dict()
    with torch.no_grad():
        run.network.linear.bias[0] += 1
    list(run.batches())
    after = run.state_dict()
    assert before["origin"]["weights"] != after["origin"]["weights"]


def test_a_network_that_answers_at_random_is_refused_before_it_is_attacked(evaluation):
    class Random(Linear):
        def forward(self, inputs):
            return super().forward(inputs) + torch.randn(len(inputs), self.classes)

    with pytest.raises(FerdError, match=r"^network: gives other logits each time, in eval mode, too"):
        evaluation(WHITE_BOX, Random(10))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda labels: labels + 1, "there are images of class 10, but the network has classes 0 to 9"),
        (lambda labels: labels - 1, "there are images of class -1, but the network has classes 0 to 9"),
    ],
)
def test_labels_that_the_network_lacks_are_refused_before_an_attack(evaluation, digits, change, said):
    test = digits["test"]
    with pytest.raises(FerdError, match=f"^{said}$"):
        evaluation(WHITE_BOX, data=Images(test.images, change(test.labels)))


def test_there_are_no_figures_before_every_image_is_judged(evaluation):
    judged = evaluation({"clean": "all", "fgsm": "all"}, other_balls=[ball(0.05, {"fgsm": "all"})])
    batches = judged.batches()
    next(batches)
    for figures in (judged.figures, judged.other_balls):
        with pytest.raises(
            FerdError, match=r"^\S+: \d+ of 20 images are judged; go through batches\(\) first$"
        ):
            figures()
    assert sum(1 for _ in batches) == 8
    assert judged.figures()["fgsm"]["n"] == judged.other_balls()[0]["attacks"]["fgsm"]["n"] == 20


def test_verdicts_are_the_networks_own_and_not_the_twins(evaluation):
    run, expected = evaluation(WHITE_BOX), evaluation(WHITE_BOX)
    judged(expected)
    batches = run.batches()
    next(batches)
    run.attacked.linear.register_forward_hook(lambda _, __, logits: 0 * logits + torch.eye(10)[0])  # class 0
    list(batches)
    assert torch.equal(run.verdicts["clean"], expected.verdicts["clean"])


def test_each_attack_has_random_numbers_of_its_own(evaluation, monkeypatch):
    seeds, starts = [], ferd.evaluation_attacks.random_start

    def spy(inputs, epsilon, rng):
        seeds.append(rng.initial_seed())
        return starts(inputs, epsilon, rng)

    class Seeded(pyautoattack.AutoAttack):
        def __init__(self, *args, seed, **options):
            seeds.append(seed)
            super().__init__(*args, seed=seed, **options)

        def run_standard_evaluation(self, images, labels, **_):
            return images, labels

    monkeypatch.setattr(ferd.evaluation_attacks, "random_start", spy)
    monkeypatch.setattr(pyautoattack, "AutoAttack", Seeded)
    attacks = {"pgd20": "all", "cw30": "all", "autoattack": "all"}
    judged(evaluation(attacks, batch_size=10, other_balls=[ball(0.05, {"pgd20": "all"})]))
    assert len(seeds) == len(set(seeds)) == 8  # of two batches each


def test_attacks_run_in_float32(evaluation):
    assert {weight.dtype for weight in evaluation(WHITE_BOX).attacked.parameters()} == {torch.float32}


def test_steps_that_cannot_reach_the_edge_of_the_ball_are_refused(evaluation):
    """They would find less than there is."""
    short = OtherBall(epsilon=0.5, step_size=0.02, attacks={"pgd20": 10})
    with pytest.raises(
        FerdError, match=r"^pgd20@0.5: 20 steps of 0.02 stay within ε = 0.5, which would look"
    ):
        evaluation({"clean": "all"}, other_balls=[short])
    long = OtherBall(epsilon=0.4, step_size=0.02, attacks={"pgd20": 10, "fgsm": 10})
    assert "pgd20@0.4" in evaluation({"clean": "all"}, other_balls=[long]).trials


def toward_the_edge(network, images, labels, threat, rng):
    """The strongest attack on a linear network: each pixel by ε, away from the likeliest other class."""
    weight = network.linear.weight
    values = network(images).scatter(1, labels[:, None], -torch.inf) + threat.epsilon * (
        weight[labels][:, None] - weight[None]
    ).abs().sum(2)
    direction = (weight[values.argmax(1)] - weight[labels]).sign().view_as(images)
    return (images + threat.epsilon * direction).clamp(0, 1)


def test_an_attack_of_ones_own_judges_a_linear_model_by_its_closed_form(evaluation, linear):
    network, data, robust = linear
    own = {"edge": OwnAttack(toward_the_edge)}
    run = evaluation({"clean": "all"}, network, data, own_attacks=own)
    assert torch.equal(judged(run)["edge"], robust)
    figures = run.figures()
    assert figures["edge"]["average"] == figures["all"]["average"] == robust.double().mean()
    assert figures["clean"]["average"] > figures["edge"]["average"]


def test_an_attack_of_ones_own_is_given_as_many_images_as_it_asks_for(evaluation):
    seen = []

    def attack(_network, images, labels, _threat, rng):
        seen.append((len(images), labels.tolist(), rng.initial_seed()))
        return images

    run = evaluation({"clean": "all"}, own_attacks={"mine": OwnAttack(attack, 10)})
    assert len(judged(run)["mine"]) == 10 and run.figures()["mine"]["n"] == 10
    assert [number for number, *_ in seen] == [8, 2]
    assert sorted(label for _, labels, _ in seen for label in labels) == list(range(10))
    assert seen[0][2] != seen[1][2]


@pytest.mark.parametrize(
    ("name", "images", "said"),
    [
        ("pgd20", "all", "own_attacks: 'pgd20' is taken, or has an @ in it; give it another name"),
        ("all", "all", "own_attacks: 'all' is taken, or has an @ in it; give it another name"),
        ("mine@0.1", "all", "own_attacks: 'mine@0.1' is taken, or has an @ in it; give it another name"),
        *(
            (
                "mine",
                number,
                f"own_attacks: mine: {number} images cannot be split evenly over 10 classes; use a "
                "multiple of 10, or all",
            )
            for number in (15, 0, -10)
        ),
    ],
)
def test_an_attack_of_ones_own_that_has_no_name_or_no_images_is_refused(evaluation, name, images, said):
    with pytest.raises(FerdError) as raised:
        evaluation({"clean": "all"}, own_attacks={name: OwnAttack(ATTACKS["clean"], images)})
    assert str(raised.value) == said


def test_an_attack_of_ones_own_that_is_not_wrapped_is_refused(evaluation):
    with pytest.raises(FerdError, match=r"^own_attacks: mine: is a function; give OwnAttack\(it\)$"):
        evaluation({"clean": "all"}, own_attacks={"mine": toward_the_edge})


@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        (lambda images: images + 0.11, r"leaves the ε-ball of 0\.1 or \[0, 1\]; project its images"),
        (lambda images: images - 0.02, r"leaves the ε-ball"),  # black pixels below 0
        (lambda images: images * torch.nan, r"leaves the ε-ball"),
        (lambda images: images[:, :, :4], r"must give \(8, 1, 8, 8\) torch\.float32, like its images, not"),
        (lambda images: images.double(), r"not \(8, 1, 8, 8\) torch\.float64"),
    ],
)
def test_what_is_no_adversarial_example_is_refused(evaluation, spoilt, said):
    own = {"mine": OwnAttack(lambda _network, images, *_: spoilt(images))}
    run = evaluation({"clean": "all"}, own_attacks=own)
    with pytest.raises(FerdError, match=f"^mine: .*{said}"):
        judged(run)
    assert len(run.verdicts["clean"]) == 20 and not len(run.verdicts["mine"])


def test_an_attack_that_writes_into_its_images_does_not_widen_its_ball(evaluation):
    def attack(_network, images, *_):
        return images.add_(0.5).clamp_(0, 1)

    with pytest.raises(FerdError, match="leaves the ε-ball"):
        judged(evaluation({"clean": "all"}, own_attacks={"mine": OwnAttack(attack)}))


def test_an_attack_that_writes_into_the_labels_does_not_change_what_is_right(evaluation):
    def relabels(network, images, labels, *_):
        labels.copy_(network(images).argmax(1))
        return images

    verdicts = judged(evaluation({"clean": "all"}, own_attacks={"mine": OwnAttack(relabels)}))
    assert torch.equal(verdicts["mine"], verdicts["clean"]) and not verdicts["clean"].all()


def test_an_attack_that_asks_for_more_images_than_there_are_is_named(evaluation):
    with pytest.raises(
        FerdError, match=r"has 2 images where 3 are asked for; lower the number of images of mine$"
    ):
        evaluation({"clean": "all"}, own_attacks={"mine": OwnAttack(ATTACKS["clean"], 30)})


def pushed(_network, images, *_, by):
    return (images + by).clamp(0, 1)


class Pushing:
    def __init__(self, by):
        self.by = by

    def attack(self, network, images, *_):
        return pushed(network, images, by=self.by)


def defaulting(given):
    def attack(network, images, labels, threat, rng, by=given):
        return pushed(network, images, by=by)

    return attack


def pusher(by):
    return lambda _network, images, *_: pushed(None, images, by=by)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (ManySteps(cross_entropy, 40), ManySteps(negative_margin, 40)),
        (ManySteps(cross_entropy, 40), ManySteps(cross_entropy, 80)),
        (pusher(0.05), pusher(0.06)),
        (partial(pushed, by=0.05), partial(pushed, by=0.06)),
        (ATTACKS["fgsm"], ATTACKS["clean"]),
        (Pushing(0.05).attack, Pushing(0.06).attack),
        (defaulting(0.05), defaulting(0.06)),
    ],
    ids=["loss", "steps", "closure", "argument", "function", "object of a method", "default"],
)
def test_verdicts_of_another_attack_of_ones_own_are_refused(evaluation, one, other):
    state = evaluation({"clean": "all"}, own_attacks={"mine": OwnAttack(one)}).state_dict()
    evaluation({"clean": "all"}, own_attacks={"mine": OwnAttack(one)}).load_state_dict(state)
    with pytest.raises(FerdError, match=r"^attacks: not what the state was saved with"):
        evaluation({"clean": "all"}, own_attacks={"mine": OwnAttack(other)}).load_state_dict(state)


def test_every_attack_that_settings_may_name_is_there():
    assert set(ATTACKS) == set(get_args(Attack))


def test_verdicts_of_earlier_weights_are_neither_added_to_nor_saved_as_those_of_later_ones(
    evaluation, make_network, trained
):
    run = evaluation({"clean": "all"}, make_network())
    next(run.batches())
    run.network.load_state_dict(trained.state_dict())
    with pytest.raises(FerdError, match=r"^weights: not what there are results of already; .* begin anew$"):
        next(run.batches())
    with pytest.raises(FerdError, match=r"^weights: not what the state was saved with"):
        evaluation({"clean": "all"}, trained).load_state_dict(run.state_dict())
    evaluation({"clean": "all"}, make_network()).load_state_dict(run.state_dict())


def test_a_state_takes_the_place_of_verdicts_of_other_weights(evaluation, make_network, trained):
    state = judged(of_trained := evaluation({"clean": "all"}, trained)) and of_trained.state_dict()
    run = evaluation({"clean": "all"}, make_network())
    list(run.batches())
    run.network.load_state_dict(trained.state_dict())
    run.load_state_dict(state)
    list(run.batches())
    assert same(run.verdicts, of_trained.verdicts)


def test_a_normalisation_that_comes_after_the_twin_is_refused(evaluation, make_network):
    run = evaluation({"clean": "all", "pgd20": "all"}, make_network())
    run.network.normalise_by(torch.tensor([0.4]), torch.tensor([0.2]))
    with pytest.raises(FerdError, match=r"^network: was changed after its twin for attacks had been made"):
        next(run.batches())
    assert len(run.verdicts["clean"]) == 0


def test_a_network_left_in_train_mode_after_the_evaluation_was_made_is_judged_in_eval_mode(
    evaluation, make_network
):
    expected = judged(evaluation({"clean": "all"}))
    run = evaluation({"clean": "all"}, make_network())
    run.network.train()
    assert same(judged(run), expected)
