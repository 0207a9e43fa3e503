import os
import shutil
import struct
import tracemalloc
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from ferd.config import Data, ImageFolder
from ferd.dataset_readers import Part, cifar_source, load_splits, read
from ferd.datasets import DATASETS, Images, dataset, first_per_class, load_images, save_images
from ferd.errors import FerdError
from tests.image_sets import COLOURS, GREY, WORDNET, make_cifar, make_own, make_tiny_imagenet, write_jpeg

DIGITS = Data(dataset="digits", train_per_class=100, validation_per_class=20, test_per_class=0)
TINY = Data(dataset="tiny-imagenet", train_per_class=1, validation_per_class=1, test_per_class=1)


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> Path:
    """A Tiny-ImageNet of three classes, below ``tmp_path``."""
    return make_tiny_imagenet(tmp_path, monkeypatch)


def everything(part: Part) -> Images:
    """All images of a part."""
    return part.take(torch.arange(len(part.labels)))


def counted(*parts):
    """How often each labelled image occurs."""
    pairs = [pair for part in parts for pair in zip(part.images, part.labels, strict=True)]
    return Counter((image.numpy().tobytes(), int(label)) for image, label in pairs)


def test_digits_are_shared_out_between_training_and_test_without_loss():
    train, test = (everything(part) for part in read("digits", None))
    source = load_digits()
    pixels = (torch.from_numpy(source.images) * 255 / 16).round().to(torch.uint8).unsqueeze(1)
    assert counted(train, test) == counted(Images(pixels, torch.from_numpy(source.target)))


def test_test_digits_are_fifty_a_class():
    test = everything(read("digits", None)[1])
    assert test.labels.bincount().tolist() == [50] * 10
    assert test.images.shape == (500, 1, 8, 8)


def test_digits_span_the_grey_values():
    train = everything(read("digits", None)[0])
    assert train.images.dtype == torch.uint8
    assert len(train.images.unique()) == 17
    assert train.images.min() == 0 and train.images.max() == 255


def test_splits_have_the_sizes_asked_for_and_share_no_image():
    splits = load_splits(DIGITS, None)
    counts = {name: part.labels.bincount().tolist() for name, part in splits.items()}
    assert counts == {"train": [100] * 10, "validation": [20] * 10, "test": [50] * 10}
    train, test = (everything(part) for part in read("digits", None))
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


def test_the_splits_of_a_dataset_with_too_few_images_are_refused():
    with pytest.raises(FerdError, match=r"^0 has 128 images where 130 are asked for; lower data\.train"):
        load_splits(DIGITS.model_copy(update={"train_per_class": 110}), None)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "tiny-imagenet"])
