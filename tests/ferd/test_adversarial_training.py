import copy
import math
from itertools import islice

import pytest
import torch
import torch.nn.functional as F

from ferd import adversarial_training
from ferd.adversarial_training import AdversarialTraining, WeightAverage, trades_loss
from ferd.checkpoint import load_state, save_state
from ferd.config import Augmentation, Training
from ferd.datasets import Images
from ferd.errors import FerdError
from ferd.models.registry import build

SETTINGS = Training(
    method="trades",
    beta=3.0,
    attack_steps=2,
    attack_step_size=0.05,
    epochs=3,
    batch_size=64,
    learning_rate=0.2,
    weight_decay=5e-4,
    weight_average=0.0,
    precision="float32",
)


@pytest.fixture
def training(digits, threat):
    """A fresh training of a ResNet-8 on the first ``images`` digits."""

    def make(images=100, warm_up=False, **changes):
        train = digits["train"]
        return AdversarialTraining(
            build("resnet8-w8", classes=10, channels=1),
            Images(train.images[:images], train.labels[:images]),
            SETTINGS.model_copy(update=changes),
            threat,
            Augmentation(padding=1, flip=False),
            seed=0,
            device=torch.device("cpu"),
            warm_up=warm_up,
        )

    return make


def trained_weights(training):
    """The weights that the optimiser steps on, averaged or not."""
    return training.optimiser.param_groups[0]["params"]


def assert_same(states, expected):
    for state, other in zip(states, expected, strict=True):
        assert torch.equal(state, other)


def test_trades_loss_literal():
    clean, adv = torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2)
    loss = trades_loss(clean, adv, torch.tensor([0]), beta=2.0)
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert loss.item() == pytest.approx(math.log(4 / 3) + 2 * divergence, rel=1e-5)


@pytest.mark.parametrize("case", ["beta 0", "equal logits"])
def test_trades_loss_is_cross_entropy_without_its_robust_term(case, rng):
    clean, other = torch.randn(2, 5, 4, generator=rng)
    labels = torch.tensor([0, 1, 2, 3, 0])
    adv, beta = (other, 0.0) if case == "beta 0" else (clean, 6.0)
    expected = F.cross_entropy(clean, labels)
    assert trades_loss(clean, adv, labels, beta).item() == pytest.approx(expected.item(), rel=1e-5)


def test_trades_loss_reaches_both_predictions(rng):
    clean, adv = (torch.randn(5, 4, generator=rng, dtype=torch.float64) for _ in range(2))
    labels = torch.tensor([0, 1, 2, 3, 0])
    both = (clean.requires_grad_(), adv.requires_grad_())
    assert torch.autograd.gradcheck(lambda c, a: trades_loss(c, a, labels, 2.0), both)


@pytest.mark.parametrize("method", ["standard", "trades", "pgd-at"])
def test_a_short_training_on_digits_gains_accuracy(training, method):
    records = list(training(1000, method=method, epochs=4, attack_steps=2).epochs())
    assert [record.epoch for record in records] == [1, 2, 3, 4]
    assert records[-1].accuracy > records[0].accuracy + 0.2
    assert records[-1].accuracy > 0.5
    assert records[-1].loss < records[0].loss


@pytest.mark.parametrize("method", ["trades", "pgd-at"])
@pytest.mark.parametrize("finished", [1, 2])
@pytest.mark.parametrize("weight_average", [0.0, 0.9])
def test_a_resumed_training_ends_at_the_same_bits(training, tmp_path, method, finished, weight_average):
    whole, stopped, rest = (training(method=method, weight_average=weight_average) for _ in range(3))
    records = list(whole.epochs())
    epochs = stopped.epochs()
    for _ in range(finished):
        next(epochs)
    save_state(tmp_path / "state.pt", stopped.state_dict())
    rest.load_state_dict(load_state(tmp_path / "state.pt"))
    assert list(rest.epochs()) == records[finished:]
    assert_same(rest.network.state_dict().values(), whole.network.state_dict().values())
    assert_same(trained_weights(rest), trained_weights(whole))


def test_the_threat_model_of_the_attack_is_the_ball_with_the_teachers_own_steps(training, threat):
    attacked = training().threat
    assert (attacked.epsilon, attacked.step_size, attacked.steps) == (threat.epsilon, 0.05, 2)


def test_the_learning_rate_falls_along_a_cosine_within_epochs_too(training):
    rates = [record.learning_rate for record in training(100).epochs()]  # of batch 2 of 2
    assert rates == pytest.approx([0.186603, 0.1, 0.0133975], rel=1e-4)


