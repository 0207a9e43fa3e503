"""Training on labelled images: standard, PGD-AT (Madry et al. 2018) and TRADES (Zhang et al. 2019)."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ferd.attacks import cross_entropy, pgd, random_start, utae
from ferd.augmentation import augment
from ferd.config import Augmentation, ThreatModel, Training, fingerprint, require_settings
from ferd.cuda_graphs import Recorded, algorithms_tried
from ferd.datasets import Images, require_batches, require_known, shape_of
from ferd.errors import FerdError
from ferd.models.classifier import Classifier, diverged, fast_layout, require_classifier, shapes, usable
from ferd.models.folding import Folded, attack_dtype, require_foldable, settled
from ferd.origin import hash_of_images, require_same
from ferd.pixels import to_float
from ferd.randomness import stream
from ferd.schedule import set_cosine_rate
from ferd.tf32 import tf32_convolutions

WARM_UP = 0.05  # share of all steps


@dataclass(frozen=True)
class EpochRecord:
    """One epoch's means; the accuracy is on the batches that were trained on, adversarial or not."""

    epoch: int
    loss: float
    accuracy: float
    learning_rate: float


def trades_loss(clean_logits: Tensor, adv_logits: Tensor, labels: Tensor, beta: float) -> Tensor:
    """CE(f(x), y) + β·KL(σ(f(x)) ‖ σ(f(x'))), the mean over the batch; both keep their gradients.

    Logits (B, C), labels (B,) -> (). Zhang et al. 2019.
    """
    clean, adv = clean_logits.log_softmax(1), adv_logits.log_softmax(1)
    robust = (clean.exp() * (clean - adv)).sum(1).mean()
    return F.cross_entropy(clean_logits, labels) + beta * robust


