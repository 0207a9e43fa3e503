"""An adversary that picks the class an image is turned into, and so finds the weak classes."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ferd.attack_pass import AttackPass
from ferd.attacks import pgd, random_start, toward
from ferd.config import ThreatModel, fingerprint
from ferd.datasets import Images, require_every_class
from ferd.errors import FerdError
from ferd.fairness import nsd, worst, worst_count
from ferd.models.classifier import Classifier
from ferd.pixels import to_float
from ferd.randomness import stream
from ferd.tf32 import tf32_convolutions

MOST_TARGETS = 9  # an image; all other classes where C <= 10
PAIRS = 10  # of the matrix, that are listed


class AdaptiveAdversary(AttackPass):
    """Targeted PGD of each image toward each of its targets; resumable between two batches.

    An image's targets are the min(C, 10) − 1 classes, other than its own, of the highest clean logits:
    all of them where C <= 10. Attacks run on a twin with BatchNorm folded in; every verdict is the
    network's own. Every batch has its own random numbers. The network is moved to ``device``, laid out for
    speed and left in eval mode.

    Args:
        data: the images that are attacked, of all classes; of some, where ``figures`` is not asked for.
        threat: the ball, and the steps of each attack.

    Attributes:
        clean: (n,) the network's predictions on the images attacked so far.
        targets: (n, T) their targets, most likely first.
        outcomes: (n, T) the class that each attack ended in.

    Raises:
        FerdError: the network is none that can be attacked (``ferd.models.folding.attackable``), ``data`` no
            ``Images`` of its classes or none, or ``batch_size`` not 1 or more.
    """

    def __init__(
        self,
        network: Classifier,
        data: Images,
        threat: ThreatModel,
        batch_size: int,
        seed: int,
        device: torch.device | str,
    ) -> None:
        super().__init__(network, "network", data, batch_size, seed, device)
        self.network, self.threat = network, threat
        self.targets_per_image = min(network.classes - 1, MOST_TARGETS)
        self.clean = torch.empty(0, dtype=torch.int64)
        self.targets = torch.empty((0, self.targets_per_image), dtype=torch.int64)
        self.outcomes = self.targets

    def batches(self) -> Iterator[tuple[int, int]]:
        """Attack what is left, by the present weights; after each batch (images attacked, images in all).

        Raises:
            FerdError: the weights are others than those that there are results of, or the twin does not
                follow the network (``Folded``).
        """
        self._begin()
        total = len(self.data.labels)
        while (done := len(self.outcomes)) < total:
            rows = slice(done, done + self.batch_size)
            images = to_float(self.data.images[rows].to(self.device))
            rng = stream(self.seed, "adaptive-adversary", done, device=self.device)
            with tf32_convolutions(False):
                with torch.no_grad():
                    logits: Tensor = self.network(images)
                targets = self._likeliest_others(logits, self.data.labels[rows].to(self.device))
                outcomes = self._attack(images, targets, rng)
            self.clean = torch.cat([self.clean, logits.argmax(1).cpu()])
            self.targets = torch.cat([self.targets, targets.cpu()])
            self.outcomes = torch.cat([self.outcomes, outcomes.cpu()])
            yield len(self.outcomes), total

    def source(self, label: int) -> dict[str, Any]:
        """How the images of a class fare.

        Returns:
            Of the images that are right without an attack, for each target t: ``attacked`` toward t;
            ``turned`` into t by that; ``success``, their share, None where none was attacked.
            ``best_target`` and ``best_success``: its largest, None where none is right. Of all its images:
            ``clean_accuracy``, and ``union_accuracy``: the share that is right with and without every attack.

        Raises:
            FerdError: images are left to attack, or none is of the class.
        """
        self._require_finished()
        members = self.data.labels == label
        right = members & (self.clean == label)
        targets, outcomes = self.targets[right], self.outcomes[right]
        attacked = torch.bincount(targets.flatten(), minlength=self.network.classes).tolist()
        turned = torch.bincount(targets[outcomes == targets], minlength=self.network.classes).tolist()
        success = [hits / tries if tries else None for hits, tries in zip(turned, attacked, strict=True)]
        tried = [target for target, tries in enumerate(attacked) if tries]
        best = max(tried, key=lambda target: turned[target] / attacked[target], default=None)
        if not (images := int(members.sum())):
            raise FerdError(f"there is no image of class {label}; give some, or ask for another")
        return {
            "attacked": attacked,
            "turned": turned,
            "success": success,
            "best_target": best,
            "best_success": None if best is None else success[best],
            "clean_accuracy": int(right.sum()) / images,
            "union_accuracy": int((outcomes == label).all(1).sum()) / images,
        }

    def figures(self) -> dict[str, Any]:
        """The (source × target) matrices, what stands out in them, and accuracies over classes.

        Raises:
            FerdError: images are left to attack, or there are none of a class.
        """
        require_every_class(self.data.labels, self.network.classes)
        self._require_finished()
        sources = [self.source(label) for label in range(self.network.classes)]
        return {
            "n": len(self.data.labels),
            "targets_per_image": self.targets_per_image,
            "steps": self.threat.steps,
            **{key: [source[key] for source in sources] for key in ("attacked", "turned", "success")},
            "worst_pairs": worst_pairs(sources),
            "best_targets": [
                {"target": source["best_target"], "success": source["best_success"]} for source in sources
            ],
            "clean": _over_classes([source["clean_accuracy"] for source in sources]),
            "union": _over_classes([source["union_accuracy"] for source in sources]),
        }

    def _results(self) -> dict[str, Any]:
        return {"clean": self.clean, "targets": self.targets, "outcomes": self.outcomes}

    def _take(self, state: Mapping[str, Any]) -> None:
        self.clean, self.targets, self.outcomes = state["clean"], state["targets"], state["outcomes"]

    def _origin(self) -> dict[str, str]:
        return {"threat model": fingerprint(self.threat)} | super()._origin()

    def _require_finished(self) -> None:
        if len(self.outcomes) < len(self.data.labels):
            raise FerdError(
                f"{len(self.outcomes)} of {len(self.data.labels)} images are attacked; "
                "go through batches() first"
            )

    def _likeliest_others(self, logits: Tensor, labels: Tensor) -> Tensor:
        others = logits.scatter(1, labels.unsqueeze(1), -torch.inf)
        return others.topk(self.targets_per_image, dim=1).indices

    def _attack(self, images: Tensor, targets: Tensor, rng: torch.Generator) -> Tensor:
        outcomes = []
        for target in targets.T:
            start = random_start(images, self.threat.epsilon, rng)
            adv_images = pgd(self.attacked, images, toward(target), self.threat, start)
            with torch.no_grad():
                outcomes.append(self.network(adv_images).argmax(1))
        return torch.stack(outcomes, 1)


def worst_pairs(sources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pairs by which most images are lost, at most ``PAIRS``; of equals, the larger success first.

    Not by success alone: that of a class with one image right is 1 where that one falls.
    """
    pairs = [
        {"source": label, "target": target, "turned": hits, "attacked": tries, "success": hits / tries}
        for label, source in enumerate(sources)
        for target, (hits, tries) in enumerate(zip(source["turned"], source["attacked"], strict=True))
        if hits
    ]
    return sorted(pairs, key=lambda pair: (-pair["turned"], -pair["success"]))[:PAIRS]


def weakest(union: list[float], clean: list[float]) -> list[int]:
    """The ``worst_count`` classes of lowest union accuracy, lowest first; of equals, by clean accuracy."""
    order = sorted(range(len(union)), key=lambda label: (union[label], clean[label]))
    return order[: worst_count(len(union))]


def _over_classes(accuracies: list[float]) -> dict[str, Any]:
    per_class = torch.tensor(accuracies, dtype=torch.float64)
    return {
        "average": per_class.mean().item(),
        "worst": worst(per_class),
        "nsd": nsd(per_class),
        "per_class": accuracies,
    }