def test_an_averaged_network_classifies(training, digits):
    averaged = training(1000, method="standard", epochs=4, weight_average=0.99)
    list(averaged.epochs())
    images, labels = digits["validation"].images, digits["validation"].labels
    with torch.no_grad():
        correct = averaged.network.eval()(images / 255).argmax(1) == labels
    assert correct.float().mean() > 0.8


def test_a_last_batch_of_one_image_is_left_out(training):
    trained = training(65, epochs=1, method="trades")
    list(trained.epochs())
    passes = trained.network.state_dict()["bn1.num_batches_tracked"]
    assert passes == 2  # one step's, clean and attacked


def test_a_training_that_diverges_is_refused_in_one_line(training):
    with pytest.raises(FerdError, match=r"epoch \d.*learning_rate") as raised:
        list(training(learning_rate=1e30).epochs())
    assert "\n" not in str(raised.value)


def test_an_epoch_that_was_interrupted_is_not_gone_on_with(training, monkeypatch):
    run = training(epochs=2)
    next(run.epochs())
    state = copy.deepcopy(run.state_dict())

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as within:
        within.setattr(run, "_train_batch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            next(run.epochs())
    for goes_on in (lambda: next(run.epochs()), run.state_dict):
        with pytest.raises(FerdError, match="epoch 2 was interrupted; load the state"):
            goes_on()
    run.load_state_dict(state)
    assert [record.epoch for record in run.epochs()] == [2]


@pytest.mark.parametrize(
    ("method", "attacks"), [("standard", []), ("pgd-at", ["pgd", "pgd"]), ("trades", ["utae", "utae"])]
)
def test_only_standard_training_makes_no_attack(training, monkeypatch, method, attacks):
    made = []
    for name in ("pgd", "utae"):
        attack = getattr(adversarial_training, name)
        monkeypatch.setattr(
            adversarial_training,
            name,
            lambda *args, name=name, attack=attack: made.append(name) or attack(*args),
        )
    list(training(method=method, epochs=1).epochs())  # two batches
    assert made == attacks


def test_a_weight_average_follows_its_closed_form():
    source = build("resnet8-w8", classes=10, channels=1)

    def fill(value):
        for tensor in source.state_dict().values():
            tensor.fill_(value)

    fill(0)
    average = WeightAverage(source, decay=0.2)
    for weight, expected in [(1, 0.9), (2, 1.8), (-1, -0.44)]:  # d is 1/10, 2/11, then 0.2 < 3/12
        fill(weight)
        average.update()
        for key, value in average.network.state_dict().items():  # running statistics are among them
            literal = expected if value.is_floating_point() else weight
            assert torch.allclose(value, torch.full_like(value, literal)), key


def test_the_network_of_a_training_is_its_average_over_all_steps(training, monkeypatch):
    states, update = [], WeightAverage.update

    def record(self):
        states.append({key: value.clone() for key, value in self._source.state_dict().items()})
        update(self)

    monkeypatch.setattr(WeightAverage, "update", record)
    averaged = training(weight_average=0.25)
    expected = {key: value.double() for key, value in averaged.network.state_dict().items()}
    list(averaged.epochs())
    assert len(states) == 6
    for step, state in enumerate(states):
        decay = [1 / 10, 2 / 11, 0.25, 0.25, 0.25, 0.25][step]
        expected = {key: decay * expected[key] + (1 - decay) * value for key, value in state.items()}
    for key, value in averaged.network.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value.double(), expected[key], rtol=1e-4, atol=1e-6), key
            assert not torch.equal(value, states[-1][key]), key
        else:
            assert value == 12  # TRADES sees clean and adversarial images


def test_averaging_changes_nothing_about_the_training(training):
    plain, averaged = training(), training(weight_average=0.9)
    assert list(averaged.epochs()) == list(plain.epochs())
    assert_same(trained_weights(averaged), trained_weights(plain))
    assert_same(plain.network.parameters(), trained_weights(plain))


def test_given_weights_are_warmed_up_over_a_twentieth_of_the_steps(training):
    def rates(warm_up):
        epochs = training(64, warm_up, epochs=40, attack_steps=1).epochs()  # one batch an epoch
        return [record.learning_rate for record in islice(epochs, 3)]

    assert rates(False) == pytest.approx([0.2, 0.1996917, 0.1987688], rel=1e-6)
    assert rates(True) == pytest.approx([0.0, 0.0998459, 0.1987688], rel=1e-6)


