"""Where a round's images come from: a fitted generator, a control, or another method's pool."""

import logging
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

from ferd.config import Augmentation, DistillationSettings, Method
from ferd.datasets import Images, require_known, shape_of
from ferd.errors import FerdError, no_such
from ferd.models.classifier import Classifier, fast_layout
from ferd.models.generator import Generator
from ferd.pixels import kind_of, to_float, to_uint8
from ferd.pool import Pool
from ferd.randomness import with_weights_of
from ferd.synthesis import SynthesisLoss, dfhl_rs_loss, ferd_loss, synthesise
from ferd.tf32 import tf32_convolutions

LOGGER = logging.getLogger(__name__)
Drawn = tuple[Tensor, Tensor, dict[str, Tensor]]


class ImageSource(ABC):
    """Gives each round its images.

    Attributes:
        recordable: False where the synthesis loss branches on a tensor's value or copies it to the host; a
            GPU records its steps (``ferd.cuda_graphs``).
    """

    recordable = True

    @abstractmethod
    def draw(self, shares: Tensor, number: int, rng: torch.Generator) -> Drawn:
        """Images (B, channels, H, W) uint8, labels (B,), and the loss terms of a generator (()).

        Args:
            shares: p (C,), the class proportions asked for.
            number: of the round, from 0.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """What later rounds depend on."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:  # noqa: B027
        """Go on where ``state_dict`` was taken."""


class FittedGenerator(ImageSource):
    """The data-free methods: a generator is fitted each round to the method's synthesis loss.

    Each round draws its weights anew, as FERD does; those of DFHL-RS go on over all rounds, as in its code.

    Args:
        teacher: as it is, since L_bn looks at the inputs of its BatchNorm layers.
        student: a twin that follows the student's weights.
        bf16: whether the networks run under autocast, DFHL-RS's student aside; losses are float32 always.
    """

    def __init__(
        self,
        teacher: Classifier,
        student: Classifier,
        shape: tuple[int, int, int],
        schedule: DistillationSettings,
        augmentation: Augmentation,
        method: Method,
        device: torch.device,
        bf16: bool,
    ) -> None:
        self.teacher, self.student, self.bf16 = teacher, student, bf16
        self.schedule, self.augmentation, self.method = schedule, augmentation, method
        self.generator = _generator(schedule.synthesis.latent_dim, shape, device)

    def draw(self, shares: Tensor, number: int, rng: torch.Generator) -> Drawn:
        """Labels by p, then images for them."""
        labels = torch.multinomial(shares, self.schedule.batch_size, replacement=True, generator=rng)
        autocast = self.bf16 and self.method.synthesis != "dfhl-rs"
        # the generator stays float32 beside bfloat16 networks
        with self.loss(labels, number, rng) as loss, tf32_convolutions(autocast):
            settings = self.schedule.synthesis
            anew = number == 0 or not self._goes_on
            result = synthesise(
                loss,
                self.generator,
                labels,
                settings,
                self.augmentation,
                rng,
                anew=anew,
                recordable=self.recordable,
            )
        _warn_of_a_useless_mask(result.figures, number)
        return to_uint8(result.images), labels, result.figures

    @property
    def _goes_on(self) -> bool:
        return self.method.synthesis == "dfhl-rs"

    def state_dict(self) -> dict[str, Tensor]:
        """The generator, where it goes on."""
        return self.generator.state_dict() if self._goes_on else {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on with it."""
        if self._goes_on:
            self.generator.load_state_dict(state)

    def loss(
        self, labels: Tensor, number: int, rng: torch.Generator
    ) -> AbstractContextManager[SynthesisLoss]:
        """The method's synthesis loss in round ``number``, for images of ``labels`` (B,)."""
        match self.method.synthesis:
            case "dfhl-rs":
                return dfhl_rs_loss(self.student, labels)
            case "plain":
                nonrobust = None
            case "fae":
                nonrobust = self.method.nonrobust
            case _:
                no_such("synthesis", self.method.synthesis)
        student = self.student if number > self.schedule.warmup_rounds else None
        return ferd_loss(self.teacher, student, labels, nonrobust, self.schedule.synthesis, rng, self.bf16)


class UniformNoise(ImageSource):
    """The control of independent uniform pixels, labelled by the teacher."""

    def __init__(self, teacher: Classifier, shape: tuple[int, int, int], batch_size: int) -> None:
        self.teacher, self.size = teacher, (batch_size, *shape)

    def draw(self, shares: Tensor, number: int, rng: torch.Generator) -> Drawn:
        """p plays no part."""
        images = to_uint8(torch.rand(self.size, generator=rng, device=rng.device))
        return images, _predicted(self.teacher, images), {}


class UntrainedGenerator(ImageSource):
    """The control of a generator that is drawn anew each round and never fitted, labelled by the teacher."""

    def __init__(
        self,
        teacher: Classifier,
        shape: tuple[int, int, int],
        schedule: DistillationSettings,
        device: torch.device,
    ) -> None:
        self.teacher = teacher
        self.size = (schedule.batch_size, schedule.synthesis.latent_dim)
        self.generator = _generator(self.size[1], shape, device)

    def draw(self, shares: Tensor, number: int, rng: torch.Generator) -> Drawn:
        """p plays no part."""
        latents = torch.empty(self.size, device=rng.device)
        self.generator.reinitialise(rng)
        with torch.no_grad():
            images = to_uint8(self.generator.train()(latents.normal_(generator=rng)))
        return images, _predicted(self.teacher, images), {}


class RealImages(ImageSource):
    """The control of real training images (N, channels, H, W) uint8 with labels (N,).

    Raises:
        FerdError: they are fewer than a round synthesises.
    """

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int) -> None:
        if len(images) < batch_size:
            raise FerdError(
                f"{len(images)} training images where a round takes {batch_size}; raise data.train_per_class "
                "or lower distillation.batch_size"
            )
        self.images, self.labels, self.batch_size = images, labels, batch_size

    def draw(self, shares: Tensor, number: int, rng: torch.Generator) -> Drawn:
        """As many as a round synthesises, without replacement within the round."""
        rows = torch.randperm(len(self.images), generator=rng, device=rng.device)
        rows = rows[: self.batch_size].to(self.images.device)
        return self.images[rows].to(rng.device), self.labels[rows].to(rng.device), {}


