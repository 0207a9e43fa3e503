import errno
import json
import os
import resource
import time
from contextlib import contextmanager

import pytest
import torch

from ferd.checkpoint import save_classifier, save_state
from ferd.errors import FerdError
from ferd.files import atomic_write, read_json, read_json_lines, write_json, write_json_lines
from ferd.models.registry import build


def write(path, text):
    with atomic_write(path) as part:
        part.write_text(text)


@contextmanager
def files_limited_to(size):
    """Every longer write fails half-way, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WRITERS = {
    "json": lambda path: write_json(path, list(range(5000))),
    "json lines": lambda path: write_json_lines(path, [{"a": n} for n in range(5000)]),
    "state": lambda path: save_state(path, {"a": torch.zeros(10_000)}),
    "classifier": lambda path: save_classifier(
        path, build("resnet8-w8", classes=10, channels=1), "resnet8-w8"
    ),
}


def assert_one_line(error, path):
    assert str(path) in str(error)
    assert "\n" not in str(error)


def test_a_file_is_written_with_its_folders_and_nothing_else(tmp_path):
    write(tmp_path / "a" / "b" / "c.txt", "content")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "content"
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["c.txt"]


def test_the_old_file_is_whole_until_the_block_ends(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with atomic_write(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_a_block_that_raises_leaves_the_old_file_and_no_part(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyError), atomic_write(path) as part:
        part.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_one_line(regular_file):
    path = regular_file / "a.json"
    with pytest.raises(FerdError) as raised:
        write(path, "content")
    assert_one_line(raised.value, path)
    assert regular_file.read_text() == "not a folder"


def test_a_full_disk_at_the_last_moment_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(FerdError, match="No space left on device") as raised:
        write(path, "new")
    assert_one_line(raised.value, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", WRITERS)
def test_a_write_that_fails_half_way_is_one_line_and_leaves_the_old_file(tmp_path, name):
    path = tmp_path / "file"
    path.write_text("old")
    with files_limited_to(4096), pytest.raises(FerdError) as raised:
        WRITERS[name](path)
    assert_one_line(raised.value, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_what_was_given(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 0.1], "a": None})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"b": [1, 0.1], "a": None}
    assert text.endswith("}\n") and '"b": [1, 0.1]' in text
    write_json_lines(tmp_path / "a.jsonl", [{"round": 1}, {"round": 2}])
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"round": 1}, {"round": 2}]


def test_only_lists_of_numbers_are_on_one_line(tmp_path):
    content = {"matrix": [[None, 0.5], [-1e-7, 2]], "names": ["[\n 1\n]", "b"], "none": [], "mixed": [1, "a"]}
    write_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == content
    assert "[null, 0.5],\n" in text and "[-1e-07, 2]\n" in text and '[\n    1,\n    "a"\n' in text


@pytest.mark.parametrize("writer", [write_json, write_json_lines])
def test_nan_is_refused_and_nothing_written(tmp_path, writer):
    with pytest.raises(ValueError, match="JSON"):
        writer(tmp_path / "a.json", [{"loss": float("nan")}])
    assert list(tmp_path.iterdir()) == []


FIELDS = {"seed": int, "student": str | None}
NESTED = {"points": [{"value": float, "result": {"seed": int}}]}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "no such file"),
        (b"", "cut off or damaged"),
        (b'{"seed": 1, "stu', "cut off or damaged"),
        (b'{"seed": "\xe9"}', "not UTF-8"),
        (b"[1]", r"must be an object, found \[1\]"),
        (b"{}", "schema is None, not 'ferd-x/1'"),
        (b'{"schema": "ferd-x/1", "seed": 1}', "lacks 'student'"),
        (b'{"schema": "ferd-x/1", "seed": "a", "student": null}', "seed: cannot be 'a'"),
    ],
)
def test_json_that_is_damaged_is_one_line_with_what_to_do(tmp_path, content, fault):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FerdError, match=f"{fault}.*run the stage") as raised:
        read_json(path, FIELDS, schema="ferd-x/1", again="run the stage")
    assert_one_line(raised.value, path)


def test_json_that_is_whole_is_read_with_all_its_keys(tmp_path):
    write_json(tmp_path / "a.json", {"seed": 1, "student": None, "more": [1]})
    assert read_json(tmp_path / "a.json", FIELDS) == {"seed": 1, "student": None, "more": [1]}
    write_json_lines(tmp_path / "a.jsonl", [{"seed": 1}, {"seed": 2}])
    assert read_json_lines(tmp_path / "a.jsonl", {"seed": int}) == [{"seed": 1}, {"seed": 2}]


def test_a_folder_in_place_of_json_is_one_line(tmp_path):
    with pytest.raises(FerdError, match="cannot be read: Is a directory") as raised:
        read_json(tmp_path)
    assert_one_line(raised.value, tmp_path)


@pytest.mark.parametrize(
    ("text", "fault"),
    [("", "empty"), ('{"seed": 1}\n{"se', "line 2: cut off"), ('{"seed": 1}\n{}\n', "line 2: lacks 'seed'")],
)
def test_a_damaged_line_is_named_by_its_number(tmp_path, text, fault):
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(FerdError, match=f"{fault}.*; delete the file and run the stage") as raised:
        read_json_lines(path, {"seed": int})
    assert_one_line(raised.value, path)


@pytest.mark.parametrize(
    ("points", "fault"),
    [
        ({}, r"points: cannot be \{\}"),
        ([1], r"points\[0\]: must be an object, found 1"),
        ([{"value": 0.1, "result": {"seed": 0}}, {"value": 0.1}], r"points\[1\]: lacks 'result'"),
        ([{"value": 0.1, "result": {"seed": None}}], r"points\[0\]: result: seed: cannot be None"),
    ],
)
def test_a_fault_inside_is_named_by_its_place(tmp_path, points, fault):
    write_json(tmp_path / "a.json", {"points": points})
    with pytest.raises(FerdError, match=f"{fault}; delete the file and run the stage") as raised:
        read_json(tmp_path / "a.json", NESTED)
    assert_one_line(raised.value, tmp_path / "a.json")


def test_what_a_writer_that_was_killed_left_is_removed_by_a_later_one(tmp_path):
    """Not what another one is writing just now, nor what is of another file."""
    target = tmp_path / "a[1].txt"
    names = (".a[1].txt.part-1", ".a[1].txt.part-2", ".a1.txt.part-1")
    old, new, other = (tmp_path / name for name in names)
    for path in (old, new, other):
        path.touch()
        if path is not new:
            os.utime(path, (time.time() - 7200,) * 2)
    with atomic_write(target) as part:
        part.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([target.name, new.name, other.name])
