"""The verdict of every attack on every test image, and the figures that derive from them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, assert_never

import torch
from torch import Tensor

from ferd.attacks import cross_entropy, fgsm, negative_margin, pgd, random_start
from ferd.config import Attack, EvaluationSettings, OtherBall, ThreatModel, fingerprint
from ferd.datasets import (
    Images,
    first_per_class,
    require_batches,
    require_every_class,
    require_known,
    shape_of,
)
from ferd.errors import FerdError
from ferd.fairness import nsd, per_class_accuracy, worst
from ferd.models.classifier import Classifier
from ferd.models.folding import attackable
from ferd.origin import origin_of_attacks, require_same
from ferd.pixels import to_float
from ferd.randomness import stream_seed
from ferd.tf32 import tf32_convolutions
from ferd.validity import ORDER, Checks, compare, inspect

AUTOATTACK_TARGETS = 9  # of the standard version, where there are so many other classes
PGD_STEPS = 20
CW_STEPS = 30


@dataclass(frozen=True)
class Trial:
    """One attack in one ball, and the indices of the test images that it is given."""

    attack: Attack
    threat: ThreatModel
    rows: Tensor


class Evaluation:
    """Correctness of each example under each attack; resumable between two batches.

    Attacks run on a twin with BatchNorm folded in; every verdict is the network's own. The network is moved
    to ``device``, laid out for speed and left in eval mode.
    Every batch has its own random numbers, so the order of work does not change a verdict.

    Attributes:
        trials: by name; an attack in a further ball of ε is ``attack@ε``, e.g. ``pgd20@0.0157``.
        verdicts: for each trial whether each of its images was still classified correctly, so
            far; the images are the first of every class, in order.

    Raises:
        FerdError: the network is none that can be attacked (``ferd.models.folding.attackable``), there are no
            images, or some of a class that it lacks; a trial's number of images cannot be split over the
            classes, two balls have one name, an attack's steps do not reach ε, there are too few classes for
            AutoAttack, or the network's outputs are unfit (``ferd.validity.inspect``).
    """

    def __init__(
        self,
        network: Classifier,
        data: Images,
        settings: EvaluationSettings,
        threat: ThreatModel,
        seed: int,
        device: torch.device | str,
    ) -> None:
        require_batches(data, settings.batch_size)
        if not len(data.labels):
            raise FerdError("no images to judge; raise the benchmark's data.*_per_class")
        self._twin = attackable(network, "network", shape_of(data), device)
        self.network, self.attacked = network, self._twin.network
        require_known(data.labels, network.classes)
        settings.require_fitting(network.classes)
        self.data, self.settings, self.threat = data, settings, threat
        self.seed, self.device = seed, torch.device(device)
        self.trials = self._trials()
        self.verdicts: dict[str, Tensor] = {name: torch.empty(0, dtype=torch.bool) for name in self.trials}
        self.zero_gradients = inspect(self.network, *self._batch(slice(settings.batch_size)))

    def batches(self) -> Iterator[tuple[str, int, int]]:
        """Judge what is left, by the network's present weights; after each batch (trial, judged, in all)."""
        self._twin.refresh()
        self.__dict__.pop("_origin", None)  # the weights may be others than before
        for name, trial in self.trials.items():
            total = len(trial.rows)
            while (done := len(self.verdicts[name])) < total:
                images, labels = self._batch(trial.rows[done : done + self.settings.batch_size])
                correct = self._judge(trial, images, labels, stream_seed(self.seed, name, done))
                self.verdicts[name] = torch.cat([self.verdicts[name], correct.cpu()])
                yield name, done + len(labels), total

    def figures(self) -> dict[str, dict[str, Any]]:
        """For each attack: n, average (over images), worst, nsd, per_class (fractions 0-1).

        ``all`` is correctness under every attack, clean images among them, on the images that all were given.

        Raises:
            FerdError: images are left to judge, or there are none of a class.
        """
        require_every_class(self.data.labels, self.network.classes)
        names = list(self.settings.attacks)
        survived = torch.stack(list(self.common(*names).values())).all(0)
        return {
            **{name: self._summary(self._finished(name), self.trials[name].rows) for name in names},
            "all": self._summary(survived, self._common_rows(*names)),
        }

    def other_balls(self) -> list[dict[str, Any]]:
        """For each further ball its threat model, and the figures of each attack in it.

        Raises:
            FerdError: there are images that no verdict is there for yet; so do ``checks`` and ``common``.
        """
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

    def state_dict(self) -> dict[str, Any]:
        """The verdicts so far, and what they are of."""
        return {"origin": self._origin, "verdicts": dict(self.verdicts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken.

        Raises:
            FerdError: the state is of another network, other images, attacks or random numbers; nothing of it
                was taken.
        """
        require_same(state.get("origin"), self._origin)
        self.verdicts = dict(state["verdicts"])

    @cached_property
    def _origin(self) -> dict[str, str]:
        attacks = fingerprint(self.settings.attacks, [*self.trials], self.threat)
        batch_size = self.settings.batch_size
        return {"attacks": attacks} | origin_of_attacks(self.network, self.data, self.seed, batch_size)

    def _trials(self) -> dict[str, Trial]:
        labels, classes = self.data.labels, self.network.classes
        trials: dict[str, Trial] = {
            attack: Trial(attack, self.threat, _rows(labels, number, classes))
            for attack, number in self.settings.attacks.items()
        }
        for ball in self.settings.other_balls:
            for attack, number in ball.attacks.items():
                name = _name(attack, ball)
                if name in trials:
                    raise FerdError(f"evaluation.other_balls: {name} stands there twice; remove one of them")
                trials[name] = Trial(attack, self._ball(ball), _rows(labels, number, classes))
        for name, trial in trials.items():
            steps = {"pgd20": PGD_STEPS, "cw30": CW_STEPS}.get(trial.attack, 0)
            if steps and steps * trial.threat.step_size < trial.threat.epsilon:
                raise FerdError(
                    f"{name}: {steps} steps of {trial.threat.step_size} stay within ε = "
                    f"{trial.threat.epsilon}, which would look like robustness; raise step_size"
                )
        return trials

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
    def _judge(self, trial: Trial, images: Tensor, labels: Tensor, batch_seed: int) -> Tensor:
        adv_images = self._attack(trial, images, labels, batch_seed)
        with torch.no_grad():
            predicted: Tensor = self.network(adv_images).argmax(1)
        return predicted == labels

    def _attack(self, trial: Trial, images: Tensor, labels: Tensor, batch_seed: int) -> Tensor:
        threat = trial.threat
        match trial.attack:
            case "clean":
                return images
            case "fgsm":
                return fgsm(self.attacked, images, labels, threat.epsilon)
            case "autoattack":
                return _autoattack(self.attacked, images, labels, threat.epsilon, batch_seed)
            case "pgd20":
                objective, steps = cross_entropy(labels), PGD_STEPS
            case "cw30":
                objective, steps = negative_margin(labels), CW_STEPS
            case _:
                assert_never(trial.attack)
        rng = torch.Generator(self.device).manual_seed(batch_seed)
        start = random_start(images, threat.epsilon, rng)
        return pgd(self.attacked, images, objective, threat.with_steps(steps), start)


def _name(attack: str, ball: OtherBall) -> str:
    return f"{attack}@{ball.epsilon:.3g}"


def _rows(labels: Tensor, number: Literal["all"] | int, classes: int) -> Tensor:
    """All rows, or those of the first ``number``/C images of each class."""
    if number == "all":
        return torch.arange(len(labels))
    return first_per_class(labels, 0, number // classes, "evaluation.attacks")


def _autoattack(network: Classifier, images: Tensor, labels: Tensor, epsilon: float, seed: int) -> Tensor:
    """AutoAttack, standard version (Croce and Hein 2020), by the authors' own package.

    Of fewer than 10 classes its targeted parts take all others as targets, where the package asks for 9.
    """
    from pyautoattack import AutoAttack

    with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        attack = AutoAttack(
            network,
            norm="Linf",
            eps=epsilon,
            seed=seed,
            version="standard",
            device=images.device,
        )
        for part in (attack.apgd_targeted, attack.fab):
            part.n_target_classes = min(AUTOATTACK_TARGETS, network.classes - 1)
        adv_images, _ = attack.run_standard_evaluation(images, labels, batch_size=len(images))
    return torch.as_tensor(adv_images)
