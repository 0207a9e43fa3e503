"""What stage commands share: events, ends of a process in one line, the resume folder."""

import errno
import io
import json
import os
import shutil
import sys
import threading
from contextlib import nullcontext, redirect_stderr
from functools import reduce
from operator import getitem
from types import SimpleNamespace

import pytest
import torch
import yaml

from ferd.errors import FerdError, Unreachable
from tasks import process, slots, stage
from tests.conftest import ROOT, tiny_params, wait_until

FERD = "distill digits/resnet8-w8/ferd/s0"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_stage_outside_of_a_flow_does_not_wait(folder, monkeypatch, capsys):
    monkeypatch.setenv(slots.SLOTS, "1")
    held = slots.take(range(1))
    monkeypatch.delenv(slots.SLOTS)
    with process.running("report") as progress:
        progress.start()
    assert [line.split('"event": ')[1] for line in capsys.readouterr().out.splitlines()] == [
        '"computing"}',
        '"computed"}',
    ]
    held.close()


def test_a_stage_gives_its_slot_back_when_it_has_computed(folder, monkeypatch):
    monkeypatch.setenv(slots.SLOTS, "1")

    def twice():
        for _ in range(2):  # the second would wait for ever
            with process.running("report") as progress:
                progress.start()

    computing = threading.Thread(target=twice, daemon=True)
    computing.start()
    computing.join(30)
    assert not computing.is_alive()


def test_a_person_at_a_terminal_reads_words(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    progress = process.Progress(FERD)
    progress.start(done=1)
    progress.advance(2, 2, unit="round", agreement=0.98437)
    progress.event("measured", n=500, clean=0.774, pgd20=0.47)
    progress.finish()
    assert capsys.readouterr().out.splitlines() == [
        f"{FERD}: round 2 of 2, 0 s left, agreement 0.984",
        f"{FERD}: measured clean 0.774, pgd20 0.47",
    ]


def test_without_standard_output_a_stage_says_nothing(folder, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)  # as Python has it after `>&-`
    with process.running("report") as progress:
        progress.start()
        progress.advance(1, 2)


def test_a_stage_that_nobody_reads_any_more_ends_as_by_sigpipe(folder, monkeypatch, capfd):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf-8") as unread:
        monkeypatch.setattr(sys, "stdout", unread)
        with pytest.raises(SystemExit) as ended, process.running("report") as progress:
            progress.start()
    assert (ended.value.code, capfd.readouterr().err) == (141, "")


def test_a_stages_modules_are_found_whatever_its_caller_has(folder, monkeypatch):
    (folder / "telling.py").write_text("print('found')", "utf-8")
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    with stage._started("s", ["telling"], None, folder) as started:
        assert started.stdout.read() == "found\n"


def test_a_process_that_watches_reads_json(capsys):
    process.Progress(FERD).advance(1, 2, unit="round")
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) | {"seconds_left": 0} == {
        "task": FERD,
        "event": "progress",
        "done": 1,
        "total": 2,
        "seconds_left": 0,
        "unit": "round",
    }


def test_seconds_are_those_of_computing_and_what_is_left_is_of_the_rounds_of_this_attempt(
    monkeypatch, capsys
):
    now = [0.0]
    monkeypatch.setattr(
        process, "time", SimpleNamespace(monotonic=lambda: now[0], process_time=lambda: now[0] / 2)
    )
    progress = process.Progress(FERD)
    now[0] = 100.0  # as long as it waited for a place
    progress.start(done=2)
    assert (progress.seconds, progress.processor_seconds) == (0.0, 0.0)
    now[0] = 110.0
    progress.advance(4, 8)
    assert (progress.seconds, progress.processor_seconds) == (10.0, 5.0)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["seconds_left"] == 20


@pytest.mark.parametrize(("done", "resumed"), [(0, False), (1, True)])
def test_an_attempt_that_goes_on_is_told_from_a_first_one(done, resumed):
    progress = process.Progress(FERD)
    progress.start(done)
    assert progress.resumed is resumed


@pytest.mark.parametrize(
    ("error", "retryable"), [(FerdError("it is wrong"), False), (Unreachable("it is away"), True)]
)
def test_only_a_service_that_does_not_answer_is_worth_another_try(
    folder, monkeypatch, capsys, error, retryable
):
    """Its run in MLflow stays open for that."""
    ended = []
    monkeypatch.setattr(process.tracking, "fail_unfinished", lambda: ended.append("failed"))
    with pytest.raises(SystemExit) as raised, process.running("report"):
        raise error
    assert raised.value.code == process.BAD_INPUT
    (line,) = capsys.readouterr().out.splitlines()
    said = {"task": "report", "event": "error", "message": str(error), "retryable": retryable}
    assert json.loads(line) == said and ended == ([] if retryable else ["failed"])


