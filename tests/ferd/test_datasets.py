import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits

from ferd.config import Data
from ferd.datasets import DATASETS, Images, dataset, first_per_class, load_splits
from ferd.errors import FerdError

DIGITS = Data(dataset="digits", train_per_class=100, validation_per_class=20, test_per_class=0)


def counted(*parts):
    """How often each labelled image occurs."""
    pairs = [pair for part in parts for pair in zip(part.images, part.labels, strict=True)]
    return Counter((image.numpy().tobytes(), int(label)) for image, label in pairs)


def test_digits_are_shared_out_between_training_and_test_without_loss():
    train, test = dataset("digits").read(None)
    source = load_digits()
    pixels = (torch.from_numpy(source.images) * 255 / 16).round().to(torch.uint8)
    assert counted(train, test) == counted(Images(pixels, torch.from_numpy(source.target)))


def test_test_digits_are_fifty_a_class():
    _, test = dataset("digits").read(None)
    assert test.labels.bincount().tolist() == [50] * 10
    assert test.images.shape == (500, 1, 8, 8)


def test_digits_span_the_grey_values():
    train, _ = dataset("digits").read(None)
    assert train.images.dtype == torch.uint8
    assert len(train.images.unique()) == 17
    assert train.images.min() == 0 and train.images.max() == 255


def test_splits_have_the_sizes_asked_for_and_share_no_image():
    splits = load_splits(DIGITS, None)
    counts = {name: part.labels.bincount().tolist() for name, part in splits.items()}
    assert counts == {"train": [100] * 10, "validation": [20] * 10, "test": [50] * 10}
    train, test = dataset("digits").read(None)
    spent = counted(splits["train"], splits["validation"])
    assert spent <= counted(train)  # as often as in the whole, so none is in both
    assert counted(splits["test"]) == counted(test)


def test_a_split_is_the_same_each_time_and_its_validation_images_follow_the_training_ones():
    one, two = load_splits(DIGITS, None), load_splits(DIGITS, None)
    assert all(torch.equal(one[name].images, two[name].images) for name in one)
    wider = DIGITS.model_copy(update={"train_per_class": 120, "validation_per_class": 0})
    both = load_splits(wider, None)
    assert len(both["validation"].labels) == 0
    assert counted(both["train"]) == counted(one["train"], one["validation"])


def test_a_smaller_test_set_is_the_first_of_each_class():
    small = load_splits(DIGITS.model_copy(update={"test_per_class": 3}), None)["test"]
    whole = load_splits(DIGITS, None)["test"]
    assert small.labels.bincount().tolist() == [3] * 10
    rows = first_per_class(whole.labels, 0, 3)
    assert torch.equal(small.images, whole.images[rows])


def test_first_per_class_literal():
    labels = torch.tensor([1, 0, 1, 1, 0, 0])
    assert first_per_class(labels, 0, 2).tolist() == [0, 1, 2, 4]
    assert first_per_class(labels, 2, 1).tolist() == [3, 5]


@pytest.mark.parametrize(("skip", "count"), [(0, 4), (3, 1), (2, 2)])
def test_too_few_images_of_a_class_are_refused(skip, count):
    with pytest.raises(FerdError, match="class 0 has 3 images where 4 are asked for"):
        first_per_class(torch.tensor([1, 0, 1, 1, 0, 0, 1]), skip, count)


def test_an_unknown_dataset_is_refused_with_those_that_are_known():
    with pytest.raises(FerdError, match=r"mnist.*digits.*cifar10"):
        dataset("mnist")


def test_cifar10_without_a_folder_names_the_variable_to_set():
    with pytest.raises(FerdError, match="FERD_DATA"):
        dataset("cifar10").read(None)


def test_cifar10_in_a_folder_that_is_missing_names_it(tmp_path):
    with pytest.raises(FerdError, match=str(tmp_path / "none")) as raised:
        dataset("cifar10").read(tmp_path / "none")
    assert "\n" not in str(raised.value)


def test_damaged_cifar10_is_refused(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(b"half")
    with pytest.raises(FerdError, match=str(folder)):
        dataset("cifar10").read(tmp_path)


@pytest.mark.skipif("FERD_DATA" not in os.environ, reason="FERD_DATA is not set: no CIFAR-10")
def test_cifar10_has_its_shapes_and_balanced_classes():
    train, test = DATASETS["cifar10"].read(Path(os.environ["FERD_DATA"]))
    assert train.images.shape == (50_000, 3, 32, 32) and train.images.dtype == torch.uint8
    assert test.images.shape == (10_000, 3, 32, 32)
    assert train.labels.bincount().tolist() == [5000] * 10
    assert test.labels.bincount().tolist() == [1000] * 10
    assert train.images[0, :, 0, 0].tolist() == [59, 62, 63]  # the first image is a frog
    assert DATASETS["cifar10"].class_names[train.labels[0]] == "frog"