def test_without_a_folder_the_variable_to_set_and_the_command_are_named(name):
    with pytest.raises(FerdError, match=rf"FERD_DATA is not set.*`python -m tasks\.fetch {name}`") as raised:
        read(name, None)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("cifar10", "cifar-10-batches-py"),
        ("cifar100", "cifar-100-python"),
        ("tiny-imagenet", "tiny-imagenet-200"),
    ],
)
def test_a_set_that_is_missing_is_named_with_the_command_that_fetches_it(tmp_path, name, folder):
    with pytest.raises(FerdError, match=rf"{tmp_path / folder}: missing.*tasks\.fetch {name}`") as raised:
        read(name, tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_rows_become_images_channel_by_channel_and_line_by_line(tmp_path, monkeypatch, name, classes):
    rows, labels = make_cifar(name, tmp_path, monkeypatch)
    train, test = read(name, tmp_path)
    images = train.take(torch.arange(2 * classes)).images
    assert images.shape == (2 * classes, 3, 32, 32) and images.dtype == torch.uint8
    assert images[7, 1, 2, 3] == rows[7][1 * 1024 + 2 * 32 + 3]
    assert images.flatten(1).tolist() == rows.tolist()
    assert train.labels.tolist() == labels and train.labels.dtype == torch.int64
    assert test.labels.tolist() == list(range(classes))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_whose_classes_are_in_another_order_or_number_is_refused(tmp_path, monkeypatch, name):
    first, second, *others = DATASETS[name].class_names
    for wrong in ((second, first, *others), (first, second, *others[:-1])):
        make_cifar(name, tmp_path, monkeypatch, classes=wrong)
        with pytest.raises(
            FerdError, match=f"its {len(wrong)} classes are not those of {name} in their order"
        ):
            read(name, tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("file", ["train", "test", "names"])
def test_cifar_with_one_damaged_byte_is_refused(tmp_path, monkeypatch, name, file):
    make_cifar(name, tmp_path, monkeypatch)
    read(name, tmp_path)
    path = tmp_path / cifar_source(name).base_folder / file
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(FerdError, match=f"{path.parent}: missing or damaged") as raised:
        read(name, tmp_path)
    assert "\n" not in str(raised.value)


def test_tiny_imagenet_is_read_class_by_class_and_its_validation_images_are_the_test_set(tiny, tmp_path):
    train, test = (everything(part) for part in read("tiny-imagenet", tmp_path))
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] and train.labels.dtype == torch.int64
    assert test.labels.tolist() == [2, 1, 0, 2, 1, 0]  # as val_annotations.txt lists them
    assert train.images.shape == (9, 3, 64, 64) and train.images.dtype == torch.uint8
    for part in (train, test):
        for image, label in zip(part.images, part.labels.tolist(), strict=True):
            colour = torch.tensor(COLOURS[WORDNET[label]]).view(3, 1, 1)
            grey = torch.full((3, 1, 1), GREY)
            assert min((image - expected.int()).abs().max() for expected in (colour, grey)) <= 3


def test_a_greyscale_jpeg_becomes_three_equal_channels(tiny, tmp_path):
    train, _ = read("tiny-imagenet", tmp_path)
    image = train.take(torch.tensor([1])).images[0]
    assert image.min() == image.max() == GREY


def test_files_are_in_the_order_of_their_names(tiny, tmp_path):
    write_jpeg(tiny / "train/n02/images/n02_10.JPEG", "n01")  # between n02_1 and n02_2
    train, _ = read("tiny-imagenet", tmp_path)
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2]
    assert everything(train).images[5, 0, 0, 0] > 150  # red as n01


def test_only_the_images_that_the_splits_ask_for_are_decoded(tiny, tmp_path):
    for unused in ("train/n01/images/n01_2.JPEG", "val/images/val_3.JPEG"):
        (tiny / unused).write_bytes(b"not a JPEG")
    splits = load_splits(TINY, tmp_path)
    assert {name: part.labels.tolist() for name, part in splits.items()} == {
        "train": [0, 1, 2],
        "validation": [0, 1, 2],
        "test": [2, 1, 0],
    }
    with pytest.raises(FerdError, match=r"n01_2\.JPEG"):
        load_splits(TINY.model_copy(update={"train_per_class": 2}), tmp_path)


def test_decoding_holds_each_image_once(tmp_path, monkeypatch):
    make_tiny_imagenet(tmp_path, monkeypatch, train=100, test=1)
    train, _ = read("tiny-imagenet", tmp_path)
    everything(train)  # imports and tables of Pillow
    tracemalloc.start()
    try:
        images = everything(train).images
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert images.numel() == 300 * 3 * 64 * 64 <= peak < 1.2 * images.numel()


@pytest.mark.parametrize("count", [199, 201])
def test_tiny_imagenet_with_a_class_too_few_or_too_many_is_refused(tmp_path, count):
    for number in range(count):
        (tmp_path / f"tiny-imagenet-200/train/n{number:08}").mkdir(parents=True)
    with pytest.raises(FerdError, match=f"tiny-imagenet-200/train: has {count} folders.*where 200 are"):
        read("tiny-imagenet", tmp_path)


