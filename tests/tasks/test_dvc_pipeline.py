"""What else runs stages of a folder is waited for."""

from concurrent.futures import ThreadPoolExecutor, wait
from types import SimpleNamespace

import pytest
from dvc import rwlock
from dvc.dependency import param
from dvc.lock import LockError
from dvc.repo import Repo

from ferd.errors import FerdError
from tasks import dvc_patches, dvc_pipeline


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A folder of DVC's with one stage."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\nno_scm = true\nanalytics = false\n")
    (tmp_path / "dvc.yaml").write_text("stages: {one: {cmd: echo, outs: [a]}, two: {cmd: echo, deps: [a]}}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pauses(monkeypatch):
    """Those that are made, which take no time."""
    made = []
    monkeypatch.setattr(dvc_pipeline, "time", SimpleNamespace(sleep=made.append))
    return made


def test_what_is_busy_is_tried_again_after_ever_longer_pauses_and_told_of_once(pauses, capsys):
    answers = [LockError("it\nis locked")] * 7

    def work():
        if answers:
            raise answers.pop()
        return "done"

    assert dvc_pipeline.when_free(work) == "done"
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    said = "waiting: another process is running stages of this folder (it is locked)\n"
    assert capsys.readouterr().out == said


def test_another_fault_is_not_waited_for(pauses):
    def work():
        raise FerdError("it is wrong")

    with pytest.raises(FerdError, match=r"^it is wrong$"):
        dvc_pipeline.when_free(work)
    assert pauses == []


def test_a_pipeline_is_read_by_functions_of_this_project(repository, monkeypatch):
    monkeypatch.setattr(rwlock, "rwlock", dvc_patches._hold_by_dvc)
    monkeypatch.setattr(param, "read_param_file", dvc_patches._read_by_dvc)
    assert dvc_pipeline.Pipeline()._needs == {"one": [], "two": ["one"]}
    assert rwlock.rwlock is dvc_patches.hold and param.read_param_file is dvc_patches.read_param_file


def test_a_pipeline_is_read_once_no_other_process_writes_its_lock(repository, monkeypatch):
    monkeypatch.setattr("dvc.lock.DEFAULT_TIMEOUT", 0.06)  # how long DVC waits that is not told to wait
    with ThreadPoolExecutor() as threads, Repo(".") as other:
        with other.lock:
            reading = threads.submit(dvc_pipeline.Pipeline)
            assert not wait([reading], timeout=2).done
        assert list(reading.result(60)._known) == ["one", "two"]
