"""Datasets as they are published -> images, split so that test images serve the last figures alone."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ferd.config import Data, ImageFolder
from ferd.datasets import Dataset, Images, dataset, first_per_class
from ferd.errors import FerdError

SPLIT_SEED = 0
TINY_IMAGENET_FOLDER = "tiny-imagenet-200"
TINY_IMAGENET_WORDNET_SHA256 = (
    "add4bf0c8712ef7fb4bca98e3bbaf07101636c5db62cce486fd2af71cc11caf8"  # SHA-256, a line each
)
UNPACK_AGAIN = "unpack the published archive again"
MEND = "mend it, or take it away"
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}  # Pillow's, by the end of a file's name
MODES = {1: "L", 3: "RGB"}  # Pillow's, by the number of channels
Labelled = Sequence[tuple[Path, str]]  # images with the name of their class


@dataclass(frozen=True)
class Part:
    """The training or the test images of a dataset: all labels (N,), and the images of the rows asked for."""

    labels: Tensor
    images: Callable[[Tensor], Tensor]

    def take(self, rows: Tensor) -> Images:
        """The images and labels of some rows, in their order."""
        return Images(self.images(rows), self.labels[rows])


def _read_digits() -> tuple[Part, Part]:
    """scikit-learn's 1,797 digits of 8×8; 50 a class are the test set, drawn at a fixed seed."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    images, labels = pixels[order], torch.from_numpy(digits.target).long()[order]
    test = first_per_class(labels, 0, 50)
    train = torch.ones(len(labels), dtype=torch.bool)
    train[test] = False
    return _whole(images[train], labels[train]), _whole(images[test], labels[test])


def _whole(images: Tensor, labels: Tensor) -> Part:
    return Part(labels, images.__getitem__)


def cifar_source(name: str) -> Any:
    """torchvision's class of ``cifar10`` or ``cifar100``, which knows its folder and checksums."""
    from torchvision.datasets import CIFAR10, CIFAR100

    return {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]


def _read_cifar(name: str, root: Path) -> tuple[Part, Part]:
    """CIFAR from torchvision's layout below ``root``: every file has the published checksum."""
    source = cifar_source(name)
    folder = root / source.base_folder
    try:
        parts = [source(root, train=train, download=False) for train in (True, False)]
    except (RuntimeError, OSError):
        raise FerdError(f"{folder}: missing or damaged; {_how_to_fetch(name)}") from None
    if tuple(parts[0].classes) != dataset(name).class_names:
        raise FerdError(
            f"{folder}: its {len(parts[0].classes)} classes are not those of {name} in their order; "
            f"move it away, then {_how_to_fetch(name)}"
        )
    train, test = (
        _whole(torch.from_numpy(part.data).movedim(-1, 1).contiguous(), torch.tensor(part.targets))
        for part in parts
    )
    return train, test


def _read_tiny_imagenet(name: str, root: Path) -> tuple[Part, Part]:
    """Tiny-ImageNet-200 as it is published; its validation images are the test set of a benchmark.

    Classes are numbered in the order of their WordNet numbers, the names of their folders.
    """
    folder, facts = root / TINY_IMAGENET_FOLDER, dataset(name)
    if not folder.is_dir():
        raise FerdError(f"{folder}: missing; {_how_to_fetch(name)}")
    classes = sorted(path.name for path in (folder / "train").glob("*") if path.is_dir())
    if len(classes) != len(facts.class_names):
        raise FerdError(
            f"{folder}/train: has {len(classes)} folders of classes where {len(facts.class_names)} "
            f"are expected; move {folder} away, then {_how_to_fetch(name)}"
        )
    if hashlib.sha256("\n".join(classes).encode()).hexdigest() != TINY_IMAGENET_WORDNET_SHA256:
        raise FerdError(
            f"{folder}/train: its classes are not those of {name}; move {folder} away, then "
            f"{_how_to_fetch(name)}"
        )
    train, test = _tiny_train(folder, classes), _tiny_val(folder, classes)
    return _pictures(train, classes, facts), _pictures(test, classes, facts)


