"""The verdict of every attack on every test image, and the figures that derive from them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from ferd.attack_pass import AttackPass
from ferd.config import (
    EvaluationSettings,
    OtherBall,
    ThreatModel,
    fingerprint,
    require_even,
    require_settings,
)
from ferd.datasets import (
    Images,
    first_per_class,
    require_every_class,
)
from ferd.errors import FerdError
from ferd.evaluation_attacks import (
    ATTACKS,
    ImageAttack,
    ManySteps,
    OwnAttack,
    described,
    require_within,
)
from ferd.fairness import nsd, per_class_accuracy, worst
from ferd.models.classifier import Classifier
from ferd.origin import hash_of_weights
from ferd.pixels import to_float
from ferd.randomness import stream_seed
from ferd.tf32 import tf32_convolutions
from ferd.validity import ORDER, Checks, compare, inspect

TAKEN = ("all", *ATTACKS)  # no names of attacks of one's own


@dataclass(frozen=True)
class Trial:
    """One attack in one ball, and the indices of the test images that it is given."""

    attack: ImageAttack
    threat: ThreatModel
    rows: Tensor


class Evaluation(AttackPass):
    """Correctness of each example under each attack; resumable between two batches.

    Attacks run on a twin with BatchNorm folded in; every verdict is the network's own. The network is moved
    to ``device``, laid out for speed and left in eval mode.
    Every batch has its own random numbers, so the order of work does not change a verdict.

    Args:
        own_attacks: attacks that ``settings`` has no name for, by a name of one's own. They are in
            ``figures``, and count for its ``all``.

    Attributes:
        trials: by name; an attack in a further ball of ε is ``attack@ε``, e.g. ``pgd20@0.0157``.
        verdicts: for each trial whether each of its images was still classified correctly, so
            far; the images are the first of every class, in order.

    Raises:
        FerdError: the network is none that can be attacked (``ferd.models.folding.attackable``), there are no
            images, or some of a class that it lacks; a trial's number of images cannot be split over the
            classes, two balls have one name, an attack's steps do not reach ε, there are too few classes for
            AutoAttack, an attack of one's own has the name of another, or the network's outputs are unfit
            (``ferd.validity.inspect``).
    """

    def __init__(
        self,
        network: Classifier,
        data: Images,
        settings: EvaluationSettings,
        threat: ThreatModel,
        seed: int,
        device: torch.device | str,
        own_attacks: Mapping[str, OwnAttack] = MappingProxyType({}),
    ) -> None:
        require_settings((settings, EvaluationSettings), (threat, ThreatModel))
        super().__init__(network, "network", data, settings.batch_size, seed, device)
        settings.require_fitting(network.classes)
        self.network, self.settings, self.threat, self.own_attacks = network, settings, threat, own_attacks
        self.trials = self._trials()
        self.verdicts: dict[str, Tensor] = {name: torch.empty(0, dtype=torch.bool) for name in self.trials}
        self._inspect()

    def batches(self) -> Iterator[tuple[str, int, int]]:
        """Judge what is left, by the network's present weights; after each batch (trial, judged, in all).

        Raises:
            FerdError: what an attack gave is no adversarial example, the weights are others than those that
                there are verdicts of, or the twin does not follow the network (``Folded``).
        """
        self._begin()
        if hash_of_weights(self.network) != self._inspected:
            self._inspect()
        for name, trial in self.trials.items():
            total = len(trial.rows)
            while (done := len(self.verdicts[name])) < total:
                images, labels = self._batch(trial.rows[done : done + self.settings.batch_size])
                rng = torch.Generator(self.device).manual_seed(stream_seed(self.seed, name, done))
                correct = self._judge(name, images, labels, rng)
                self.verdicts[name] = torch.cat([self.verdicts[name], correct.cpu()])
                yield name, done + len(labels), total

    def figures(self) -> dict[str, dict[str, Any]]:
        """For each attack: n, average (over images), worst, nsd, per_class (fractions 0-1).

        ``all`` is correctness under every attack that was asked for (``clean`` is one), on the images that
        all were given.

        Raises:
            FerdError: images are left to judge, or there are none of a class.
        """
        require_every_class(self.data.labels, self.network.classes)
        names = [*self.settings.attacks, *self.own_attacks]
        survived = torch.stack(list(self.common(*names).values())).all(0)
        return {
            **{name: self._summary(self._finished(name), self.trials[name].rows) for name in names},
            "all": self._summary(survived, self._common_rows(*names)),
        }

    def other_balls(self) -> list[dict[str, Any]]:
        """For each further ball its threat model, and the figures of each attack in it.

        Raises:
            FerdError: images are left to judge (so say ``checks`` and ``common``), or there are none of a
                class.
        """
        require_every_class(self.data.labels, self.network.classes)
        return [
            {
                "threat_model": self._ball(ball).model_dump(),
                "attacks": {
                    attack: self._summary(self._finished(name), self.trials[name].rows)
                    for attack in ball.attacks
                    for name in [_name(attack, ball)]
                },
            }
            for ball in self.settings.other_balls
        ]

    def checks(self) -> Checks:
        """What speaks against the figures (``ferd.validity``)."""
        compared = [
            compare(weaker, stronger, *self.common(weaker, stronger).values())
            for weaker, stronger in ORDER
            if weaker in self.trials and stronger in self.trials
        ]
        return Checks(self.network.classes, self.zero_gradients, tuple(compared))

    def common(self, *names: str) -> dict[str, Tensor]:
        """The verdicts of some trials on the images that all of them were given, row by row the same."""
        rows = self._common_rows(*names)
        return {name: self._finished(name)[torch.isin(self.trials[name].rows, rows)] for name in names}

    def _inspect(self) -> None:
        """Look at the outputs and gradients of the present weights, before they are attacked."""
        self.zero_gradients = inspect(self.network, *self._batch(slice(self.settings.batch_size)))
        self._inspected = hash_of_weights(self.network)

    def _results(self) -> dict[str, Any]:
        return {"verdicts": dict(self.verdicts)}

    def _take(self, state: Mapping[str, Any]) -> None:
        self.verdicts = dict(state["verdicts"])

    def _origin(self) -> dict[str, str]:
        own = {name: described(own.attack) for name, own in self.own_attacks.items()}
        numbers = {name: len(trial.rows) for name, trial in self.trials.items()}
        attacks = fingerprint(numbers, own, self.threat, *self.settings.other_balls)
        return {"attacks": attacks} | super()._origin()

    def _trials(self) -> dict[str, Trial]:
        trials: dict[str, Trial] = {
            attack: self._trial(attack, ATTACKS[attack], self.threat, number)
            for attack, number in self.settings.attacks.items()
        }
        for name, own in self.own_attacks.items():
            if not isinstance(own, OwnAttack):
                raise FerdError(f"own_attacks: {name}: is a {type(own).__name__}; give OwnAttack(it)")
            if name in TAKEN or "@" in name:
                raise FerdError(f"own_attacks: {name!r} is taken, or has an @ in it; give it another name")
            require_even(own.images, self.network.classes, f"own_attacks: {name}")
            trials[name] = self._trial(name, own.attack, self.threat, own.images)
        for ball in self.settings.other_balls:
            for attack, number in ball.attacks.items():
                name = _name(attack, ball)
                if name in trials:
                    raise FerdError(f"evaluation.other_balls: {name} stands there twice; remove one of them")
                trials[name] = self._trial(name, ATTACKS[attack], self._ball(ball), number)
        return trials

    def _trial(
        self, name: str, attack: ImageAttack, threat: ThreatModel, number: Literal["all"] | int
    ) -> Trial:
        if isinstance(attack, ManySteps):
            attack.require_reaching(threat, name)
        return Trial(attack, threat, _rows(self.data.labels, number, self.network.classes, name))

    def _ball(self, ball: OtherBall) -> ThreatModel:
        return self.threat.model_copy(update={"epsilon": ball.epsilon, "step_size": ball.step_size})

    def _batch(self, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Images (B, channels, H, W) in [0, 1] and labels (B,), on the device."""
        return to_float(self.data.images[rows].to(self.device)), self.data.labels[rows].to(self.device)

    def _finished(self, name: str) -> Tensor:
        """The verdicts of a trial, on all of its images."""
        verdicts, total = self.verdicts[name], len(self.trials[name].rows)
        if len(verdicts) < total:
            raise FerdError(
                f"{name}: {len(verdicts)} of {total} images are judged; go through batches() first"
            )
        return verdicts

    def _common_rows(self, *names: str) -> Tensor:
        """The rows of the smallest trial: the others' hold them all."""
        return min((self.trials[name].rows for name in names), key=len)

    def _summary(self, correct: Tensor, rows: Tensor) -> dict[str, Any]:
        per_class = per_class_accuracy(correct, self.data.labels[rows], self.network.classes)
        return {
            "n": len(rows),
            "average": correct.double().mean().item(),
            "worst": worst(per_class),
            "nsd": nsd(per_class),
            "per_class": per_class.tolist(),
        }

    @tf32_convolutions(False)
    def _judge(self, name: str, images: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
        trial = self.trials[name]
        adv_images = trial.attack(self.attacked, images.clone(), labels.clone(), trial.threat, rng)
        require_within(adv_images, images, trial.threat.epsilon, name)
        with torch.no_grad():
            predicted: Tensor = self.network(adv_images).argmax(1)
        return predicted == labels


def _name(attack: str, ball: OtherBall) -> str:
    return f"{attack}@{ball.epsilon:.3g}"


def _rows(labels: Tensor, number: Literal["all"] | int, classes: int, trial: str) -> Tensor:
    """All rows, or those of the first ``number``/C images of each class."""
    if number == "all":
        return torch.arange(len(labels))
    return first_per_class(labels, 0, number // classes, f"the number of images of {trial}")
