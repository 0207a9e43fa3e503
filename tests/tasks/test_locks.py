"""A lock is one process's at a time, and free again when that one has ended, however it did."""

import io
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, suppress
from pathlib import Path

import pytest

from ferd.errors import FerdError
from tasks.locks import held
from tests.conftest import ROOT, wait_until

HOLD = """
import sys, time
from pathlib import Path
from tasks.locks import held

with held(Path(sys.argv[1])):
    print("has it", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that has the lock, and the lock."""
    lock = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "has it\n"
        yield process, lock
        process.kill()


def test_who_waits_says_so_and_has_it_once_the_other_is_killed(holder):
    process, lock = holder
    has_it = threading.Event()

    def second():
        with held(lock, waiting="waiting for the other"):
            has_it.set()

    waiting = threading.Thread(target=second)
    with redirect_stderr(io.StringIO()) as said:  # pytest's capture loses what is written while it is read
        waiting.start()
        wait_until(lambda: said.getvalue() == "waiting for the other\n")
    assert not has_it.is_set()
    process.kill()
    waiting.join(30)
    assert has_it.is_set()


def test_only_one_of_two_that_wait_has_what_a_killed_one_had(holder):
    process, lock = holder
    meeting, met = threading.Barrier(2), []

    def wait():
        with held(lock, waiting="waiting"), suppress(threading.BrokenBarrierError):
            met.append(meeting.wait(1))

    with ThreadPoolExecutor() as threads, redirect_stderr(io.StringIO()) as said:
        waiting = [threads.submit(wait) for _ in range(2)]
        try:
            wait_until(lambda: said.getvalue().count("waiting") == 2)
        finally:
            process.kill()  # or they wait
        for one in waiting:
            one.result(30)
    assert met == []


def test_who_is_not_to_wait_is_refused(holder):
    _, lock = holder
    with pytest.raises(FerdError, match=r"^another has it$"), held(lock, refusal="another has it"):
        raise AssertionError("not held by the other")


def test_a_free_lock_is_held_without_a_word(tmp_path, capfd):
    for _ in range(2):
        with held(tmp_path / "lock", waiting="never said", refusal="never said"):
            pass
    assert capfd.readouterr().err == "" and list(tmp_path.iterdir()) == []


def test_a_lock_is_free_again_where_the_work_fails(tmp_path):
    for _ in range(2):
        with pytest.raises(ValueError, match="fails"), held(tmp_path / "lock", refusal="it stays held"):
            raise ValueError("fails")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_whose_file_cannot_be_deleted_is_free_again(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError

    monkeypatch.setattr(Path, "unlink", refuse)
    for _ in range(2):
        with held(tmp_path / "lock", refusal="it stays held"):
            pass
    assert (tmp_path / "lock").exists()


def test_who_waited_for_a_file_that_is_deleted_does_not_have_the_next_ones_lock(tmp_path):
    inside, together = [], []

    def enter_often():
        for number in range(200):
            with held(tmp_path / "lock"):
                inside.append(number)
                time.sleep(0)  # to the others
                together.append(len(inside))
                inside.pop()

    with ThreadPoolExecutor(8) as threads:
        for entered in [threads.submit(enter_often) for _ in range(8)]:
            entered.result()
    assert together == [1] * 1600