@pytest.mark.parametrize("keeps", ["", "1"])
def test_who_keeps_what_a_stage_could_go_on_from_is_told_where_it_is(folder, monkeypatch, capsys, keeps):
    monkeypatch.setenv(process.KEEPS_RESUME, keeps)
    with process.running(FERD) as progress:
        state = progress.resume_folder(1)
        state.mkdir(parents=True)
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    told = [event["folder"] for event in events if event["event"] == "resumable"]
    assert told == ([str(state)] if keeps else []) and state.exists() is bool(keeps)


@pytest.mark.parametrize(("task", "required"), [(FERD, ["distill"]), ("infer digits", [])])
def test_a_stage_that_dvc_runs_is_of_the_code_that_dvc_records(folder, monkeypatch, task, required):
    commands = []
    monkeypatch.setattr(process.lineage, "require", commands.append)
    monkeypatch.setattr(process.params, "used_by", lambda _: None)
    with process.running(task):
        pass
    assert not commands  # run by hand
    monkeypatch.setenv("DVC_STAGE", "any")
    with process.running(task):
        pass
    assert commands == required


def test_a_folder_takes_the_place_of_an_earlier_one_and_stays_where_it_was(folder):
    for name in ("pool/new", "s0.pool/old", ".s0.pool.part-1/half"):
        (folder / name).parent.mkdir()
        (folder / name).touch()
    os.utime(folder / ".s0.pool.part-1", (0, 0))  # a killed process's
    process.move_folder(folder / "pool", folder / "s0.pool")
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == [
        "pool",
        "pool/new",
        "s0.pool",
        "s0.pool/new",
    ]


def test_a_folder_is_moved_without_what_a_killed_writer_left(folder):
    source = folder / "pool"
    source.mkdir()
    (source / "round-0001.safetensors").write_bytes(b"whole")
    (source / ".round-0002.safetensors.part-4711").write_bytes(b"ha")
    process.move_folder(source, folder / "checkpoints/s0.pool")
    assert [path.name for path in (folder / "checkpoints/s0.pool").iterdir()] == ["round-0001.safetensors"]


def test_a_task_is_done_by_one_process_at_a_time(folder):
    finished = []

    def second():
        with process.running("distill a/b/s0"):
            finished.append("second")

    with process.running("distill a/b/s0"):
        waiting = threading.Thread(target=second)
        said = "distill a/b/s0: waiting for another process that does the same"
        with redirect_stderr(io.StringIO()) as stderr:
            waiting.start()
            wait_until(lambda: said in stderr.getvalue())
        with process.running("distill a/b/s1"):
            finished.append("another")
        finished.append("first")
    waiting.join(60)
    assert finished == ["another", "first", "second"]


@pytest.mark.parametrize("reason", [errno.EXDEV, errno.EPERM, errno.ENOTSUP])  # another disk; exFAT; CIFS
def test_a_folder_that_cannot_be_linked_is_copied_without_what_killed_writers_left(
    folder, monkeypatch, reason
):
    def refuse(source, target):
        raise OSError(reason, os.strerror(reason))

    source = folder / "pool"
    source.mkdir()
    for name in ("round-0001.safetensors", ".tmpAO8QXd", ".round-0002.safetensors.part-7"):
        (source / name).write_text(name)
    monkeypatch.setattr(os, "link", refuse)
    process.move_folder(source, folder / "checkpoints" / "s0.pool")
    assert [path.name for path in (folder / "checkpoints" / "s0.pool").iterdir()] == [
        "round-0001.safetensors"
    ]
    assert (
        folder / "checkpoints" / "s0.pool" / "round-0001.safetensors"
    ).read_text() == "round-0001.safetensors"