def test_tiny_imagenet_with_another_class_in_a_ones_place_is_refused(tmp_path):
    for number in range(200):
        (tmp_path / f"tiny-imagenet-200/train/n{number:08}").mkdir(parents=True)
    with pytest.raises(
        FerdError, match="tiny-imagenet-200/train: its classes are not those of tiny-imagenet"
    ):
        read("tiny-imagenet", tmp_path)


def cut_off(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def replace_by_text(path: Path) -> None:
    path.write_text("not a JPEG", encoding="utf-8")


def enlarge(path: Path) -> None:
    write_jpeg(path, "n01", size=65)


def make_it_a_png(path: Path) -> None:
    Image.new("RGB", (64, 64)).save(path, format="png")


def misname_a_chunk(path: Path) -> None:
    """A PNG whose pixels are in two chunks, the second of no valid name."""
    pixels = zlib.compress(bytes(8 * (1 + 8)))  # rows of 8 grey pixels, each behind its filter's number
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)),
        (b"IDAT", pixels[:5]),
        (b"\0DAT", pixels[5:]),
    ]
    written = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + written)


def declare_a_billion_pixels(path: Path) -> None:
    content = path.read_bytes()
    start = content.index(b"\xff\xc0") + 5  # height and width in the header of the frame
    path.write_bytes(content[:start] + b"\xff\xff\xff\xff" + content[start + 4 :])


@pytest.mark.parametrize("file", ["train/n02/images/n02_0.JPEG", "val/images/val_4.JPEG"])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut_off, "cut off or damaged"),
        (replace_by_text, "cut off or damaged"),
        (declare_a_billion_pixels, "cut off or damaged"),
        (make_it_a_png, "cut off or damaged"),
        (enlarge, "is 65×65 where 64×64 is expected"),
    ],
)
def test_a_spoilt_jpeg_is_named(tiny, tmp_path, file, spoil, words):
    spoil(tiny / file)
    with pytest.raises(FerdError, match=f"{tiny / file}: {words}") as raised:
        load_splits(TINY.model_copy(update={"train_per_class": 2, "test_per_class": 0}), tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("val_4.JPEG\tn02", "val_4.JPEG\tn09", r"val_annotations\.txt, line 5: 'n09' is not a class"),
        ("val_4.JPEG\tn02", "val_4.JPEG", r"val_annotations\.txt, line 5: '0' is not a class"),
        ("val_5.JPEG\tn01\t0\t0\t62\t62\n", "val_5.J", r"val_annotations\.txt, line 6: '' is not a class"),
        ("val_5.JPEG\tn01\t0\t0\t62\t62\n", "", r"val_annotations\.txt: lists 1 to 2 images a class"),
        ("val_4.JPEG", "val_6.JPEG", r"val_6\.JPEG: listed, but missing"),
    ],
)
def test_a_fault_in_the_annotations_is_named(tiny, tmp_path, old, new, words):
    annotations = tiny / "val/val_annotations.txt"
    text = annotations.read_text()
    assert old in text
    annotations.write_text(text.replace(old, new))
    with pytest.raises(FerdError, match=words) as raised:
        read("tiny-imagenet", tmp_path)
    assert "\n" not in str(raised.value)