class WeightAverage:
    """A moving average of weights: θ̄ ← d·θ̄ + (1 − d)·θ after each step, running statistics included.

    d grows as (1 + t)/(10 + t) up to ``decay``, so that the first weights are soon forgotten.

    Attributes:
        network: a copy of the source with the averaged weights.
        steps: t.
    """

    def __init__(self, source: Classifier, decay: float) -> None:
        self._source, self.decay, self.steps = source, decay, 0
        self.network = copy.deepcopy(source).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the source's weights."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        source = dict(_tensors(self._source))
        for name, value in _tensors(self.network):
            if value.is_floating_point():
                value.lerp_(source[name], 1 - decay)
            else:
                value.copy_(source[name])


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights and buffers, one that has two names once."""
    yield from network.named_parameters()
    yield from network.named_buffers()


class AdversarialTraining:
    """SGD with momentum 0.9 on (adversarial) training images; cosine to 0.

    Between two epochs ``network`` is in eval mode.

    Args:
        network: trained in place, on ``device``, all of its weights.
        data: training images.
        threat: the ball; its step size and steps are replaced by the settings' own.
        warm_up: the learning rate rises over the first 5 % of the steps: for given weights.

    Raises:
        FerdError: there are fewer than two images, they have labels or channels that the network lacks, or
            its twin is another function (``ferd.models.folding.require_foldable``).
    """

    def __init__(
        self,
        network: Classifier,
        data: Images,
        settings: Training,
        threat: ThreatModel,
        augmentation: Augmentation,
        seed: int,
        device: torch.device | str,
        *,
        warm_up: bool = False,
    ) -> None:
        require_settings((settings, Training), (threat, ThreatModel), (augmentation, Augmentation))
        require_classifier(network, "network")
        require_batches(data, settings.batch_size)
        require_known(data.labels, network.classes)
        if len(data.images) < 2 or data.images.shape[1] != network.channels:
            raise FerdError(
                f"{len(data.images)} images of {data.images.shape[1]} channels; give two or more of the "
                f"network's {network.channels}"
            )
        device = usable(device)
        self._trained = fast_layout(network, device).eval().requires_grad_(True)
        require_foldable(network, "network", shape_of(data))
        self._twin = Folded(self._trained, attack_dtype(settings.precision, device))
        self._average = (
            WeightAverage(self._trained, settings.weight_average) if settings.weight_average else None
        )
        self.settings = settings
        self.augmentation = augmentation
        self.warm_up = WARM_UP if warm_up else 0.0
        self.threat = threat.model_copy(
            update={"step_size": settings.attack_step_size, "steps": settings.attack_steps}
        )
        self.images, self.labels = data.images.to(device), data.labels.to(device)
        self.device = device
        self.rng = stream(seed, "adversarial-training", device=device)
        self.optimiser = torch.optim.SGD(
            network.parameters(),
            settings.learning_rate,
            momentum=0.9,
            weight_decay=settings.weight_decay,
            fused=device.type == "cuda",
        )
        self._bf16 = settled(settings.precision, device) == "bf16"
        self._origin = {
            "images": hash_of_images(data),
            "settings": fingerprint(settings, threat, augmentation, self.warm_up),
            "seed": str(seed),
            "precision": settled(settings.precision, device),
        }
        self.epoch = 0
        self._at_epoch_end = True

    @property
    def network(self) -> Classifier:
        """What the training is for: the averaged network, or the trained one where none is averaged."""
        return self._average.network if self._average else self._trained

    def epochs(self) -> Iterator[EpochRecord]:
        """Train to the end, one record an epoch; the state may be saved between two.

        Raises:
            FerdError: the training diverges, or an epoch was left half-way.
        """
        self._require_epoch_end()
        self._twin.refresh()
        self._twin.require_following("network", to_float(self.images[:2]))
        while self.epoch < self.settings.epochs:
            self._at_epoch_end = False
            record = self._train_epoch()
            some = to_float(self.images[:2])
            if not math.isfinite(record.loss) or diverged(self._trained, some):
                raise FerdError(
                    f"the training diverges in epoch {record.epoch} (loss {record.loss:.3g}); "
                    "lower training.learning_rate"
                )
            self.epoch += 1
            self._at_epoch_end = True
            yield record

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that the remaining epochs depend on.

        Raises:
            FerdError: an epoch was left half-way.
        """
        self._require_epoch_end()
        state = {
            "epoch": self.epoch,
            "network": self._trained.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "rng": self.rng.get_state(),
            "origin": self._origin,
        }
        if self._average:
            state |= {"average": self._average.network.state_dict(), "averaged_steps": self._average.steps}
        return copy.deepcopy(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken, with the same network and settings.

        Raises:
            FerdError: the state is of another network, other images, settings or random numbers; nothing of
                it was taken.
        """
        require_same(state.get("origin"), self._origin)
        if shapes(state["network"]) != shapes(self._trained.state_dict()):
            raise FerdError("the state is of another network; give the one that it was saved with")
        if state["rng"].shape != self.rng.get_state().shape:
            raise FerdError("rng: the state was saved on another kind of device; go on there, or begin anew")
        self._trained.load_state_dict(state["network"])
        self._trained.eval()
        if self._average:
            self._average.network.load_state_dict(state["average"])
            self._average.steps = state["averaged_steps"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.rng.set_state(state["rng"])
        self.epoch = state["epoch"]
        self._at_epoch_end = True

    def _require_epoch_end(self) -> None:
        if not self._at_epoch_end:
            raise FerdError(
                f"epoch {self.epoch + 1} was interrupted; load the state that was saved before it"
            )

    @torch.enable_grad()
    @tf32_convolutions(False)
    @algorithms_tried()
    def _train_epoch(self) -> EpochRecord:
        size = self.settings.batch_size
        order = torch.randperm(len(self.images), generator=self.rng, device=self.device)
        batches = [rows for rows in order.split(size) if len(rows) > 1]
        attack = Recorded(self._attacked, self.device)
        sums = torch.zeros(2, device=self.device)
        rate = self.settings.learning_rate
        for number, rows in enumerate(batches):
            done = (self.epoch + number / len(batches)) / self.settings.epochs
            rate = set_cosine_rate(self.optimiser, self.settings.learning_rate, done, self.warm_up)
            images, labels = to_float(self.images[rows]), self.labels[rows]
            sums += self._train_batch(images, labels, attack) / len(batches)
        self._trained.eval()
        loss, accuracy = sums.tolist()
        return EpochRecord(self.epoch + 1, loss, accuracy, rate)

    def _train_batch(self, images: Tensor, labels: Tensor, attack: Recorded[Tensor]) -> Tensor:
        """One step; -> its loss and accuracy (2,)."""
        inputs = augment(images, self.augmentation, self.rng)
        trained_inputs = inputs if self.settings.method == "standard" else attack(inputs, labels)
        self._trained.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            logits = self._trained(trained_inputs).float()
            if self.settings.method == "trades":
                clean_logits = self._trained(inputs).float()
        if self.settings.method == "trades":
            loss = trades_loss(clean_logits, logits, labels, self.settings.beta)
        else:
            loss = F.cross_entropy(logits, labels)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        if self._average:
            self._average.update()
        accuracy = (logits.argmax(1) == labels).float().mean()
        return torch.stack([loss.detach(), accuracy])

    def _attacked(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Adversarial images, made on a twin of the network as it is now."""
        self._twin.refresh()
        attacked = self._twin.network
        if self.settings.method == "trades":
            with torch.no_grad():
                clean_probs = attacked(inputs).softmax(1)
            return utae(attacked, inputs, clean_probs, 0.0, self.threat, self.rng)
        start = random_start(inputs, self.threat.epsilon, self.rng)
        return pgd(attacked, inputs, cross_entropy(labels), self.threat, start)
