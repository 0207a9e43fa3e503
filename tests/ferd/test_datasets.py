import hashlib
import subprocess
import sys
from itertools import count

import psutil
import pytest
import torch
from safetensors.torch import save_file
from torchvision.datasets import CIFAR10, CIFAR100

from ferd.datasets import DATASETS, Images, dataset, first_per_class, load_images, save_images
from ferd.errors import FerdError

CIFAR100_SUPERCLASSES = """
    aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices
    household_furniture insects large_carnivores large_man-made_outdoor_things
    large_natural_outdoor_scenes large_omnivores_and_herbivores medium_mammals non-insect_invertebrates
    people reptiles small_mammals trees vehicles_1 vehicles_2
"""


@pytest.mark.parametrize(
    ("name", "classes", "channels", "size"),
    [("digits", 10, 1, 8), ("cifar10", 10, 3, 32), ("cifar100", 100, 3, 32), ("tiny-imagenet", 200, 3, 64)],
)
def test_the_facts_of_the_datasets(name, classes, channels, size):
    facts = dataset(name)
    assert len(facts.class_names) == len(set(facts.class_names)) == classes
    assert (facts.channels, facts.size) == (channels, size)


def pickled(content: dict[str, list[str] | int]) -> bytes:
    """Short words and small numbers as Python 2 pickled them: protocol 2, words and lists memorised."""
    number = count(1)

    def memorised(opcodes: bytes) -> bytes:
        return opcodes + b"q" + bytes([next(number)])

    def word(text: str) -> bytes:
        return memorised(b"U" + bytes([len(text)]) + text.encode())

    def value(item: list[str] | int) -> bytes:
        if isinstance(item, int):
            return b"M" + item.to_bytes(2, "little")
        return memorised(b"]") + b"(" + b"".join(map(word, item)) + b"e"

    start = b"\x80\x02" + memorised(b"}") + b"("
    return start + b"".join(word(key) + value(item) for key, item in content.items()) + b"u."


def test_names_of_cifar10_make_the_published_file_of_names_byte_for_byte():
    names = list(DATASETS["cifar10"].class_names)
    published = pickled({"num_cases_per_batch": 10_000, "label_names": names, "num_vis": 3_072})
    assert hashlib.md5(published).hexdigest() == CIFAR10.meta["md5"]


def test_names_of_cifar100_make_the_published_file_of_names_byte_for_byte():
    names = list(DATASETS["cifar100"].class_names)
    published = pickled({"fine_label_names": names, "coarse_label_names": CIFAR100_SUPERCLASSES.split()})
    assert hashlib.md5(published).hexdigest() == CIFAR100.meta["md5"]


def test_an_unknown_dataset_is_refused_with_those_that_are_known():
    with pytest.raises(FerdError, match=r"mnist.*digits.*cifar10.*cifar100.*tiny-imagenet"):
        dataset("mnist")


def test_the_facts_are_known_without_the_libraries_that_read_images():
    code = "import sys, ferd.datasets; print({'torchvision', 'PIL', 'sklearn'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_first_per_class_literal():
    labels = torch.tensor([1, 0, 1, 1, 0, 0])
    assert first_per_class(labels, 0, 2).tolist() == [0, 1, 2, 4]
    assert first_per_class(labels, 2, 1).tolist() == [3, 5]


@pytest.mark.parametrize(("skip", "count"), [(0, 4), (3, 1), (2, 2)])
def test_too_few_images_of_a_class_are_refused(skip, count):
    with pytest.raises(FerdError, match="class 0 has 3 images where 4 are asked for"):
        first_per_class(torch.tensor([1, 0, 1, 1, 0, 0, 1]), skip, count)


def some_images() -> Images:
    rng = torch.Generator().manual_seed(0)
    return Images(torch.randint(0, 256, (6, 3, 4, 4), generator=rng, dtype=torch.uint8), torch.arange(6) % 3)


