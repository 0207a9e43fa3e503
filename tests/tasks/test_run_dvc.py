"""What DVC writes is whole or not there, and the same bytes as DVC itself writes."""

import os
import runpy
import subprocess
import sys

import pytest
from dvc import rwlock
from dvc.dependency import param
from dvc.utils.serialize import _yaml, dump_yaml, modify_yaml

from ferd.errors import FerdError
from tasks import dvc_params, dvc_rwlock, run_dvc
from tests.conftest import ROOT, environment, wait_until


@pytest.fixture
def replaced(monkeypatch):
    for name in ("_dump_data", "_modify_data"):
        monkeypatch.setattr(_yaml, name, getattr(_yaml, name))  # put back afterwards
    run_dvc.replace_functions()


@pytest.fixture
def lock(tmp_path):
    path = tmp_path / "dvc.lock"
    path.write_bytes((ROOT / "dvc.lock").read_bytes())
    return path


def change(path):
    with modify_yaml(str(path)) as content:
        content["stages"]["sources"]["cmd"] = "python -m tasks.others"


def test_a_changed_lock_is_the_bytes_that_dvc_writes(lock, tmp_path, replaced, monkeypatch):
    change(lock)
    ours = lock.read_bytes()
    lock.write_bytes((ROOT / "dvc.lock").read_bytes())
    monkeypatch.undo()
    change(lock)
    assert ours == lock.read_bytes() != (ROOT / "dvc.lock").read_bytes()
    assert list(tmp_path.iterdir()) == [lock]


def test_a_lock_that_stays_as_it_was_is_not_written_again(lock, replaced):
    before = lock.stat()
    with modify_yaml(str(lock)) as content:
        content["stages"] = dict(content["stages"])
    assert (lock.stat().st_ino, lock.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_file_of_settings_keeps_its_comments(tmp_path, replaced):
    path = tmp_path / "params.yaml"
    path.write_text("gamma: 0.5 # the paper's\n")
    with modify_yaml(str(path)) as content:
        content["gamma"] = 0.3
    assert path.read_text() == "gamma: 0.3 # the paper's\n"


def test_a_write_that_fails_leaves_what_was_there(lock, tmp_path, replaced, monkeypatch):
    def full(data, stream):
        stream.write("schema: '2.0'\n")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_yaml, "_dump", full)
    with pytest.raises(FerdError, match=r"dvc\.lock: cannot be written: No space left on device; free space"):
        change(lock)
    with pytest.raises(FerdError, match="No space left"):
        dump_yaml(str(lock), {})
    assert lock.read_bytes() == (ROOT / "dvc.lock").read_bytes()
    assert list(tmp_path.iterdir()) == [lock]


def test_a_file_that_is_not_there_is_made_even_where_nothing_is_in_it(tmp_path, replaced):
    path = tmp_path / "new.lock"
    with modify_yaml(str(path)) as content:
        assert content == {}
    assert path.read_text() == "{}\n"


def test_no_file_of_another_machine_is_taken_for_one_of_this(tmp_path):
    with pytest.raises(TypeError, match=r"new\.lock: not a file of this machine$"):
        run_dvc.dump_whole(str(tmp_path / "new.lock"), {}, print, fs=object())
    assert list(tmp_path.iterdir()) == []


def test_as_a_command_it_is_dvcs_own_and_ends_as_that_does(monkeypatch):
    places = [
        (_yaml, "_dump_data", _yaml._dump_data, "dump_whole"),
        (_yaml, "_modify_data", _yaml._modify_data, "modified"),
        (rwlock, "_edit_rwlock", dvc_rwlock._by_dvc, "edit"),
        (param, "read_param_file", dvc_params._by_dvc, "read"),
    ]
    for module, name, by_dvc, _ in places:
        monkeypatch.setattr(module, name, by_dvc)

    def main(arguments):
        assert arguments == ["repro", "sources"]
        for module, name, _, ours in places:
            assert getattr(module, name).__name__ == ours
        return 251

    monkeypatch.setattr("dvc.cli.main", main)
    monkeypatch.setattr(sys, "argv", ["run_dvc", "repro", "sources"])
    monkeypatch.delitem(sys.modules, "tasks.run_dvc")
    with pytest.raises(SystemExit, match=r"^251$"):
        runpy.run_module("tasks.run_dvc", run_name="__main__")


STOPPED = """
import sys, time
from dvc.utils.serialize import _yaml, modify_yaml
from tasks import run_dvc

def slow(data, stream):
    stream.write("schema: '2.0'\\n")
    stream.flush()
    time.sleep(60)

run_dvc.replace_functions()
_yaml._dump = slow
with modify_yaml(sys.argv[1]) as content:
    content["stages"] = {}
"""


def test_a_stop_while_a_lock_is_written_leaves_what_was_there(lock, tmp_path):
    own = environment() | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", STOPPED, str(lock)], env=own) as writing:
        wait_until(lambda: any(".part-" in name for name in os.listdir(tmp_path)))
        writing.terminate()
    assert lock.read_bytes() == (ROOT / "dvc.lock").read_bytes()
