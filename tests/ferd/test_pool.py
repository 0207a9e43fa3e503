from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ferd.errors import FerdError
from ferd.pixels import to_float, to_uint8
from ferd.pool import Pool

CPU = torch.device("cpu")


def open_pool(folder, shape=(1, 4, 4), **how):
    return Pool(folder, 20, shape, CPU, **how)


def a_round(number, shape=(1, 4, 4)):
    source = torch.Generator().manual_seed(number)
    images = torch.randint(0, 256, (4, *shape), generator=source).to(torch.uint8)
    return images, torch.randint(0, 10, (4,), generator=source)


@pytest.fixture
def folder(tmp_path):
    """A pool of three rounds."""
    pool = open_pool(tmp_path / "pool")
    for number in range(3):
        pool.append(*a_round(number))
    return tmp_path / "pool"


def assert_rounds(pool, rounds):
    assert pool.rounds == rounds and pool.size == 4 * rounds
    for number in range(rounds):
        images, labels = a_round(number)
        rows = slice(4 * number, 4 * number + 4)
        assert torch.equal(pool.images[rows], images)
        assert torch.equal(pool.labels[rows], labels)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_uint8_value_survives_the_way_to_float_and_back():
    values = torch.arange(256).to(torch.uint8)
    assert torch.equal(to_uint8(to_float(values)), values)
    assert to_float(values).min() == 0 and to_float(values).max() == 1
    assert to_uint8(torch.tensor([0.0, 0.0021, 0.499, 1.0])).tolist() == [0, 1, 127, 255]


@pytest.mark.parametrize("pixels", [[0.0, 128.0], [-0.5, 0.5], [0.5, torch.nan]])
def test_floats_that_are_no_pixels_become_no_bytes(pixels):
    with pytest.raises(
        FerdError, match=r"^images from .*, where they must be in \[0, 1\]; divide bytes by 255"
    ):
        to_uint8(torch.tensor(pixels))


def test_appending_leaves_earlier_rows_and_shards_as_they_are(folder):
    pool, before = open_pool(folder), contents(folder)
    earlier = pool.images.clone()
    pool.append(*a_round(3))
    assert torch.equal(pool.images[:12], earlier)
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    assert len(after) == 4
    assert_rounds(open_pool(folder), 4)


def test_a_new_pool_is_empty_and_a_reopened_one_whole(tmp_path, folder):
    assert_rounds(open_pool(tmp_path / "new"), 0)
    assert_rounds(open_pool(folder), 3)


def test_colour_images_in_channels_last_order_are_kept(tmp_path):
    images, labels = a_round(0, (3, 4, 4))
    pool = open_pool(tmp_path / "pool", (3, 4, 4))
    pool.append(images.contiguous(memory_format=torch.channels_last), labels)
    assert torch.equal(open_pool(tmp_path / "pool", (3, 4, 4)).images, images)


@pytest.mark.parametrize("left", [0, 1, 8, 60, -1])
def test_a_last_shard_that_was_cut_off_is_dropped(folder, left):
    shard = folder / "round-0003.safetensors"
    shard.write_bytes(shard.read_bytes()[:left])
    pool = open_pool(folder)
    assert_rounds(pool, 2)
    assert not shard.exists()
    pool.append(*a_round(2))
    assert_rounds(open_pool(folder), 3)


def test_a_cut_off_shard_with_later_ones_is_refused_and_nothing_is_deleted(folder):
    shard = folder / "round-0002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    before = contents(folder)
    with pytest.raises(FerdError, match=str(shard)) as raised:
        open_pool(folder)
    assert "\n" not in str(raised.value)
    assert contents(folder) == before


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_keep_rounds_forgets_the_later_ones_on_disk_too(folder, rounds):
    pool = open_pool(folder)
    pool.keep_rounds(rounds)
    assert_rounds(pool, rounds)
    assert_rounds(open_pool(folder), rounds)


def test_a_round_that_is_made_again_counts_in_the_hash_and_the_forgotten_one_does_not(folder, tmp_path):
    pool, fresh = open_pool(folder), open_pool(tmp_path / "fresh")
    pool.keep_rounds(2)
    pool.append(*a_round(7))
    for number in (0, 1, 7):
        fresh.append(*a_round(number))
    assert pool.hash(3) == fresh.hash(3)


@pytest.mark.parametrize("grows", [True, False])
def test_a_pool_with_a_gap_is_refused(folder, grows):
    (folder / "round-0002.safetensors").unlink()
    before = contents(folder)
    with pytest.raises(FerdError, match=r"round-0002\.safetensors: missing, with later shards") as raised:
        open_pool(folder, grows=grows)
    assert str(folder) in str(raised.value) and "\n" not in str(raised.value)
    assert contents(folder) == before