@pytest.mark.parametrize(
    ("images", "labels", "found"),
    [
        (torch.rand(6, 3, 4, 4), torch.arange(6), r"torch\.float32 \(6, 3, 4, 4\) and torch\.int64 \(6,\)"),
        (torch.zeros(6, 4, 4, dtype=torch.uint8), torch.arange(6), r"torch\.uint8 \(6, 4, 4\)"),
        (torch.zeros(6, 3, 4, 4, dtype=torch.uint8), torch.arange(5), r"and torch\.int64 \(5,\)"),
        (torch.zeros(6, 3, 4, 4, dtype=torch.uint8), torch.zeros(6), r"and torch\.float32 \(6,\)"),
    ],
)
def test_images_of_floats_and_labels_of_other_numbers_are_refused_in_one_line(images, labels, found):
    with pytest.raises(FerdError, match=rf"wanted are uint8 images .*, found .*{found}") as raised:
        Images(images, labels)
    assert "\n" not in str(raised.value)


def test_images_are_read_as_they_were_written(tmp_path):
    part = some_images()
    save_images(tmp_path / "data/set/train.safetensors", part)
    read = load_images(tmp_path / "data/set/train.safetensors")
    assert torch.equal(read.images, part.images) and read.images.dtype == torch.uint8
    assert torch.equal(read.labels, part.labels) and read.labels.dtype == torch.int64


def test_no_images_are_written_and_read_as_none(tmp_path):
    part = some_images()
    save_images(tmp_path / "none.safetensors", Images(part.images[:0], part.labels[:0]))
    assert load_images(tmp_path / "none.safetensors").images.shape == (0, 3, 4, 4)


def test_loading_takes_memory_only_for_the_images_that_are_used(tmp_path):
    megabyte, path = 2**20, tmp_path / "train.safetensors"
    save_images(path, Images(torch.zeros(200, 1, 1024, 1024, dtype=torch.uint8), torch.zeros(200).long()))
    resident = psutil.Process().memory_info
    before = resident().rss
    images = load_images(path).images.to("cpu")
    assert resident().rss - before < 20 * megabyte
    images[:100].sum(dtype=torch.int64)
    assert 80 * megabyte < resident().rss - before < 130 * megabyte


def test_what_is_done_to_loaded_images_does_not_reach_the_file(tmp_path):
    part = some_images()
    save_images(tmp_path / "train.safetensors", part)
    load_images(tmp_path / "train.safetensors").images.zero_()
    assert torch.equal(load_images(tmp_path / "train.safetensors").images, part.images)


def test_missing_images_are_named_with_the_stage_that_makes_them(tmp_path):
    path = tmp_path / "cifar100" / "test.safetensors"
    with pytest.raises(FerdError, match=f"{path}: no such images; run `dvc repro data@cifar100`"):
        load_images(path)


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_images_that_are_cut_off_are_refused_at_once(tmp_path, length):
    path = tmp_path / "digits" / "test.safetensors"
    save_images(path, some_images())
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(FerdError, match=f"{path}: cut off or damaged.*data@digits") as raised:
        load_images(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"pixels": torch.zeros(1)}, "holds ['images', 'labels', 'pixels'], not images and labels"),
        ({"labels": torch.arange(5)}, "found torch.uint8 (6, 3, 4, 4) and torch.int64 (5,)"),
        ({"labels": torch.zeros(6)}, "found torch.uint8 (6, 3, 4, 4) and torch.float32 (6,)"),
        ({"images": torch.zeros(6, 4, 4).byte()}, "found torch.uint8 (6, 4, 4) and torch.int64 (6,)"),
        ({"images": torch.zeros(6, 3, 4, 4)}, "found torch.float32 (6, 3, 4, 4) and torch.int64 (6,)"),
    ],
)
def test_other_tensors_than_images_with_a_label_each_are_refused(tmp_path, change, fault):
    path = tmp_path / "digits" / "test.safetensors"
    path.parent.mkdir()
    save_file(vars(some_images()) | change, path)
    with pytest.raises(FerdError) as raised:
        load_images(path)
    text = str(raised.value)
    assert text.startswith(f"{path}: ") and fault in text and text.endswith("; run `dvc repro data@digits`")
