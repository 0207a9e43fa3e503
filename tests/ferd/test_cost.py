"""Counted FLOPs and bytes against what is known in closed form."""

import pytest
import torch
from torch import nn

from ferd import cost
from ferd.attacks import cross_entropy
from ferd.config import AnalysisSettings, DistillationSettings, EvaluationSettings, Method, Training
from ferd.errors import FerdError
from ferd.evaluation_attacks import ATTACKS, ManySteps
from ferd.models.registry import build
from tests.conftest import tiny_params

UNIT = cost.Passes(forward=1.0, attack=2.0, training=3.0)
DIGITS = tiny_params()["benchmarks"]["digits"]
SCHEDULE = DistillationSettings(
    **DIGITS["distillation"]
)  # 3 rounds, 1 of them warm-up; 16 images; 2 + 2 steps
METHODS = {name: Method(**block) for name, block in tiny_params()["methods"].items()}


def meta(name, classes=10, channels=3):
    with torch.device("meta"):
        return build(name, classes=classes, channels=channels)


def images(batch=1, channels=3, size=32):
    return torch.empty(batch, channels, size, size, device="meta")


def test_a_linear_layer_costs_two_flops_a_weight_and_image():
    found = cost.passes(nn.Linear(30, 20).to("meta"), torch.empty(4, 30, device="meta"))
    assert found.forward == 2 * 30 * 20
    assert found.attack == 2 * found.forward  # and the gradient by the input
    assert found.training == 2 * found.forward  # and that by the weights; the input needs none


@pytest.mark.parametrize("name", ["resnet18", "wrn-16-4", "preact_resnet18", "mobilenet_v2"])
def test_forward_flops_are_those_of_its_layers(name):
    network = build(name, classes=10, channels=3)
    layers = []

    def count(layer, inputs, output):
        kernel = layer.weight[0].numel() if isinstance(layer, nn.Conv2d) else layer.in_features
        layers.append(2 * output.numel() * kernel)

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, 32, 32))
    assert cost.passes(meta(name), images()).forward == sum(layers)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])  # the second has a group a channel
def test_an_attack_costs_two_and_a_training_step_nearly_three_forward_passes(name):
    found = cost.passes(meta(name), images(2))
    assert found.attack == pytest.approx(2 * found.forward, rel=1e-3)
    assert 2.9 < found.training / found.forward < 3


def test_what_autograd_keeps_of_a_layer_is_its_input_once():
    layer = nn.Linear(8, 8, bias=False).to("meta")
    inputs = torch.empty(4, 8, device="meta")
    assert cost.saved_bytes(lambda: layer(inputs) + layer(inputs)) == 4 * 8 * 4  # both share it


def test_memory_grows_with_the_batch_but_for_weights():
    network = meta("resnet18")
    one, two = (cost.training_memory(network, batch, (3, 32, 32)) for batch in (32, 64))
    fixed = 3 * cost.weights_bytes(network)
    assert two - fixed == pytest.approx(2 * (one - fixed), rel=0.02)
    assert cost.weights_bytes(network) == pytest.approx(4 * 11_173_962, rel=0.002)


def test_a_teachers_memory_is_its_step_its_copies_and_its_images():
    network, block = meta("resnet18"), DIGITS["teacher"]["training"] | {"batch_size": 32}
    weights, shape = cost.weights_bytes(network), (3, 32, 32)
    for method, forwards in (("trades", 2), ("pgd-at", 1), ("standard", 1)):
        for average, copies in ((0.0, 1), (0.9, 2)):
            settings = Training(**block | {"method": method, "weight_average": average})
            expected = cost.training_memory(network, 32, shape, forwards) + copies * weights + 7 * 3072
            assert cost.teacher_memory(settings, 7, network, shape) == expected


def test_training_work_literal():
    block = DIGITS["teacher"]["training"] | {"epochs": 2, "attack_steps": 3}
    assert cost.training_work(Training(**block | {"method": "standard"}), 5, UNIT).total == 2 * 5 * 3
    assert cost.training_work(Training(**block | {"method": "pgd-at"}), 5, UNIT).total == 2 * 5 * (3 * 2 + 3)
    assert cost.training_work(Training(**block), 5, UNIT).total == 2 * 5 * (1 + 3 * 2 + 2 * 3)


def test_distillation_work_literal():
    work = cost.distillation_work(SCHEDULE, METHODS["ferd"], UNIT, UNIT, UNIT, 0.5, margin_steps=7)
    margins = 3 * 16 * (7 * 2 + 1)
    bottleneck = 3 * 2 * 16 * SCHEDULE.synthesis.bottleneck.steps * 0.5
    assert work.teacher == 3 * 16 + margins + 3 * 2 * 16 * 2 + bottleneck + 2 * 2 * 16
    in_synthesis = 1 * 2 * 16 * 2  # the last round's alone: before, the student has not been trained
    assert work.student == in_synthesis + 2 * 2 * 16 * (10 * 2 + 2 * 3)
    assert work.generator == 3 * 2 * 16 * 3


def test_methods_cost_what_they_do():
    works = {
        name: cost.distillation_work(SCHEDULE, method, UNIT, UNIT, UNIT, 0.0, margin_steps=20)
        for name, method in METHODS.items()
    }
    assert works["no-utae"] == works["ferd"]
    assert works["no-reweighting"].teacher == works["ferd"].teacher - 3 * 16 * (20 * 2 + 1)
    assert works["uniform-noise"].generator == works["rslad"].generator == 0
    assert works["dfhl-rs"].teacher == 3 * 16 + 2 * 2 * 16  # agreement; attacked images
    assert works["dfhl-rs"].student == 3 * 2 * 16 * 2 + 2 * 2 * 16 * (10 * 2 + 3)


