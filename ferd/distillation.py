"""The paper's loop: each round synthesises a batch, reweights the classes and trains the student."""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ferd.attacks import utae
from ferd.augmentation import augment
from ferd.config import Augmentation, Method, ThreatModel
from ferd.config import Distillation as Schedule
from ferd.errors import FerdError
from ferd.losses import ClassPrior, ikl
from ferd.models.classifier import Classifier, diverged, fast_layout
from ferd.models.generator import Generator
from ferd.pixels import to_float, to_uint8
from ferd.pool import Pool
from ferd.reweighting import adversarial_margins, proportions, update_difficulty
from ferd.schedule import set_cosine_rate
from ferd.synthesis import synthesise

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class RoundRecord:
    """What one round did.

    ``proportions`` are the class shares its labels were drawn from, ``difficulty`` D after it
    (None for a class never seen), ``agreement`` the share of its images that the teacher gives the
    requested label; ``generator`` holds the loss terms of the kept step, ``student`` the mean
    losses over the round's steps.
    """

    round: int
    learning_rate: float
    agreement: float
    proportions: list[float]
    difficulty: list[float | None]
    generator: dict[str, float]
    student: dict[str, float]


class Distillation:
    """A student and everything that its training depends on; resumable between two rounds.

    Args:
        teacher: frozen and in eval mode, always.
        student: trained in place, on ``device``.
        shape: (channels, H, W) of an image.
        pool_folder: where the synthetic images are kept.
        real_images: uint8 (N, channels, H, W) with labels (N,); for the ``real-data`` control only.
    """

    def __init__(
        self,
        teacher: Classifier,
        student: Classifier,
        shape: tuple[int, int, int],
        schedule: Schedule,
        augmentation: Augmentation,
        method: Method,
        threat: ThreatModel,
        seed: int,
        pool_folder: Path,
        device: torch.device,
        real_images: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        if schedule.proportion_floor * teacher.classes > 1:
            raise FerdError(
                f"proportion_floor {schedule.proportion_floor} is more than 1/{teacher.classes}, an "
                "equal share of every class; lower it"
            )
        if (real_images is None) == (method.images == "real-data"):
            raise ValueError("real images belong to the real-data control, and to no other method")
        self.teacher = fast_layout(teacher, device).eval().requires_grad_(False)
        self.student = fast_layout(student, device)
        self.schedule, self.augmentation = schedule, augmentation
        self.method, self.threat = method, threat
        self.shape, self.device, self.real_images = shape, device, real_images
        self.rng = torch.Generator(device).manual_seed(seed)
        capacity = schedule.rounds * schedule.batch_size
        self.pool = Pool(pool_folder, capacity, shape, device)
        self.prior = ClassPrior(teacher.classes, device)
        self.difficulty = torch.full((teacher.classes,), math.nan, device=device)
        generator = Generator(schedule.synthesis.latent_dim, shape[0], shape[1])
        self.generator = fast_layout(generator, device)
        self.optimiser = torch.optim.SGD(
            student.parameters(),
            schedule.student.learning_rate,
            momentum=0.9,
            weight_decay=schedule.student.weight_decay,
        )
        self.round = 0

    def rounds(self) -> Iterator[RoundRecord]:
        """Run the remaining rounds, one record each; the state may be saved between two."""
        self.pool.keep_rounds(self.round)
        while self.round < self.schedule.rounds:
            record = self._run_round()
            self.round += 1
            yield record

    def state_dict(self) -> dict[str, Any]:
        """All that the remaining rounds depend on, but for the pool, which is on disk."""
        return {
            "round": self.round,
            "student": self.student.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "difficulty": self.difficulty,
            "prior": {"sums": self.prior.sums, "counts": self.prior.counts},
            "rng": self.rng.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        self.round = state["round"]
        self.student.load_state_dict(state["student"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.difficulty = state["difficulty"].to(self.device)
        self.prior.sums = state["prior"]["sums"].to(self.device)
        self.prior.counts = state["prior"]["counts"].to(self.device)
        self.rng.set_state(state["rng"])

    def _run_round(self) -> RoundRecord:
        shares = self._proportions()
        images, labels, figures = self._next_images(shares)
        self.pool.append(images, labels)
        inputs = to_float(images)
        with torch.no_grad():
            agreement = (self.teacher(inputs).argmax(1) == labels).float().mean()
        if self.method.reweighting:
            margin = adversarial_margins(self.teacher, inputs, labels, self.threat, self.rng)
            self.difficulty = update_difficulty(self.difficulty, margin, labels)
        rate = set_cosine_rate(
            self.optimiser, self.schedule.student.learning_rate, self.round / self.schedule.rounds
        )
        losses = self._train_student() if self.round >= self.schedule.warmup_rounds else {}
        return RoundRecord(
            round=self.round + 1,
            learning_rate=rate,
            agreement=agreement.item(),
            proportions=shares.tolist(),
            difficulty=[None if math.isnan(d) else d for d in self.difficulty.tolist()],
            generator={key: value.item() for key, value in figures.items()},
            student=losses,
        )

    def _proportions(self) -> Tensor:
        if self.method.reweighting:
            return proportions(self.difficulty, self.schedule.proportion_floor)
        return torch.full_like(self.difficulty, 1 / self.teacher.classes)

    def _next_images(self, shares: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """A round's images (B, channels, H, W) uint8, their labels (B,) and the loss terms."""
        if self.method.images == "generator":
            return self._synthesise(shares)
        if self.method.images == "real-data":
            return (*self._draw_real_images(), {})
        images = to_uint8(self._unfitted_images())
        with torch.no_grad():
            return images, self.teacher(to_float(images)).argmax(1), {}

    def _synthesise(self, shares: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        batch = self.schedule.batch_size
        labels = torch.multinomial(shares, batch, replacement=True, generator=self.rng)
        trained = self.round > self.schedule.warmup_rounds
        result = synthesise(
            self.teacher,
            self.student if trained else None,
            self.generator,
            labels,
            self.schedule.synthesis,
            self.augmentation,
            self.rng,
            fae=self.method.fae,
        )
        self._warn_of_a_useless_mask(result.figures)
        return to_uint8(result.images), labels, result.figures

    def _warn_of_a_useless_mask(self, figures: dict[str, Tensor]) -> None:
        if "robust_fraction" in figures and not 0.01 <= (share := figures["robust_fraction"].item()) <= 0.99:
            LOGGER.warning(
                "round %d: %.1f %% of the channels are robust, so that L_uni sees all or nothing; try "
                "another bottleneck.threshold",
                self.round + 1,
                100 * share,
            )

    def _unfitted_images(self) -> Tensor:
        """Uniform noise, or the images of a generator that was never fitted."""
        batch = self.schedule.batch_size
        if self.method.images == "uniform-noise":
            return torch.rand(batch, *self.shape, generator=self.rng, device=self.device)
        latents = torch.empty(batch, self.schedule.synthesis.latent_dim, device=self.device)
        self.generator.reinitialise(self.rng)
        with torch.no_grad():
            images: Tensor = self.generator.train()(latents.normal_(generator=self.rng))
        return images

    def _draw_real_images(self) -> tuple[Tensor, Tensor]:
        """As many real images as a round synthesises, drawn without replacement."""
        assert self.real_images is not None
        images, labels = self.real_images
        rows = torch.randperm(len(images), generator=self.rng, device=self.device)
        rows = rows[: self.schedule.batch_size]
        return images.to(self.device)[rows], labels.to(self.device)[rows]

    def _train_student(self) -> dict[str, float]:
        steps = self.schedule.student.steps
        sums = torch.zeros(2, device=self.device)
        for _ in range(steps):
            images, labels = self.pool.sample(self.schedule.batch_size, self.rng)
            inputs = augment(images, self.augmentation, self.rng)
            sums += self._train_batch(inputs, labels) / steps
        clean, adversarial = sums.tolist()
        if not math.isfinite(clean + adversarial) or diverged(self.student, inputs):
            raise FerdError(
                f"student: the loss is not finite in round {self.round + 1} (clean {clean}, "
                f"adversarial {adversarial}); lower student.learning_rate"
            )
        return {"clean_loss": clean, "adversarial_loss": adversarial}

    def _train_batch(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """One step on Eq. 12; -> its clean and adversarial loss (2,)."""
        with torch.no_grad():
            teacher_logits = self.teacher(inputs)
        teacher_probs = teacher_logits.softmax(1)
        self.prior.update(teacher_probs, labels)
        weights = self.prior.weights(labels)
        attacked = self.student if self.method.utae.model == "student" else self.teacher
        threat = self.threat.with_steps(self.schedule.utae_steps)
        adv_inputs = utae(attacked, inputs, teacher_probs, self.method.utae.gamma, threat, self.rng)
        self.student.train()
        clean = ikl(teacher_logits, self.student(inputs), weights).mean()
        adversarial = ikl(teacher_logits, self.student(adv_inputs), weights).mean()
        share = self.schedule.student.adversarial_weight
        self.optimiser.zero_grad()
        ((1 - share) * clean + share * adversarial).backward()
        self.optimiser.step()
        return torch.stack([clean, adversarial]).detach()