@pytest.mark.parametrize(
    ("precision", "trained_in", "attacked_in"),
    [
        ("float32", torch.float32, torch.float32),
        ("bf16-attacks", torch.float32, torch.bfloat16),
        ("bf16", torch.bfloat16, torch.bfloat16),
    ],
)
def test_weights_are_float32_whatever_is_computed_in(training, precision, trained_in, attacked_in):
    some = training(1000, method="pgd-at", epochs=2, precision=precision, weight_average=0.5)
    computed_in = {True: set(), False: set()}

    def note(module, inputs, output):
        if isinstance(module, torch.nn.Conv2d):
            computed_in[module.training].add(output.dtype)

    with torch.nn.modules.module.register_module_forward_hook(note):
        records = list(some.epochs())
    assert computed_in[True] == {trained_in}
    assert computed_in[False] == {attacked_in, torch.float32}  # the check for divergence is in float32
    assert records[1].accuracy > records[0].accuracy
    for weights in (trained_weights(some), some.network.parameters()):
        assert {weight.dtype for weight in weights} == {torch.float32}


def test_images_that_the_network_cannot_be_trained_on_are_refused(digits, threat):
    train, ones = digits["train"], torch.ones(4, dtype=torch.int64)
    for data, said in (
        (
            Images(train.images[:4], 9 * ones),
            "there are images of class 9, but the network has classes 0 to 2",
        ),
        (Images(train.images[:4].expand(-1, 3, -1, -1), ones), "4 images of 3 channels; give two or more"),
        (Images(train.images[:1], ones[:1]), "1 images of 1 channels; give two or more"),
        ((train.images, train.labels), r"a tuple is no ferd\.datasets\.Images"),
    ):
        with pytest.raises(FerdError, match=f"^{said}"):
            AdversarialTraining(
                build("resnet8-w8", classes=3, channels=1),
                data,
                SETTINGS,
                threat,
                Augmentation(padding=1, flip=False),
                0,
                "cpu",
            )


def test_a_state_that_does_not_fit_is_refused_and_nothing_is_taken(training):
    state = training().state_dict() | {"epoch": 2}
    other = training(weight_average=0.9)
    with pytest.raises(FerdError, match=r"^settings: not what the state was saved with"):
        other.load_state_dict(state)
    narrow = {name: weight[:1] for name, weight in state["network"].items() if weight.dim()}
    with pytest.raises(FerdError, match=r"^the state is of another network"):
        training().load_state_dict(state | {"network": narrow})
    another = training()
    before = {name: weight.clone() for name, weight in another.network.state_dict().items()}
    with pytest.raises(FerdError, match=r"^rng: the state was saved on another kind of device"):
        another.load_state_dict(state | {"rng": torch.zeros(16, dtype=torch.uint8)})
    assert all(torch.equal(weight, before[name]) for name, weight in another.network.state_dict().items())
    assert other.epoch == 0
    other = training()
    other._origin["images"] = "another"
    with pytest.raises(FerdError, match=r"^images: not what the state was saved with"):
        other.load_state_dict(state)


def test_trades_attacks_up_the_divergence_alone(training, monkeypatch):
    gammas, utae = [], adversarial_training.utae

    def spy(network, inputs, clean_probs, gamma, *rest):
        gammas.append(gamma)
        return utae(network, inputs, clean_probs, gamma, *rest)

    monkeypatch.setattr(adversarial_training, "utae", spy)
    list(training(epochs=1).epochs())
    assert gammas == [0.0, 0.0]


def test_the_optimiser_has_the_fields_momentum_and_the_settings_weight_decay(training):
    (group,) = training(weight_decay=1e-3).optimiser.param_groups
    assert (group["momentum"], group["weight_decay"]) == (0.9, 1e-3)


@pytest.mark.parametrize("weight_average", [0.0, 0.9])
def test_the_network_can_be_used_between_epochs(training, digits, weight_average):
    run = training(weight_average=weight_average, epochs=2)
    for _ in run.epochs():
        before = copy.deepcopy(run.network.state_dict())
        assert not any(module.training for module in run.network.modules())
        run.network(digits["test"].images / 255)
        for key, value in run.network.state_dict().items():
            assert torch.equal(value, before[key]), key


def test_a_weight_of_two_names_is_averaged_once():
    source = build("resnet8-w8", classes=10, channels=1)
    source.layer1[0].conv2.weight = source.layer1[0].conv1.weight
    average = WeightAverage(source, decay=0.5)
    before = average.network.layer1[0].conv1.weight.clone()
    with torch.no_grad():
        source.layer1[0].conv1.weight.add_(1)
    average.update()
    moved = average.network.layer1[0].conv2.weight - before
    assert torch.allclose(moved, torch.full_like(moved, 0.9), atol=1e-6)  # 1 − 1/10


def test_a_loaded_training_is_in_eval_mode(training):
    run = training(epochs=2)
    state = run.state_dict()
    run.network.train()
    run.load_state_dict(state)
    assert not any(module.training for module in run.network.modules())