def test_empty_annotations_are_refused(tiny, tmp_path):
    (tiny / "val/val_annotations.txt").write_text("")
    with pytest.raises(FerdError, match="lists 0 to 0 images a class"):
        read("tiny-imagenet", tmp_path)


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("train", "train: has 0 folders of classes"),
        ("train/n03", "train: has 2 folders of classes"),
        ("train/n03/images", r"train/n03/images: missing or without \*.JPEG"),
        ("val", "val: cannot be read"),
        ("val/images", "val: cannot be read"),
        ("val/val_annotations.txt", "val: cannot be read"),
        ("val/images/val_0.JPEG", "val_0.JPEG: listed, but missing"),
    ],
)
def test_a_missing_piece_of_tiny_imagenet_is_named(tiny, tmp_path, missing, words):
    (tiny / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(FerdError, match=words) as raised:
        read("tiny-imagenet", tmp_path)
    assert str(tiny) in str(raised.value) and "\n" not in str(raised.value)


@pytest.fixture
def real() -> Path:
    """The folder of real image sets."""
    if "FERD_DATA" not in os.environ:
        pytest.skip("FERD_DATA is not set: no real image sets")
    return Path(os.environ["FERD_DATA"])


def present(folder: Path) -> Path:
    """The folder, or the test is skipped."""
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")
    return folder


def test_cifar10_has_its_shapes_and_balanced_classes(real):
    present(real / "cifar-10-batches-py")
    train, test = (everything(part) for part in read("cifar10", real))
    assert train.images.shape == (50_000, 3, 32, 32) and train.images.dtype == torch.uint8
    assert test.images.shape == (10_000, 3, 32, 32)
    assert train.labels.bincount().tolist() == [5000] * 10
    assert test.labels.bincount().tolist() == [1000] * 10
    assert train.images[0, :, 0, 0].tolist() == [59, 62, 63]  # the first image is a frog
    assert DATASETS["cifar10"].class_names[train.labels[0]] == "frog"


def test_cifar100_has_its_shapes_and_balanced_classes(real):
    present(real / "cifar-100-python")
    train, test = (everything(part) for part in read("cifar100", real))
    assert train.images.shape == (50_000, 3, 32, 32) and train.images.dtype == torch.uint8
    assert test.images.shape == (10_000, 3, 32, 32)
    assert train.labels.bincount().tolist() == [500] * 100
    assert test.labels.bincount().tolist() == [100] * 100


def test_tiny_imagenet_has_its_shapes_balanced_classes_and_grey_images(real):
    present(real / "tiny-imagenet-200")
    train, test = read("tiny-imagenet", real)
    assert test.labels.bincount().tolist() == [50] * 200
    assert len(set(train.labels.bincount().tolist())) == 1
    images = everything(test).images
    assert images.shape == (10_000, 3, 64, 64) and images.dtype == torch.uint8
    grey = ((images[:, 0] == images[:, 1]) & (images[:, 1] == images[:, 2])).flatten(1).all(1)
    assert 0.01 < grey.float().mean() < 0.03


def test_names_of_tiny_imagenet_are_those_of_its_words(real):
    folder = present(real / "tiny-imagenet-200")
    words = dict(line.split("\t") for line in (folder / "words.txt").read_text().splitlines())
    numbers = sorted(path.name for path in (folder / "train").iterdir())
    names = [words[number].split(",")[0].replace(" ", "_") for number in numbers]
    assert DATASETS["tiny-imagenet"].class_names == tuple(names)


OWN = ImageFolder(folder="mine", classes=["b", "a"], channels=3, image_size=8)


def write_own(root: Path, channels: int = 3) -> Path:
    """Three training images of each class, one test image."""
    return make_own(root, "mine", OWN.classes, {"train": 3, "test": 1}, channels)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_of_ones_own_is_read_class_by_class_to_the_pixel(tmp_path, channels):
    folder = write_own(tmp_path, channels)
    own = OWN.model_copy(update={"channels": channels})
    train, test = (everything(part) for part in read(own, tmp_path))
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1] and test.labels.tolist() == [0, 1]
    assert train.images.shape == (6, channels, 8, 8)
    with Image.open(folder / "train/a/1.png") as image:  # class 1 by the order that was given
        pixels = np.asarray(image).reshape(8, 8, channels)
    assert np.array_equal(train.images[4].permute(1, 2, 0).numpy(), pixels)
    facts = dataset(own)
    assert (facts.class_names, facts.channels, facts.size) == (("b", "a"), channels, 8)