class ReplayedPool(ImageSource):
    """Another method's finished pool, round by round as it grew: only the student's part differs."""

    def __init__(self, pool: Pool, rounds: int, batch_size: int) -> None:
        if pool.size != rounds * batch_size:
            raise FerdError(
                f"{pool.folder}: holds {pool.size} images where {rounds} rounds of {batch_size} are "
                "replayed; run the method that makes it with the same schedule"
            )
        self.pool, self.batch_size = pool, batch_size

    def draw(self, shares: Tensor, number: int, rng: torch.Generator) -> Drawn:
        """The images of that round."""
        rows = slice(number * self.batch_size, (number + 1) * self.batch_size)
        return self.pool.images[rows], self.pool.labels[rows], {}


def build_source(
    method: Method,
    schedule: DistillationSettings,
    augmentation: Augmentation,
    shape: tuple[int, int, int],
    device: torch.device,
    given: tuple[Tensor, Tensor] | Path | str | None,
    *,
    teacher: Classifier,
    teacher_twin: Classifier,
    student_twin: Classifier,
    bf16: bool,
) -> ImageSource:
    """The image source that a method names.

    Args:
        given: what a method that does not make its own images takes, as ``ferd.distillation.Distillation``.
        teacher, teacher_twin: as it is, for L_bn, and with BatchNorm folded in, to label a control's images.

    Raises:
        FerdError: what is given does not fit, or is not what the method needs.
    """
    batch = schedule.batch_size
    match method.images:
        case "real-data":
            if not isinstance(given, tuple):
                raise FerdError(
                    f"real-data is given Images or a tuple (images, labels), not {kind_of(given)}"
                )
            real = Images(*given)
            require_known(real.labels, teacher.classes)
            if shape_of(real) != tuple(shape):
                raise FerdError(f"real-data is given images of {shape_of(real)}, not {tuple(shape)}")
            return RealImages(real.images, real.labels, batch)
        case "pool-of-ferd" | "pool-of-no-reweighting":
            if not isinstance(given, Path | str):
                raise FerdError(f"{method.images} is given the folder of that pool")
            finished = Pool(Path(given), schedule.rounds * batch, shape, device, grows=False)
            return ReplayedPool(finished, schedule.rounds, batch)
    if given is not None:
        raise FerdError(f"{method.images} makes its own images and is given none")
    match method.images:
        case "uniform-noise":
            return UniformNoise(teacher_twin, shape, batch)
        case "untrained-generator":
            return UntrainedGenerator(teacher_twin, shape, schedule, device)
        case "generator":
            return FittedGenerator(teacher, student_twin, shape, schedule, augmentation, method, device, bf16)
    return no_such("images", method.images)


def _generator(latent_dim: int, shape: tuple[int, int, int], device: torch.device) -> Generator:
    """Its first weights, which round 0 replaces, take nothing from anybody's random numbers."""
    return fast_layout(with_weights_of(0, lambda: Generator(latent_dim, shape[0], shape[1])), device)


@torch.no_grad()
def _predicted(teacher: Classifier, images: Tensor) -> Tensor:
    logits: Tensor = teacher(to_float(images))
    return logits.argmax(1)


def _warn_of_a_useless_mask(figures: dict[str, Tensor], number: int) -> None:
    if "robust_fraction" in figures and not 0.01 <= (share := figures["robust_fraction"].item()) <= 0.99:
        LOGGER.warning(
            "round %d: %.1f %% of the channels are robust, so that L_uni sees all or nothing; try "
            "another bottleneck.threshold",
            number + 1,
            100 * share,
        )
