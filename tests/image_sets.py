"""Small image sets in the layouts of the published ones, with real JPEGs and pickles."""

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ferd import dataset_readers
from ferd.dataset_readers import cifar_source
from ferd.datasets import DATASETS, Dataset

WORDNET = ("n01", "n02", "n03")
COLOURS = {"n01": (200, 30, 60), "n02": (10, 220, 90), "n03": (70, 50, 240)}
GREY = 128


def make_tiny_imagenet(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, train: int = 3, test: int = 2
) -> Path:
    """Three classes, each of one colour, but that the second image of a class is greyscale."""
    monkeypatch.setitem(DATASETS, "tiny-imagenet", Dataset(("one", "two", "three"), 3, 64))
    classes = hashlib.sha256("\n".join(WORDNET).encode()).hexdigest()
    monkeypatch.setattr(dataset_readers, "TINY_IMAGENET_WORDNET_SHA256", classes)
    root = folder / "tiny-imagenet-200"
    for name in WORDNET:
        images = root / "train" / name / "images"
        images.mkdir(parents=True)
        for number in range(train):
            write_jpeg(images / f"{name}_{number}.JPEG", name, grey=number == 1)
    (root / "val" / "images").mkdir(parents=True)
    lines = []
    for number, name in enumerate(reversed(WORDNET * test)):
        write_jpeg(root / "val" / "images" / f"val_{number}.JPEG", name)
        lines.append(f"val_{number}.JPEG\t{name}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


def write_jpeg(path: Path, name: str, *, grey: bool = False, size: int = 64) -> None:
    """An image of a class's colour."""
    image = Image.new("L", (size, size), GREY) if grey else Image.new("RGB", (size, size), COLOURS[name])
    image.save(path, format="jpeg", quality=95)


def make_cifar(
    name: str, root: Path, monkeypatch: pytest.MonkeyPatch, classes: tuple[str, ...] | None = None
) -> tuple[np.ndarray, list[int]]:
    """Two training images a class and a test image, of random pixels; torchvision is told their checksums.

    Returns the training rows (N, 3072) and labels.
    """
    source = cifar_source(name)
    folder = root / source.base_folder
    folder.mkdir(parents=True, exist_ok=True)
    count = len(DATASETS[name].class_names)
    rows = np.random.default_rng(0).integers(0, 256, (3 * count, 3072), dtype=np.uint8)
    labels = [number % count for number in range(3 * count)]
    key = "fine_labels" if name == "cifar100" else "labels"
    train = {"data": rows[: 2 * count], key: labels[: 2 * count]}
    test = {"data": rows[2 * count :], key: labels[2 * count :]}
    meta = {source.meta["key"]: list(classes or DATASETS[name].class_names)}
    sums = {}
    for file, content in (("train", train), ("test", test), ("names", meta)):
        (folder / file).write_bytes(pickle.dumps(content, protocol=2))
        sums[file] = hashlib.md5((folder / file).read_bytes()).hexdigest()
    monkeypatch.setattr(source, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(source, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(source, "meta", source.meta | {"filename": "names", "md5": sums["names"]})
    return train["data"], train[key]


def make_own(
    root: Path, name: str, classes: Sequence[str], numbers: Mapping[str, int], channels: int
) -> Path:
    """A folder of one's own below ``root``: PNGs of noise, 8×8, so many of each class in each part."""
    random = np.random.default_rng(0)
    for part, number in numbers.items():
        for label in classes:
            folder = root / name / part / label
            folder.mkdir(parents=True)
            for index in range(number):
                pixels = random.integers(0, 256, (8, 8, channels), dtype=np.uint8)
                Image.fromarray(pixels.squeeze()).save(folder / f"{index}.png")
    return root / name
