import math

import pytest
import torch
import torch.nn.functional as F

from ferd.adversarial_training import AdversarialTraining, trades_loss
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

    def make(images=100, **changes):
        train = digits["train"]
        return AdversarialTraining(
            build("resnet8-w8", classes=10, channels=1),
            Images(train.images[:images], train.labels[:images]),
            SETTINGS.model_copy(update=changes),
            threat,
            Augmentation(padding=1, flip=False),
            seed=0,
            device=torch.device("cpu"),
        )

    return make


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


@pytest.mark.parametrize("method", ["trades", "pgd-at"])
def test_a_short_training_on_digits_gains_accuracy(training, method):
    records = list(training(1000, method=method, epochs=4, attack_steps=2).epochs())
    assert [record.epoch for record in records] == [1, 2, 3, 4]
    assert records[-1].accuracy > records[0].accuracy + 0.2
    assert records[-1].accuracy > 0.5
    assert records[-1].loss < records[0].loss


@pytest.mark.parametrize("method", ["trades", "pgd-at"])
@pytest.mark.parametrize("finished", [1, 2])
def test_a_resumed_training_ends_at_the_same_bits(training, tmp_path, method, finished):
    whole = training(method=method)
    records = list(whole.epochs())
    stopped, rest = training(method=method), training(method=method)
    epochs = stopped.epochs()
    for _ in range(finished):
        next(epochs)
    save_state(tmp_path / "state.pt", stopped.state_dict())
    rest.load_state_dict(load_state(tmp_path / "state.pt"))
    assert list(rest.epochs()) == records[finished:]
    expected = whole.network.state_dict()
    for key, value in rest.network.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_the_threat_model_of_the_attack_is_the_ball_with_the_teachers_own_steps(training, threat):
    attacked = training().threat
    assert (attacked.epsilon, attacked.step_size, attacked.steps) == (threat.epsilon, 0.05, 2)


def test_the_learning_rate_falls_along_a_cosine_within_epochs_too(training):
    rates = [record.learning_rate for record in training(100).epochs()]  # of batch 2 of 2
    assert rates == pytest.approx([0.186603, 0.1, 0.0133975], rel=1e-4)


def test_a_last_batch_of_one_image_is_left_out(training):
    assert len(list(training(65, epochs=1).epochs())) == 1


def test_a_training_that_diverges_is_refused_in_one_line(training):
    with pytest.raises(FerdError, match=r"epoch \d.*learning_rate") as raised:
        list(training(learning_rate=1e30).epochs())
    assert "\n" not in str(raised.value)