def test_a_folder_that_cannot_be_copied_is_one_line_with_the_reason(folder, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("pool", "s0.pool"):
        (folder / name).mkdir()
        (folder / name / "round-0001.safetensors").touch()
    monkeypatch.setattr(process, "_link_or_copy", full)
    with pytest.raises(
        FerdError, match=r"s0\.pool: cannot be written: \[Errno 28\] No space left on device$"
    ):
        process.move_folder(folder / "pool", folder / "s0.pool")
    assert sorted(path.name for path in folder.iterdir()) == ["pool", "s0.pool"]
    assert (folder / "s0.pool/round-0001.safetensors").exists()


def test_states_of_other_settings_stay_until_the_stage_has_finished(folder):
    """A start without the GPU, or an edit that is taken back, costs no rounds."""
    states = [process.resume_folder("distill a/b/s0", setting) for setting in (1, 2)]
    another = process.resume_folder("distill a/b/s1", 1)
    for state in (*states, another):
        state.mkdir(parents=True)
    assert process.resume_folder("distill a/b/s0", 1) == states[0] != states[1]
    assert all(state.exists() for state in states)
    process.discard(states[0])
    assert not any(state.exists() for state in states) and another.exists()


@pytest.mark.parametrize("file", ["ferd/losses.py", "tasks/distill.py", "tasks/process.py"])
def test_a_state_of_other_code_is_another(folder, monkeypatch, file):
    for part in ("ferd", "tasks"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(process, "__file__", str(folder / "tasks/process.py"))
    state = process.resume_folder(FERD, 1)
    with (folder / file).open("a") as code:
        code.write("# a comment\n")
    assert process.resume_folder(FERD, 1) == state
    with (folder / file).open("a") as code:
        code.write("OTHER = 1\n")
    assert process.resume_folder(FERD, 1) != state


def test_a_state_of_another_torch_is_another(folder, monkeypatch):
    states = []
    for version in ("2.7.0", "2.8.0"):
        monkeypatch.setattr(torch, "__version__", version)
        states.append(process.resume_folder(FERD, 1))
    assert states[0] != states[1]


def test_a_folder_that_cannot_be_written_ends_a_stage_with_one_line(folder, capfd):
    with pytest.raises(SystemExit), process.running("report"):
        raise PermissionError(errno.EACCES, "Permission denied", "results/report")
    said = "report: results/report: Permission denied; free space or correct the permissions\n"
    assert capfd.readouterr().err == said


def test_an_interrupt_ends_a_stage_with_one_line(folder, capfd):
    with pytest.raises(SystemExit) as ended, process.running(FERD):
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert capfd.readouterr().err == f"{FERD}: stopped; run it again to go on from here\n"


def test_a_full_gpu_ends_a_stage_with_one_line(folder, capfd):
    with pytest.raises(SystemExit) as ended, process.running("distill x"):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 7.79 GiB."
        )
    assert ended.value.code == process.BAD_INPUT
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("distill x: CUDA out of memory; lower batch_size")


def test_full_memory_ends_a_stage_with_one_line_and_no_other_fault_of_torch_does(folder, capfd):
    with pytest.raises(SystemExit) as ended, process.running("distill x"):
        torch.empty(10**15)
    assert ended.value.code == process.BAD_INPUT
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("distill x: [enforce fail at alloc_cpu.cpp") and "lower batch_size, or run" in line
    with pytest.raises(RuntimeError, match="shape"), process.running("distill x"):
        torch.ones(2).reshape(3)


@pytest.mark.parametrize(
    ("task", "block", "change", "recorded"),
    [
        (FERD, ("methods", "ferd"), {"sampler": "uniform"}, False),
        (FERD, ("methods", "no-fae"), {"sampler": "uniform"}, True),
        (FERD, ("benchmarks", "digits", "augmentation"), {"padding": 3}, False),
        (FERD, ("benchmarks", "digits", "evaluation"), {"batch_size": 7}, True),
        ("report", ("methods", "no-fae"), {"sampler": "uniform"}, False),
    ],
)
def test_settings_that_change_while_a_stage_runs_are_not_recorded(
    folder, monkeypatch, capfd, task, block, change, recorded
):
    """DVC hashes them when the stage has ended; what was computed is taken up by the next attempt."""
    monkeypatch.setenv("DVC_STAGE", task)
    monkeypatch.setattr(process.lineage, "require", lambda _: None)
    settings = tiny_params()
    file = folder / "params.yaml"
    file.write_text(yaml.safe_dump(settings))
    with (
        nullcontext() if recorded else pytest.raises(SystemExit),
        process.running(task) as progress,
    ):
        state = progress.resume_folder(1)
        state.mkdir(parents=True)
        reduce(getitem, block, settings).update(change)
        file.write_text(yaml.safe_dump(settings))
    assert state.exists() is not recorded
    said = capfd.readouterr().err
    assert said == "" if recorded else "settings for this stage were changed while it ran" in said
