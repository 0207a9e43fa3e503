"""Image sets as uint8 tensors, split so that test images are used for nothing but the last figures."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ferd.config import Data
from ferd.errors import FerdError

SPLIT_SEED = 0


@dataclass(frozen=True)
class Images:
    """images (N, channels, H, W) uint8 and labels (N,) int64."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Dataset:
    """What is known of a dataset before it is read, and how to read it.

    ``read(root)`` gives its training images (in the order in which subsets are taken) and its
    test images.
    """

    class_names: tuple[str, ...]
    channels: int
    size: int
    read: Callable[[Path | None], tuple[Images, Images]]


def _read_digits(_root: Path | None) -> tuple[Images, Images]:
    """scikit-learn's 1,797 digits of 8×8; 50 a class are the test set, drawn at a fixed seed."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    everything = Images(torch.from_numpy(pixels).unsqueeze(1), torch.from_numpy(digits.target).long())
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    shuffled = Images(everything.images[order], everything.labels[order])
    test = first_per_class(shuffled.labels, 0, 50)
    train = torch.ones(len(pixels), dtype=torch.bool)
    train[test] = False
    return (
        Images(shuffled.images[train], shuffled.labels[train]),
        Images(shuffled.images[test], shuffled.labels[test]),
    )


def _read_cifar10(root: Path | None) -> tuple[Images, Images]:
    """CIFAR-10 from torchvision's layout below ``root`` (``cifar-10-batches-py``)."""
    from torchvision.datasets import CIFAR10

    if root is None:
        raise FerdError(
            "FERD_DATA is not set; set it to the folder that holds cifar-10-batches-py (see README)"
        )
    try:
        parts = [CIFAR10(str(root), train=train, download=False) for train in (True, False)]
    except RuntimeError:
        raise FerdError(
            f"{root}/cifar-10-batches-py: missing or damaged; put CIFAR-10's python batches there"
        ) from None
    train, test = (
        Images(torch.from_numpy(part.data).movedim(-1, 1).contiguous(), torch.tensor(part.targets))
        for part in parts
    )
    return train, test


DATASETS = {
    "digits": Dataset(tuple("0123456789"), 1, 8, _read_digits),
    "cifar10": Dataset(
        ("airplane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        3,
        32,
        _read_cifar10,
    ),
}


def dataset(name: str) -> Dataset:
    """The dataset of that name.

    Raises:
        FerdError: there is none.
    """
    if name not in DATASETS:
        raise FerdError(f"dataset {name!r} is unknown; choose from {', '.join(DATASETS)}")
    return DATASETS[name]


def first_per_class(labels: Tensor, skip: int, count: int) -> Tensor:
    """Indices, in order, of ``count`` examples of each class after its first ``skip``.

    Raises:
        FerdError: a class has fewer than ``skip + count``.
    """
    chosen = []
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        if len(members) < skip + count:
            raise FerdError(
                f"class {int(label)} has {len(members)} images where {skip + count} are asked for; "
                "lower the benchmark's data.*_per_class"
            )
        chosen.append(members[skip : skip + count])
    return torch.cat(chosen).sort().values


def load_splits(settings: Data, root: Path | None) -> dict[str, Images]:
    """The ``train``, ``validation`` and ``test`` images of a benchmark.

    Each split takes the first images of every class, validation after training ones.
    """
    train, test = dataset(settings.dataset).read(root)
    own = first_per_class(train.labels, 0, settings.train_per_class)
    held_out = first_per_class(train.labels, settings.train_per_class, settings.validation_per_class)
    splits = {"train": (train, own), "validation": (train, held_out)}
    if settings.test_per_class:
        splits["test"] = (test, first_per_class(test.labels, 0, settings.test_per_class))
    else:
        splits["test"] = (test, torch.arange(len(test.labels)))
    return {name: Images(part.images[rows], part.labels[rows]) for name, (part, rows) in splits.items()}
