"""Where uniform-target adversarial examples end up: what Eq. 10 claims, looked at on real images."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ferd.attack_pass import AttackPass
from ferd.attacks import utae
from ferd.config import ThreatModel, fingerprint
from ferd.datasets import Images
from ferd.errors import FerdError
from ferd.fairness import normalised_entropy
from ferd.losses import kl_from_uniform
from ferd.models.classifier import Classifier, fast_layout, require_classifier
from ferd.origin import hash_of_weights
from ferd.pixels import to_float
from ferd.randomness import stream
from ferd.tf32 import tf32_convolutions


class UtaeOutcomes(AttackPass):
    """The student's predictions on UTAEs of the same images, for several γ; resumable between two batches.

    x' = UTAE of x on the student's folded twin with target q = σ(f^T(x)) (Eq. 10; γ = 0: plain KL-PGD);
    predictions are the student's own. A batch starts from the same noise for every γ. Both networks are moved
    to ``device``, laid out for speed and left in eval mode.

    Args:
        threat: the ball, and the steps of each attack.

    Attributes:
        clean: (n,) the student's predictions on the images themselves; none before the first batch.
        predicted: for each γ the class that each image ended in, so far.
        divergences: for each γ KL(U ‖ f^S(x')) of each image, so far.

    Raises:
        FerdError: the student is none that can be attacked (``ferd.models.folding.attackable``), the teacher
            no ``Classifier`` of as many classes and channels, a γ not 0 or more, ``data`` no ``Images`` of
            these, or none, or ``batch_size`` not 1 or more.
    """

    def __init__(
        self,
        student: Classifier,
        teacher: Classifier,
        data: Images,
        gammas: Sequence[float],
        threat: ThreatModel,
        batch_size: int,
        seed: int,
        device: torch.device | str,
    ) -> None:
        super().__init__(student, "student", data, batch_size, seed, device)
        require_classifier(teacher, "teacher")
        for what in ("classes", "channels"):
            theirs, own = getattr(teacher, what), getattr(student, what)
            if theirs != own:
                raise FerdError(f"the student has {own} {what}, the teacher {theirs}")
        self.student, self.teacher = student, fast_layout(teacher, self.device).eval()
        if wrong := [gamma for gamma in gammas if not gamma >= 0]:
            raise FerdError(f"gamma {wrong[0]}: must be 0 or more")
        self.gammas, self.threat = gammas, threat
        self.clean = torch.empty(0, dtype=torch.int64)
        self.predicted = [torch.empty(0, dtype=torch.int64) for _ in gammas]
        self.divergences = [torch.empty(0) for _ in gammas]

    def batches(self) -> Iterator[tuple[int, int]]:
        """Attack what is left, by the present weights; after each batch (attacked, in all), over all γ.

        Raises:
            FerdError: the weights are others than those that there are results of, or the twin does not
                follow the student (``Folded``).
        """
        self._begin()
        self.teacher.eval()
        total = len(self.data.labels)
        if len(self.clean) < total:
            self.clean = self._predict_clean()
        for index, gamma in enumerate(self.gammas):
            while (done := len(self.predicted[index])) < total:
                rows = slice(done, done + self.batch_size)
                images = to_float(self.data.images[rows].to(self.device))
                rng = stream(self.seed, "utae-outcomes", done, device=self.device)  # the same for every γ
                logits = self._attack(images, gamma, rng).cpu()
                self.predicted[index] = torch.cat([self.predicted[index], logits.argmax(1)])
                self.divergences[index] = torch.cat([self.divergences[index], kl_from_uniform(logits)])
                yield index * total + len(self.predicted[index]), len(self.gammas) * total

    def figures(self) -> list[dict[str, Any]]:
        """For each γ what became of the images.

        Returns:
            ``counts`` (source × predicted); ``distribution`` of the predicted classes (C,) and its
            ``entropy`` over log C; ``fooled``: the images that were right and no longer are, and
            ``same_end`` the chance that two of them, of one class, ended in the same class
            (``collision_probability``); ``kl_from_uniform``: the mean KL(U ‖ σ(f(x'))); ``correct``: the
            share that still is.

        Raises:
            FerdError: images are left to attack.
        """
        if any(len(predicted) < len(self.data.labels) for predicted in self.predicted):
            raise FerdError("not all images are attacked; go through batches() first")
        return [
            {"gamma": gamma, **self._summary(predicted, divergence)}
            for gamma, predicted, divergence in zip(
                self.gammas, self.predicted, self.divergences, strict=True
            )
        ]

    def _results(self) -> dict[str, Any]:
        return {
            "clean": [self.clean],
            "predicted": list(self.predicted),
            "divergences": list(self.divergences),
        }

    def _take(self, state: Mapping[str, Any]) -> None:
        [self.clean] = state["clean"]
        self.predicted, self.divergences = list(state["predicted"]), list(state["divergences"])

    def _origin(self) -> dict[str, str]:
        own = {
            "teacher weights": hash_of_weights(self.teacher),
            "γ": fingerprint(list(self.gammas)),
            "threat model": fingerprint(self.threat),
        }
        return own | super()._origin()

    @torch.no_grad()
    @tf32_convolutions(False)
    def _predict_clean(self) -> Tensor:
        batches = self.data.images.split(self.batch_size)
        return torch.cat([self.student(to_float(batch.to(self.device))).argmax(1).cpu() for batch in batches])

    @tf32_convolutions(False)
    def _attack(self, images: Tensor, gamma: float, rng: torch.Generator) -> Tensor:
        """Logits of the student (B, C) on the UTAEs."""
        with torch.no_grad():
            clean_probs = self.teacher(images).softmax(1)
        adv_images = utae(self.attacked, images, clean_probs, gamma, self.threat, rng)
        with torch.no_grad():
            logits: Tensor = self.student(adv_images)
        return logits

    def _summary(self, predicted: Tensor, divergence: Tensor) -> dict[str, Any]:
        labels = self.data.labels
        counts = self._count(labels, predicted)
        fooled = (self.clean == labels) & (predicted != labels)
        return {
            "n": len(predicted),
            "counts": counts.tolist(),
            "distribution": (counts.sum(0).double() / counts.sum()).tolist(),
            "entropy": normalised_entropy(counts.sum(0)),
            "fooled": int(fooled.sum()),
            "same_end": collision_probability(self._count(labels[fooled], predicted[fooled])),
            "kl_from_uniform": divergence.double().mean().item(),
            "correct": (counts.trace() / counts.sum()).item(),
        }

    def _count(self, labels: Tensor, predicted: Tensor) -> Tensor:
        """(source × predicted), the number of images."""
        counts = torch.zeros(self.student.classes, self.student.classes, dtype=torch.int64)
        return counts.index_put_((labels, predicted), torch.tensor(1), accumulate=True)


def collision_probability(counts: Tensor) -> float | None:
    """Σ n_st(n_st − 1) / Σ n_s(n_s − 1), n_s = Σ_t n_st; (source × end) -> 0 ... 1, or None.

    The chance that two images drawn from one source ended in the same class: 1/ends is expected of even ends,
    1 of one end. Without bias however few there are (Simpson 1949), which the entropy of so few is not; None
    where no source has two.
    """
    of_source = counts.sum(1)
    pairs = (of_source * (of_source - 1)).sum()
    return ((counts * (counts - 1)).sum() / pairs).item() if pairs else None