def _tiny_train(folder: Path, classes: Sequence[str]) -> Labelled:
    """The JPEGs of each class by name, class by class, with their class."""
    labelled: list[tuple[Path, str]] = []
    for name in classes:
        images = folder / "train" / name / "images"
        files = sorted(images.glob("*.JPEG"))
        if not files:
            raise FerdError(f"{images}: missing or without *.JPEG; {UNPACK_AGAIN}")
        labelled += [(file, name) for file in files]
    return labelled


def _tiny_val(folder: Path, classes: Sequence[str]) -> Labelled:
    """The JPEGs that ``val_annotations.txt`` lists, in its order, with their class."""
    images, annotations = folder / "val" / "images", folder / "val" / "val_annotations.txt"
    try:
        present = set(os.listdir(images))
        rows = [[*line.split("\t"), ""][:2] for line in annotations.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise FerdError(f"{folder}/val: cannot be read ({error}); {UNPACK_AGAIN}") from None
    for number, (file, label) in enumerate(rows, 1):
        if label not in classes:
            raise FerdError(f"{annotations}, line {number}: {label!r} is not a class; {UNPACK_AGAIN}")
        if file not in present:
            raise FerdError(f"{images}/{file}: listed, but missing; {UNPACK_AGAIN}")
    counts = Counter(label for _, label in rows)
    fewest, most = min(counts[name] for name in classes), max(counts.values(), default=0)
    if fewest != most or not rows:
        raise FerdError(
            f"{annotations}: lists {fewest} to {most} images a class, not equally many; {UNPACK_AGAIN}"
        )
    return [(images / file, label) for file, label in rows]


def _read_folder(own: ImageFolder, root: Path) -> tuple[Part, Part]:
    """Images of one's own, a folder a class, each in the order of their files' names."""
    train, test = (_of_classes(root / own.folder / part, own.classes) for part in ("train", "test"))
    _refuse_twice(train, test)
    facts = dataset(own)
    return _pictures(train, own.classes, facts, MEND), _pictures(test, own.classes, facts, MEND)


def _of_classes(folder: Path, classes: Sequence[str]) -> Labelled:
    """The pictures below ``folder``, class by class, with their class."""
    if not folder.is_dir():
        raise FerdError(f"{folder}: missing; put a folder of images for each class there")
    others = sorted({path.name for path in folder.iterdir() if path.is_dir()} - set(classes))
    if others:
        raise FerdError(f"{folder}/{others[0]}: none of data.dataset.classes; add it there, or take it away")
    labelled: list[tuple[Path, str]] = []
    for name in classes:
        files = sorted(path for path in (folder / name).glob("*") if path.suffix.lower() in FORMATS)
        if not files:
            raise FerdError(f"{folder / name}: missing, or without a file in {', '.join(FORMATS)}")
        labelled += [(file, name) for file in files]
    return labelled


def _refuse_twice(train: Labelled, test: Labelled) -> None:
    """A file that is in ``train`` and ``test``, or in two classes: what is measured on it says nothing."""
    first: dict[bytes, tuple[Path, str, str]] = {}
    twice: list[tuple[Path, Path]] = []
    for part, labelled in (("train", train), ("test", test)):
        for file, name in labelled:
            earlier, *where = first.setdefault(_hash(file), (file, part, name))
            if where != [part, name]:
                twice.append((file, earlier))
    if twice:
        more = f" (there are {len(twice)} such files)" if twice[1:] else ""
        raise FerdError(
            f"{twice[0][0]}: is the same file as {twice[0][1]}{more}; keep an image in one class, "
            "in train/ or in test/"
        )


def _hash(file: Path) -> bytes:
    try:
        return hashlib.sha256(file.read_bytes()).digest()
    except OSError as error:
        raise FerdError(f"{file}: cannot be read: {error.strerror}; {MEND}") from None


def _pictures(labelled: Labelled, classes: Sequence[str], facts: Dataset, hint: str = UNPACK_AGAIN) -> Part:
    """Images that are decoded when they are asked for; ``hint`` says what to do about one that cannot be."""
    number = {name: label for label, name in enumerate(classes)}
    files = [file for file, _ in labelled]
    return Part(
        torch.tensor([number[name] for _, name in labelled]),
        lambda rows: _decode([files[row] for row in rows.tolist()], facts, hint),
    )


def _decode(files: Sequence[Path], facts: Dataset, hint: str) -> Tensor:
    """Files -> (N, channels, size, size) uint8: one array, filled image by image."""
    pixels = np.empty((len(files), facts.channels, facts.size, facts.size), np.uint8)
    for row, file in zip(pixels, files, strict=True):
        row[:] = _decode_one(file, facts, hint)
    return torch.from_numpy(pixels)


def _decode_one(file: Path, facts: Dataset, hint: str) -> np.ndarray[Any, Any]:
    """A JPEG or PNG -> (channels, size, size); grey images become RGB, or colours grey, as is asked for."""
    from PIL import Image

    size, form = facts.size, FORMATS.get(file.suffix.lower(), "JPEG")
    try:
        with Image.open(file, formats=(form,)) as image:
            if image.size != (size, size):
                raise FerdError(
                    f"{file}: is {image.width}×{image.height} where {size}×{size} is expected; {hint}"
                )
            if image.mode.startswith("I") or "16B" in str(image.tile):
                raise FerdError(f"{file}: has more than 8 bits a channel, which would be cut off; {hint}")
            pixels = np.asarray(image.convert(MODES[facts.channels]))
            return pixels.reshape(size, size, facts.channels).transpose(2, 0, 1)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # the second: of a broken PNG
        raise FerdError(f"{file}: cut off or damaged, or no {form}; {hint}") from None


def _how_to_fetch(name: str) -> str:
    return f"run `python -m tasks.fetch {name}`"


READERS = {"cifar10": _read_cifar, "cifar100": _read_cifar, "tiny-imagenet": _read_tiny_imagenet}


def read(name: str | ImageFolder, root: Path | None) -> tuple[Part, Part]:
    """Training images, in the order in which subsets are taken, and test images of a dataset below ``root``.

    Raises:
        FerdError: they are missing or damaged.
    """
    if name == "digits":
        return _read_digits()
    if isinstance(name, ImageFolder):
        if root is None:
            raise FerdError(f"FERD_DATA is not set; set it to the folder that holds {name.folder}")
        return _read_folder(name, root)
    if root is None:
        raise FerdError(
            f"FERD_DATA is not set; set it to the folder of image sets that holds {name}, "
            f"or to an empty one and {_how_to_fetch(name)}"
        )
    return READERS[name](name, root)


def load_splits(settings: Data, root: Path | None) -> dict[str, Images]:
    """The ``train``, ``validation`` and ``test`` images of a benchmark; no others are decoded.

    Each split takes the first images of every class, validation after training ones.

    Raises:
        FerdError: the dataset is missing or damaged, or has too few images.
    """
    train, test = read(settings.dataset, root)
    trained_on, names = settings.train_per_class, dataset(settings.dataset).class_names
    both = "data.train_per_class or validation_per_class, which share the training images"
    held_out = first_per_class(train.labels, trained_on, settings.validation_per_class, both, names)
    own = first_per_class(train.labels, 0, trained_on)
    if settings.test_per_class:
        tested = first_per_class(test.labels, 0, settings.test_per_class, "data.test_per_class", names)
    else:
        tested = torch.arange(len(test.labels))
    return {"train": train.take(own), "validation": train.take(held_out), "test": test.take(tested)}