def test_rounds_are_forgotten_from_the_last_so_that_a_kill_leaves_no_gap(folder, monkeypatch):
    pool, unlink = open_pool(folder), Path.unlink

    def killed_at_the_second(path):
        if path.name == "round-0002.safetensors":
            raise KeyboardInterrupt
        unlink(path)

    monkeypatch.setattr(Path, "unlink", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        pool.keep_rounds(1)
    monkeypatch.undo()
    assert_rounds(open_pool(folder), 2)


def test_a_pool_with_fewer_rounds_than_were_finished_is_refused(folder):
    with pytest.raises(FerdError, match="holds 3 rounds where 4 were finished") as raised:
        open_pool(folder).keep_rounds(4)
    assert str(folder) in str(raised.value) and "\n" not in str(raised.value)


def test_samples_are_float_images_with_their_own_labels(tmp_path):
    pool = open_pool(tmp_path / "pool")
    labels = torch.arange(4)
    images = (labels * 50).to(torch.uint8).view(4, 1, 1, 1).expand(4, 1, 4, 4).contiguous()
    pool.append(images, labels)
    drawn, of = pool.sample(200, torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.float32 and drawn.shape == (200, 1, 4, 4)
    assert torch.allclose(drawn.mean((1, 2, 3)), of * 50 / 255)
    assert set(of.tolist()) == {0, 1, 2, 3}


def test_a_write_that_fails_leaves_the_pool_as_it_was(folder, monkeypatch):
    pool, before = open_pool(folder), contents(folder)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(FerdError, match="No space left"):
        pool.append(*a_round(3))
    assert_rounds(pool, 3)
    assert contents(folder) == before


def test_a_second_process_that_writes_to_the_folder_is_refused_before_it_writes(folder):
    pool, other = open_pool(folder), open_pool(folder)
    pool.append(*a_round(3))
    before = (folder / "round-0004.safetensors").read_bytes()
    with pytest.raises(FerdError, match=r"round-0004\.safetensors: made by another process .* of its own$"):
        other.append(*a_round(4))
    assert other.rounds == 3 and (folder / "round-0004.safetensors").read_bytes() == before
    assert_rounds(open_pool(folder), 4)


def test_a_finished_pool_is_only_read(folder):
    shard = folder / "round-0003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    before = contents(folder)
    with pytest.raises(FerdError, match=f"{shard}: cut off; make .* again") as raised:
        open_pool(folder, grows=False)
    assert "\n" not in str(raised.value)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("images", "what"),
    [
        (
            torch.rand(4, 1, 4, 4),
            r"not torch\.float32 \(4, 1, 4, 4\); floats in \[0, 1\] become bytes by ferd\.pixels\.to_uint8",
        ),
        (
            torch.zeros(4, 3, 4, 4, dtype=torch.uint8),
            r"takes uint8 images \(B, 1, 4, 4\), not torch\.uint8 \(4, 3, 4, 4\)",
        ),
        (torch.zeros(4, 4, 4, dtype=torch.uint8), r"not torch\.uint8 \(4, 4, 4\)"),
        (
            torch.zeros(9, 1, 4, 4, dtype=torch.uint8),
            "holds more than the 20 images of this schedule",
        ),
    ],
)
def test_images_of_another_kind_or_too_many_are_refused_and_nothing_is_written(folder, images, what):
    pool, before = open_pool(folder), contents(folder)
    with pytest.raises(FerdError, match=what) as raised:
        pool.append(images, torch.zeros(len(images), dtype=torch.int64))
    assert "\n" not in str(raised.value)
    assert contents(folder) == before
    assert_rounds(pool, 3)


def test_a_pool_of_grey_images_is_not_opened_as_one_of_colours(folder):
    with pytest.raises(
        FerdError, match=r"takes uint8 images \(B, 3, 4, 4\), not torch\.uint8 \(4, 1, 4, 4\)"
    ):
        open_pool(folder, (3, 4, 4))


@pytest.mark.parametrize(
    "labels", [torch.tensor([3]), torch.tensor([1, 2, 3]), torch.tensor([1.0, 2.0, 3.0, 4.0])]
)
def test_labels_that_are_not_one_an_image_are_refused_and_nothing_is_written(folder, labels):
    pool, before = open_pool(folder), contents(folder)
    with pytest.raises(FerdError, match=r"takes int64 labels \(4,\), one an image, not "):
        pool.append(a_round(3)[0], labels)
    assert contents(folder) == before and pool.rounds == 3


def test_samples_are_of_all_rounds_alike(tmp_path):
    pool = open_pool(tmp_path / "pool")
    for number in range(2):
        pool.append(torch.zeros(4, 1, 4, 4, dtype=torch.uint8), torch.full((4,), number))
    rng = torch.Generator().manual_seed(0)
    of = torch.cat([pool.sample(4, rng)[1] for _ in range(100)])
    assert of.sum().item() == pytest.approx(200, abs=40)  # four standard deviations


def test_rounds_are_in_the_order_of_their_numbers_however_many_there_are(tmp_path):
    one = open_pool(tmp_path / "one", (1, 1, 1))
    one.append(torch.zeros(1, 1, 1, 1, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    (shard,) = (tmp_path / "one").iterdir()
    (tmp_path / "many").mkdir()
    for number in range(10_001):
        (tmp_path / "many" / f"round-{number + 1:04d}.safetensors").symlink_to(shard)
    assert Pool(tmp_path / "many", 10_001, (1, 1, 1), CPU).rounds == 10_001


def test_labels_and_images_in_any_memory_order_are_kept(folder):
    pool = open_pool(folder)
    images, labels = a_round(3)
    pool.append(images.movedim(1, -1).contiguous().movedim(-1, 1), torch.stack([labels, labels], 1)[:, 0])
    assert_rounds(open_pool(folder), 4)


def test_a_file_of_other_tensors_is_refused(folder):
    save_file({"a": torch.zeros(1)}, folder / "round-0004.safetensors")
    with pytest.raises(FerdError, match=r"round-0004\.safetensors: no shard of a pool; move it away"):
        open_pool(folder)
