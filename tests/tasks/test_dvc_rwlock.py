"""DVC's list of who has which files is whole, whatever happens while it is written."""

import errno
import json
import resource

import pytest
from dvc import rwlock
from dvc.exceptions import DvcException
from dvc.fs import localfs

from ferd.errors import FerdError
from tasks import dvc_rwlock
from tasks.dvc_pipeline import plain_errors


@pytest.fixture
def holding(tmp_path, monkeypatch):
    """Holds a file for writing, as a stage of DVC does."""
    monkeypatch.setattr(rwlock, "_edit_rwlock", dvc_rwlock.edit)
    return lambda name: rwlock.rwlock(str(tmp_path), localfs, "a command", [], [str(tmp_path / name)], False)


def test_the_list_is_dvcs_own(tmp_path, holding):
    with holding("out"):
        held = json.loads((tmp_path / "rwlock").read_text())
        assert list(held["write"]) == [str(tmp_path / "out")]
    assert not any(json.loads((tmp_path / "rwlock").read_text()).values())


def test_a_list_that_fits_is_written_over_the_one_that_is_there(tmp_path, holding):
    with holding("out"):
        before = (tmp_path / "rwlock").stat()
        with holding("other"):
            held = json.loads((tmp_path / "rwlock").read_text())
            assert len(held["write"]) == 2
        assert len(json.loads((tmp_path / "rwlock").read_text())["write"]) == 1
        after = (tmp_path / "rwlock").stat()
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size) == (before.st_ino, 4096)


def test_a_list_that_does_not_fit_replaces_the_one_that_is_there(tmp_path, holding):
    with holding("out"):
        before = (tmp_path / "rwlock").stat()
        with holding("long" * 1100):
            assert len(json.loads((tmp_path / "rwlock").read_text())["write"]) == 2
            after = (tmp_path / "rwlock").stat()
    assert after.st_ino != before.st_ino and after.st_size == 8192


def test_a_list_that_may_not_be_written_over_is_replaced(tmp_path, holding, monkeypatch):
    opened = dvc_rwlock.Path.open

    def refused(path, *mode, **options):  # a user who is root may anything
        if path.name == "rwlock" and mode == ("rb+",):
            raise PermissionError
        return opened(path, *mode, **options)

    with holding("out"):
        before = (tmp_path / "rwlock").stat()
        monkeypatch.setattr(dvc_rwlock.Path, "open", refused)
    assert (tmp_path / "rwlock").stat().st_ino != before.st_ino


def test_on_a_full_disk_the_list_stays_as_it_was(tmp_path, holding, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with holding("out"):
        before = (tmp_path / "rwlock").read_bytes()
        with monkeypatch.context() as patched:
            patched.setattr(dvc_rwlock.Path, "write_bytes", full)
            with pytest.raises(FerdError, match="rwlock: cannot be written: No space"), holding("x" * 5000):
                pass
        assert (tmp_path / "rwlock").read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if ".part-" in path.name]


@pytest.mark.parametrize("bytes_taken", [0, 2048])
def test_a_list_that_cannot_be_written_over_stays_as_it_was(tmp_path, bytes_taken):
    whole = b"{}".ljust(4096)
    (tmp_path / "rwlock").write_bytes(whole)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_taken, hard))
    try:
        with pytest.raises(FerdError, match="rwlock"):
            dvc_rwlock.overwrite(tmp_path / "rwlock", b'{"write": {}}')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "rwlock").read_bytes() == whole


def test_a_list_that_fits_to_the_byte_is_written_over_and_one_that_fails_half_way_is_not(tmp_path):
    path = tmp_path / "rwlock"
    path.write_bytes(b"{}".ljust(4096))
    before = path.stat().st_ino
    dvc_rwlock.overwrite(path, 2048 * b"[]")
    assert path.stat().st_ino == before and path.read_bytes() == 2048 * b"[]"
    with pytest.raises(ValueError, match="half-way"), dvc_rwlock.Whole(localfs).open(path, "w") as file:
        file.write("{")
        raise ValueError("half-way")
    assert path.read_bytes() == 2048 * b"[]"


@pytest.mark.parametrize("hardlink", [False, True])
def test_dvc_edits_it_so_and_locks_it_as_it_is_told(monkeypatch, hardlink):
    monkeypatch.setattr(rwlock, "_edit_rwlock", dvc_rwlock._by_dvc)
    dvc_rwlock.write_whole()
    monkeypatch.setattr(dvc_rwlock, "_by_dvc", lambda *given: given)
    folder, fs, linked = rwlock._edit_rwlock("folder", localfs, hardlink)
    assert (folder, type(fs), linked) == ("folder", dvc_rwlock.Whole, hardlink)


def test_a_list_that_dvc_itself_left_empty_is_named_with_what_to_do(tmp_path, holding):
    (tmp_path / "rwlock").touch()
    said = r"JSON structure is corrupted.*; where no other process .*, delete \.dvc/tmp/rwlock$"
    with pytest.raises(FerdError, match=said), plain_errors(), holding("out"):
        pass


def test_a_damaged_lock_is_told_with_what_to_do():
    said = r"^dvc: unable to read: 'dvc\.lock', .* is corrupted; `git checkout dvc\.lock`$"
    with pytest.raises(FerdError, match=said), plain_errors():
        raise DvcException("unable to read: 'dvc.lock', YAML file structure is corrupted")
