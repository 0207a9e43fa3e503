"""The attacks of an evaluation, by name; one of one's own is a function of the same arguments.

``attack(network, images, labels, threat, rng)`` turns images (B, channels, H, W) in [0, 1] into adversarial
ones of the same shape, within ε and [0, 1]; labels (B,). The network is a twin of the one that is judged, the
same function, in eval mode. The random numbers are the batch's own, on the images' device.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor

from ferd.attacks import Objective, cross_entropy, fgsm, negative_margin, pgd, random_start
from ferd.config import Attack, ThreatModel
from ferd.cuda_graphs import algorithms_tried
from ferd.errors import FerdError
from ferd.models.classifier import Classifier
from ferd.pixels import kind_of

ImageAttack = Callable[[Classifier, Tensor, Tensor, ThreatModel, torch.Generator], Tensor]
AUTOATTACK_TARGETS = 9  # of the standard version, where there are so many other classes
PGD_STEPS = 20
CW_STEPS = 30
ROUNDING = 1e-5  # an adversarial image may leave the ball by so much of the pixels' range


@dataclass(frozen=True)
class OwnAttack:
    """An attack that is not among ``ATTACKS``, and how many images it is given: ``all``, or a number."""

    attack: ImageAttack
    images: Literal["all"] | int = "all"


@dataclass(frozen=True)
class ManySteps:
    """PGD on a loss, from a random start, by the threat model's step size."""

    loss: Callable[[Tensor], Objective]
    steps: int

    @algorithms_tried()
    def __call__(
        self, network: Classifier, images: Tensor, labels: Tensor, threat: ThreatModel, rng: torch.Generator
    ) -> Tensor:
        """The attack."""
        start = random_start(images, threat.epsilon, rng)
        return pgd(network, images, self.loss(labels), threat.with_steps(self.steps), start)

    def require_reaching(self, threat: ThreatModel, name: str) -> None:
        """Refuse steps that cannot reach the edge of the ball, which would look like robustness.

        Raises:
            FerdError: all of them together are below ε.
        """
        if not threat.reached_by(self.steps):
            raise FerdError(
                f"{name}: {self.steps} steps of {threat.step_size} stay within ε = {threat.epsilon}, which "
                "would look like robustness; raise step_size"
            )


def no_attack(
    _network: Classifier, images: Tensor, _labels: Tensor, _threat: ThreatModel, _rng: torch.Generator
) -> Tensor:
    """The images as they are."""
    return images


def one_step(
    network: Classifier, images: Tensor, labels: Tensor, threat: ThreatModel, _rng: torch.Generator
) -> Tensor:
    """FGSM."""
    return fgsm(network, images, labels, threat.epsilon)


def autoattack(
    network: Classifier, images: Tensor, labels: Tensor, threat: ThreatModel, rng: torch.Generator
) -> Tensor:
    """AutoAttack, standard version (Croce and Hein 2020), by the authors' own package.

    Of fewer than 10 classes its targeted parts take all others as targets, where the package asks for 9.
    """
    from pyautoattack import AutoAttack

    with _tracing_kept(), torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        attack = AutoAttack(
            network,
            norm="Linf",
            eps=threat.epsilon,
            seed=rng.initial_seed(),
            version="standard",
            device=images.device,
        )
        for part in (attack.apgd_targeted, attack.fab):
            part.n_target_classes = min(AUTOATTACK_TARGETS, network.classes - 1)
        adv_images, _ = attack.run_standard_evaluation(images, labels, batch_size=len(images))
    return torch.as_tensor(adv_images)


@contextmanager
def _tracing_kept() -> Iterator[None]:
    """A debugger's or coverage's, which the package takes off."""
    before = sys.gettrace()
    try:
        yield
    finally:
        sys.settrace(before)


ATTACKS: Mapping[Attack, ImageAttack] = {
    "clean": no_attack,
    "fgsm": one_step,
    "pgd20": ManySteps(cross_entropy, PGD_STEPS),
    "cw30": ManySteps(negative_margin, CW_STEPS),
    "autoattack": autoattack,
}


def described(attack: object) -> list[Any]:
    """Its name, and what it, or the object that it is a method of, holds, encloses or has as defaults.

    Of numbers and words themselves, of functions the name. Whatever else it depends on is not seen.
    """
    named = attack if hasattr(attack, "__qualname__") else type(attack)
    held: list[tuple[Any, Any]] = [*getattr(attack, "__dict__", {}).items()]
    if isinstance(attack, MethodType):
        held += [(f"self.{key}", value) for key, value in getattr(attack.__self__, "__dict__", {}).items()]
    held += [
        (f"default {place}", value) for place, value in enumerate(getattr(attack, "__defaults__", None) or ())
    ]
    held += (getattr(attack, "__kwdefaults__", None) or {}).items()
    if isinstance(attack, partial):
        held += [("func", attack.func), *enumerate(attack.args), *attack.keywords.items()]
    held += enumerate(cell.cell_contents for cell in getattr(attack, "__closure__", None) or ())
    seen = {
        str(key): value if isinstance(value, int | float | str) else getattr(value, "__qualname__", "")
        for key, value in held
    }
    return [named.__module__, named.__qualname__, seen]


def require_within(adv_images: Tensor, images: Tensor, epsilon: float, name: str) -> None:
    """Refuse what is no adversarial example of the images (B, channels, H, W).

    Raises:
        FerdError: of another shape, type or device, or outside the ball or [0, 1], or no number.
    """
    if kind_of(adv_images) != kind_of(images):
        raise FerdError(
            f"{name}: the attack must give {kind_of(images)}, like its images, not {kind_of(adv_images)}"
        )
    within = (adv_images - images).abs() <= epsilon + ROUNDING
    within &= (adv_images >= -ROUNDING) & (adv_images <= 1 + ROUNDING)
    if not within.all():
        raise FerdError(
            f"{name}: the attack leaves the ε-ball of {epsilon:.4g} or [0, 1]; project its images"
        )