def test_splits_of_ones_own_folder_are_written_and_read(tmp_path):
    write_own(tmp_path)
    data = Data(dataset=OWN, train_per_class=2, validation_per_class=1, test_per_class=0)
    splits = load_splits(data, tmp_path)
    assert {name: len(part.labels) for name, part in splits.items()} == {
        "train": 4,
        "validation": 2,
        "test": 2,
    }
    save_images(tmp_path / "train.safetensors", splits["train"])
    assert torch.equal(load_images(tmp_path / "train.safetensors").images, splits["train"].images)


def test_grey_and_colour_become_what_is_asked_for(tmp_path):
    write_own(tmp_path, channels=1)
    train, _ = read(OWN, tmp_path)
    images = everything(train).images
    assert torch.equal(images[:, 0], images[:, 2])


def copy_all(source: Path, target: Path) -> None:
    for file in source.iterdir():
        shutil.copy(file, target / f"9-{file.name}")


def test_an_image_twice_in_one_class_counts_twice(tmp_path):
    folder = write_own(tmp_path)
    copy_all(folder / "train/b", folder / "train/b")
    assert read(OWN, tmp_path)[0].labels.tolist() == [0] * 6 + [1] * 3


def sixteen_bits(path: Path) -> None:
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(path, format="png")


def sixteen_bits_of_colour(path: Path) -> None:
    """By the format itself: Pillow writes none."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\x12\x34" * 3 * 8) * 8)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "test").rename(folder / "val"), r"mine/test: missing; put a folder"),
        (
            lambda folder: (folder / "train/c").mkdir(),
            r"mine/train/c: none of data\.dataset\.classes; add it",
        ),
        (
            lambda folder: (folder / "test/a/0.png").rename(folder / "test/a/0.txt"),
            r"mine/test/a: missing, or without a file in \.png, \.jpg, \.jpeg",
        ),
        (
            lambda folder: cut_off(folder / "train/b/0.png"),
            r"train/b/0\.png: cut off or damaged, or no PNG; mend it",
        ),
        (
            lambda folder: misname_a_chunk(folder / "train/b/0.png"),
            r"train/b/0\.png: cut off or damaged, or no PNG; mend it",
        ),
        (
            lambda folder: make_it_a_png(folder / "train/b/0.png"),
            r"train/b/0\.png: is 64×64 where 8×8 is expected; mend it",
        ),
        (
            lambda folder: enlarge(folder / "train/b/0.png"),
            r"train/b/0\.png: cut off or damaged, or no PNG; mend it",
        ),
        (
            lambda folder: sixteen_bits(folder / "train/b/0.png"),
            r"train/b/0\.png: has more than 8 bits a channel",
        ),
        (
            lambda folder: sixteen_bits_of_colour(folder / "train/b/0.png"),
            r"train/b/0\.png: has more than 8 bits a channel",
        ),
        (
            lambda folder: shutil.copy(folder / "train/b/0.png", folder / "test/b/9.png"),
            r"test/b/9\.png: is the same file as .*train/b/0\.png; keep an image in one class, in train/ or",
        ),
        (
            lambda folder: copy_all(folder / "train/b", folder / "train/a"),
            r"train/a/9-0\.png: is the same file as .*train/b/0\.png \(there are 3 such files\)",
        ),
        (
            lambda folder: (folder / "test/a/9.png").mkdir(),
            r"test/a/9\.png: cannot be read: Is a dir.*; mend",
        ),
    ],
)
def test_a_fault_in_ones_own_folder_is_named(tmp_path, spoil, said):
    spoil(write_own(tmp_path))
    with pytest.raises(FerdError, match=said) as raised:
        everything(read(OWN, tmp_path)[0])
    assert "\n" not in str(raised.value)


def test_ones_own_folder_needs_the_variable(tmp_path):
    with pytest.raises(FerdError, match="FERD_DATA is not set; set it to the folder that holds mine"):
        read(OWN, None)