def test_attacks_are_counted_on_the_network_that_is_attacked():
    ferd = METHODS["ferd"]
    at_teacher = ferd.model_copy(update={"utae": ferd.utae.model_copy(update={"model": "teacher"})})
    usual, other = (
        cost.distillation_work(SCHEDULE, method, UNIT, UNIT, UNIT, 0.0, margin_steps=20)
        for method in (ferd, at_teacher)
    )
    attacks = 2 * 2 * 16 * 10 * 2
    assert (other.teacher - usual.teacher, usual.student - other.student) == (attacks, attacks)


def test_a_bottleneck_step_passes_only_what_comes_after_its_layer():
    network, inputs = meta("resnet8-w8"), torch.empty(2, 3, 32, 32, device="meta")
    last = cost.bottleneck_flops(network, -1, inputs)
    assert last == 2 * 2 * 32 * 10  # the linear layer and its gradient
    assert last < cost.bottleneck_flops(network, -2, inputs) < cost.passes(network, inputs).attack


def test_evaluation_work_counts_every_ball():
    block = DIGITS["evaluation"] | {"attacks": {"clean": "all", "pgd20": 10}}
    plain = cost.evaluation_work(EvaluationSettings(**block), 100, UNIT).total
    assert plain == 100 * 1 + 10 * (20 * 2 + 1)
    ball = {"epsilon": 0.2, "step_size": 0.05, "attacks": {"fgsm": "all"}}
    more = cost.evaluation_work(EvaluationSettings(**block | {"other_balls": [ball]}), 100, UNIT).total
    assert more == plain + 100 * (2 + 1)


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_attack_has_a_cost(attack):
    settings = EvaluationSettings(**DIGITS["evaluation"] | {"attacks": {attack: 10}, "other_balls": []})
    assert cost.evaluation_work(settings, 100, UNIT).total >= 10 * 1


def test_an_attack_that_was_added_costs_its_steps_or_is_asked_for(monkeypatch):
    settings = EvaluationSettings(**DIGITS["evaluation"] | {"attacks": {"fgsm": 10}, "other_balls": []})
    added = settings.model_construct(attacks={"pgd50": 10}, other_balls=[])
    with pytest.raises(FerdError, match=r"^pgd50: evaluation_work in ferd/cost\.py does not know its passes"):
        cost.evaluation_work(added, 100, UNIT)
    monkeypatch.setitem(ATTACKS, "pgd50", ManySteps(cross_entropy, 50))
    assert cost.evaluation_work(added, 100, UNIT).total == 10 * (50 * 2 + 1)


def test_analysis_work_literal():
    block = DIGITS["analysis"] | {"images_per_class": 2, "targeted_steps": 3, "gammas": [0.0, 0.5]}
    settings = AnalysisSettings(**block | {"pool_images": 7})
    adversary = 1 + 9 * (3 * 2 + 1)  # clean, then nine targets
    assert cost.analysis_work(settings, 4, 10, UNIT, None) == cost.Work(teacher=20 * adversary)
    work = cost.analysis_work(settings, 4, 10, UNIT, UNIT)
    assert work.teacher == 2 * adversary + 2 * 20 + 2 * 7
    assert work.student == 20 * (adversary + 1) + 2 * 20 * (4 * 2 + 1)
    few_targets = cost.analysis_work(settings, 4, 3, UNIT, None)
    assert few_targets.total == 6 * (1 + 2 * (3 * 2 + 1))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_calibration_measures_a_rate_that_this_machine_can_have(precision):
    network = build("resnet8-w8", classes=10, channels=1)
    rate = cost.attack_rate(network, (1, 8, 8), 4, precision, torch.device("cpu"))
    assert 1e6 < rate < 1e13


def test_a_calibration_ends_at_the_largest_batch_that_fits(monkeypatch):
    tried = []

    def attack_seconds(network, images):
        tried.append(len(images))
        if len(images) > 4:
            raise torch.OutOfMemoryError
        return 1e-4

    monkeypatch.setattr(cost, "_attack_seconds", attack_seconds)
    network = build("resnet8-w8", classes=10, channels=1)
    rate = cost.attack_rate(network, (1, 8, 8), 64, "float32", torch.device("cpu"))
    attack = cost.passes(network.to("meta"), torch.empty(2, 1, 8, 8, device="meta")).attack
    assert rate == pytest.approx(attack * 4 / 1e-4)
    assert tried == [1, 1, 2, 2, 4, 4, 8]


def test_a_transposed_convolutions_gradients_cost_a_forward_pass_each():
    layer = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, bias=False).to("meta")
    found = cost.passes(layer, torch.empty(2, 4, 5, 5, device="meta"))
    assert found.forward == 2 * 4 * 5 * 5 * 3 * 3 * 3
    assert found.attack == found.training == 2 * found.forward


def test_a_distillations_memory_holds_the_images_of_all_rounds():
    network, shape = meta("resnet8-w8", channels=1), (1, 8, 8)
    two, eleven = (
        cost.distillation_memory(SCHEDULE.model_copy(update={"rounds": rounds}), network, network, shape)
        for rounds in (2, 11)
    )
    assert eleven - two == 9 * 16 * 8 * 8


def test_a_distillations_memory_holds_the_generator_in_its_step():
    network, shape = meta("resnet8-w8", channels=1), (1, 8, 8)
    wide = SCHEDULE.model_copy(
        update={"synthesis": SCHEDULE.synthesis.model_copy(update={"latent_dim": 10_000})}
    )
    plain, more = (
        cost.distillation_memory(schedule, network, network, shape) for schedule in (SCHEDULE, wide)
    )
    assert (
        more - plain > 16 * (10_000 - SCHEDULE.synthesis.latent_dim) * 128
    )  # weights, gradients, Adam's two
