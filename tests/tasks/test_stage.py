"""One DVC stage as a process: planned in order, its events passed on, its outputs kept on failure."""

import io
import os
import pickle
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, nullcontext, redirect_stdout
from itertools import chain
from pathlib import Path

import pytest
import yaml

from ferd.errors import FerdError
from tasks import dvc_pipeline, process, stage
from tasks.job import Job, methods_of
from tasks.locks import held
from tests.conftest import copy_workspace, environment, wait_until

FERD = "evaluate-digits@resnet8-w8-ferd-s0"
STUDENT = "checkpoints/digits/resnet8-w8/ferd/s0.safetensors"
WARNED = "mlflow: ConnectionError: [Errno 13] Permission denied; keeping metrics"


@pytest.fixture
def here(finished_copy, monkeypatch):
    monkeypatch.chdir(finished_copy)
    return finished_copy


@pytest.fixture(scope="module")
def finished_pipeline(finished, tmp_path_factory):
    """A finished workspace that is only read, and its pipeline."""
    folder = tmp_path_factory.mktemp("read") / "workspace"
    copy_workspace(finished, folder)
    with chdir(folder):
        return folder, dvc_pipeline.Pipeline()


@pytest.fixture
def pipeline(finished_pipeline, monkeypatch):
    folder, known = finished_pipeline
    monkeypatch.chdir(folder)
    return known


@pytest.fixture(autouse=True)
def nothing_stays_stopped():
    yield
    stage.stopped.clear()


def test_a_finished_pipeline_has_nothing_stale(pipeline):
    planned = pipeline.plan(["evaluate-teacher@digits", FERD], report=True)
    assert not [item.name for item in planned if item.stale]


def test_a_plan_is_in_topological_order_and_may_end_with_the_report(pipeline):
    planned = pipeline.plan([FERD], report=True)
    names = [item.name for item in planned]
    assert names == [
        "sources",
        "data@digits",
        "teacher@digits",
        "distill-digits@resnet8-w8-ferd-s0",
        FERD,
        "report",
    ]
    assert set(planned[4].upstream) == {"sources", "distill-digits@resnet8-w8-ferd-s0", "data@digits"}
    assert planned[5].upstream and set(planned[5].upstream) <= set(names)


def test_what_follows_a_changed_stage_is_stale(here, change_params):
    change_params(here, 0.1, "methods", "ferd", "utae", "gamma")
    stale = {item.name: item.stale for item in dvc_pipeline.Pipeline().plan([FERD], report=True)}
    assert stale == {
        "sources": False,
        "data@digits": False,
        "teacher@digits": False,
        "distill-digits@resnet8-w8-ferd-s0": True,
        FERD: True,
        "report": True,
    }


def test_an_unknown_stage_method_or_seed_is_one_line(pipeline):
    for wrong, said in (
        (lambda: pipeline.plan(["distill@nothing"]), "has no stage 'distill@nothing'"),
        (
            lambda: pipeline.student_stages("digits", ["fred"], None),
            "evaluates no method 'fred' of digits; choose from ferd, .*no-fae, ",
        ),
        (
            lambda: pipeline.student_stages("digits", None, [7]),
            "evaluates no seed 7 of digits; choose from 0, 1, 2, or add it",
        ),
    ):
        with pytest.raises(FerdError, match=rf"^dvc\.yaml {said}") as caught:
            wrong()
        assert "\n" not in str(caught.value)


def test_named_students_that_no_stage_has_together_are_one_line(here):
    pipeline = dvc_pipeline.Pipeline()
    students = (("ferd", 0), ("ferd", 3), ("rslad", 9), ("rslad", 10))
    pipeline._jobs = {
        f"{method}-{seed}": Job("evaluate", "digits", "resnet8-w8", method, seed) for method, seed in students
    }
    assert pipeline.student_stages("digits", ["ferd", "rslad"], [0, 9]) == ["ferd-0", "rslad-9"]
    for methods, seeds, said in (
        (["ferd", "rslad"], [3], "method 'rslad' of digits, .* it has rslad s9, rslad s10$"),
        (["rslad"], [9, 3], "seed 3 of digits, .* it has ferd s3$"),
    ):
        with pytest.raises(FerdError, match=f"^dvc.yaml evaluates {said}"):
            pipeline.student_stages("digits", methods, seeds)


def test_the_methods_of_a_benchmark_are_those_that_its_stages_evaluate(pipeline):
    every = pipeline.student_stages("digits", None, None)
    found = [pipeline.student_stages("digits", [method], None) for method in methods_of("digits")]
    assert all(found) and sorted(chain(*found)) == sorted(every)


def test_a_name_that_dvc_would_take_apart_is_one_line(here, change_params):
    settings = yaml.safe_load((here / "params.yaml").read_text())
    change_params(here, settings["methods"]["ferd"], "methods", "gamma-0.4")
    with pytest.raises(
        FerdError, match=r"^params\.yaml: methods: 'gamma-0\.4' is no name: .* as in gamma-0_3$"
    ):
        dvc_pipeline.Pipeline().plan([FERD])


def test_a_student_that_params_yaml_lacks_is_one_line(here, change_params):
    change_params(here, ["resnet18"], "benchmarks", "digits", "students")
    said = (
        r"^dvc\.yaml: evaluate-digits@resnet8-w8-ferd-s0 is of the student resnet8-w8, which .*\(resnet18\)"
    )
    with pytest.raises(FerdError, match=said):
        dvc_pipeline.Pipeline().student_stages("digits", None, None)


@pytest.mark.parametrize("content", [None, "", "[]", "{}"])
def test_a_dvc_yaml_without_stages_is_one_line(here, content):
    (here / "dvc.yaml").unlink()
    if content is not None:
        (here / "dvc.yaml").write_text(content)
    with pytest.raises(FerdError, match=r"^dvc\.yaml has no stage sources, or is not there; git checkout"):
        dvc_pipeline.Pipeline().plan()


def test_a_stage_that_does_not_depend_on_its_networks_code_is_refused(here):
    pipeline = here / "dvc.yaml"
    text = pipeline.read_text()
    pipeline.write_text(re.sub(r"(student_network): resnet\b", r"\1: wide_resnet", text))
    said = f"{FERD} does not depend on sources/networks/resnet.txt, so that a change of its network"
    with pytest.raises(FerdError, match=re.escape(said)):
        dvc_pipeline.Pipeline().plan([FERD])


def test_student_stages_are_selected_by_method_and_seed(pipeline):
    assert pipeline.student_stages("digits", ["ferd", "no-fae"], [1]) == [
        "evaluate-digits@resnet8-w8-ferd-s1",
        "evaluate-digits@resnet8-w8-no-fae-s1",
    ]
    assert len(pipeline.student_stages("digits", None, [0])) == 12


def planned(name, pipeline=None):
    return next(item for item in (pipeline or dvc_pipeline.Pipeline()).plan([name]) if item.name == name)


def test_only_the_students_that_were_chosen_are_analysed(pipeline):
    for method, expected in (("ferd", ["analyse-digits@resnet8-w8-ferd-s0"]), ("gamma-0_1", [])):
        chosen = pipeline.student_stages("digits", [method], [0])
        assert pipeline.analyses_of(chosen) == expected
    assert len(pipeline.analyses_of(pipeline.student_stages("digits", None, None))) > 3


def test_a_stage_knows_the_outputs_that_dvc_does_not_cache(pipeline):
    assert [str(path) for path in planned("distill-digits@resnet8-w8-ferd-s0", pipeline).uncached] == [
        "results/digits/resnet8-w8/ferd/s0.rounds.jsonl",
        "results/digits/resnet8-w8/ferd/s0.distill-cost.json",
    ]


def test_events_are_passed_on(here, change_params):
    change_params(here, 0.1, "methods", "ferd", "utae", "gamma")
    events = []
    stage.run(planned("distill-digits@resnet8-w8-ferd-s0"), events.append)
    assert [event["event"] for event in events] == ["computing", *["progress"] * 3, "computed"]
    assert [event["done"] for event in events if event["event"] == "progress"] == [1, 2, 3]


def test_a_failed_stage_says_why_and_puts_its_outputs_back(here, change_params):
    outputs = [here / STUDENT, here / "results/digits/resnet8-w8/ferd/s0.rounds.jsonl"]
    before = [path.read_bytes() for path in outputs]
    change_params(here, 1.0e30, "benchmarks", "digits", "distillation", "student", "learning_rate")
    with pytest.raises(stage.StageFailed, match=r"resnet8-w8-ferd-s0: student: the loss") as caught:
        stage.run(planned("distill-digits@resnet8-w8-ferd-s0"), lambda event: None)
    assert not caught.value.retryable
    assert [path.read_bytes() for path in outputs] == before


def test_a_stage_that_fails_when_it_has_written_puts_back_what_was_there(here):
    (here / "tasks/evaluate.py").write_text(
        "from pathlib import Path\n"
        "Path('results/digits/resnet8-w8/ferd/s0.json').write_text('{}')\n"
        "raise RuntimeError('no record')\n"
    )
    result = here / "results/digits/resnet8-w8/ferd/s0.json"
    before = result.read_bytes()
    stage.run(planned("sources"), lambda event: None)
    with pytest.raises(stage.StageFailed, match="no record"):
        stage.run(planned("evaluate-digits@resnet8-w8-ferd-s0"), lambda event: None)
    assert result.read_bytes() == before != b"{}"


FULL = """
import errno, sys
if "repro" in sys.orig_argv:
    import dvc.stage
    def save(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")
    dvc.stage.Stage.save = save
"""


def test_what_dvc_could_not_keep_is_not_computed_again(here, change_params, tmp_path):
    """As on a disk that is full when all is computed; for that DVC's own ``save`` is replaced."""
    change_params(here, 0.1, "methods", "ferd", "utae", "gamma")
    wanted = planned("distill-digits@resnet8-w8-ferd-s0")
    (tmp_path / "sitecustomize.py").write_text(FULL)
    with pytest.raises(stage.StageFailed, match="No space left on device"):
        stage.run(wanted, lambda event: None, {"PYTHONPATH": str(tmp_path)})
    events = []
    stage.run(wanted, events.append)
    assert [event["event"] for event in events] == ["computing", "computed"]
    assert (here / STUDENT).exists() and not list((here / ".resume").glob("distill*"))


def test_a_failed_report_puts_back_the_folders_that_git_keeps(here):
    folders = [here / "results/metrics", here / "results/plots"]
    before = {path: path.read_bytes() for folder in folders for path in folder.rglob("*.*")}
    assert len(before) > 2
    (here / "results/digits/teacher.json").write_text("{")
    with pytest.raises(stage.StageFailed, match=r"teacher\.json"):
        stage.run(planned("report"), lambda event: None)
    assert {path: path.read_bytes() for folder in folders for path in folder.rglob("*.*")} == before


def test_a_fault_of_the_machine_is_worth_a_retry(here):
    (here / "tasks" / "report.py").write_text("raise MemoryError('gone')\n")
    stage.run(planned("sources"), lambda event: None)
    with pytest.raises(stage.StageFailed, match="MemoryError: gone") as caught:
        stage.run(planned("report"), lambda event: None)
    assert caught.value.retryable


ENDS_BY = """
import json
print(json.dumps({{"task": "t", "event": "error", "message": "m", "retryable": {}}}))
raise SystemExit(2)
"""


@pytest.mark.parametrize("retryable", [True, False])
def test_a_stage_says_itself_whether_its_error_may_pass(tmp_path, retryable):
    (tmp_path / "ending.py").write_text(ENDS_BY.format(retryable))
    with pytest.raises(stage.StageFailed, match="s: m") as caught:
        stage.run_module("s", ["ending"], lambda event: None, folder=tmp_path)
    assert caught.value.retryable is retryable


@pytest.mark.parametrize("retryable", [True, False])
def test_a_failure_of_another_process_is_the_same_here(retryable):
    failed = pickle.loads(pickle.dumps(stage.StageFailed("s", "m", retryable=retryable)))
    assert (str(failed), failed.stage, failed.reason, failed.retryable) == ("s: m", "s", "m", retryable)


def test_a_file_in_the_way_is_not_worth_a_retry(here, change_params):
    change_params(here, 0.1, "methods", "ferd", "utae", "gamma")
    wanted = planned("distill-digits@resnet8-w8-ferd-s1")
    (here / "checkpoints/digits/resnet8-w8/ferd").rename(here / "elsewhere")
    (here / "checkpoints/digits/resnet8-w8/ferd").write_text("")
    with pytest.raises(stage.StageFailed, match=r"Not a directory: .*/ferd/s1\.safetensors") as caught:
        stage.run(wanted, lambda event: None)
    assert not caught.value.retryable


@pytest.mark.parametrize(
    ("message", "retryable"),
    [
        ("[Errno 28] No space left on device", False),
        ("[Errno 13] Permission denied: 'a'", False),
        ("dvc.lock: cannot be written: Permission denied; free space or correct it, then run again", False),
        ("[Errno 111] Connection refused", True),
        ("[Errno 5] Input/output error", True),
        ("failed to pull", True),
    ],
)
def test_what_dvc_says_of_a_file_is_told_from_what_may_pass(tmp_path, message, retryable):
    (tmp_path / "ending.py").write_text(f"raise SystemExit({f'ERROR: {message}'!r})")
    with pytest.raises(stage.StageFailed) as caught:
        stage.run_module("s", ["ending"], lambda event: None, folder=tmp_path)
    assert caught.value.retryable is retryable


def test_once_stopped_nothing_begins_until_the_next_flow(tmp_path):
    (tmp_path / "writing.py").write_text("open('ran', 'w')")
    with pytest.raises(KeyboardInterrupt), stage.stoppable():
        raise KeyboardInterrupt
    with pytest.raises(stage.StageFailed, match="the flow was stopped") as caught:
        stage.run_module("s", ["writing"], lambda event: None, folder=tmp_path)
    assert not caught.value.retryable and not (tmp_path / "ran").exists()
    with stage.stoppable():
        stage.run_module("s", ["writing"], lambda event: None, folder=tmp_path)
    assert (tmp_path / "ran").exists()


BELOW = """
import subprocess, sys
below = "import time; print('{\\"event\\": \\"begun\\"}', flush=True); time.sleep(30)"
subprocess.run([sys.executable, "-c", below])
"""


def test_a_stop_ends_what_runs_and_what_runs_below_it(tmp_path):
    (tmp_path / "above.py").write_text(BELOW)
    begun = threading.Event()
    with ThreadPoolExecutor() as threads:
        with pytest.raises(KeyboardInterrupt), stage.stoppable():
            running = threads.submit(stage.run_module, "s", ["above"], lambda _: begun.set(), folder=tmp_path)
            assert begun.wait(60)
            raise KeyboardInterrupt
        with pytest.raises(stage.StageFailed, match=r"^s: it ended by SIGTERM$"):
            running.result(15)  # when nobody has its output open


def test_a_stop_waits_for_what_is_being_started_and_ends_it(tmp_path, monkeypatch):
    (tmp_path / "sleeping.py").write_text("import time; time.sleep(30)")
    starting, start = threading.Event(), subprocess.Popen

    def slowly(*command, **how):
        starting.set()
        assert not stage.stopped.wait(1)
        return start(*command, **how)

    monkeypatch.setattr(stage.subprocess, "Popen", slowly)
    with ThreadPoolExecutor() as threads:
        with pytest.raises(KeyboardInterrupt), stage.stoppable():
            running = threads.submit(stage.run_module, "s", ["sleeping"], print, folder=tmp_path)
            assert starting.wait(60)
            raise KeyboardInterrupt
        with pytest.raises(stage.StageFailed, match=r"^s: it ended by SIGTERM$"):
            running.result(15)


def test_a_process_that_has_just_ended_is_no_fault_of_a_stop(monkeypatch):
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    monkeypatch.setattr(stage, "_running", {ended})
    with pytest.raises(KeyboardInterrupt), stage.stoppable():
        raise KeyboardInterrupt


def test_what_has_ended_is_not_stopped_later(tmp_path):
    """Its number may be another process's by then."""
    (tmp_path / "ending.py").write_text("raise SystemExit(1)")
    with pytest.raises(stage.StageFailed):
        stage.run_module("s", ["ending"], print, folder=tmp_path)
    assert not stage._running


def test_what_is_said_last_is_read_last(tmp_path, monkeypatch):
    """As of DVC, which says on stdout what it runs and on stderr why it ends."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    (tmp_path / "ending.py").write_text("import sys; print('it runs'); sys.exit('it ends')")
    with pytest.raises(stage.StageFailed, match=r"^s: it ends$"):
        stage.run_module("s", ["ending"], print, folder=tmp_path)


def test_commands_are_first_looked_for_beside_this_python(tmp_path, monkeypatch):
    """DVC runs a stage by ``python``, whose folder need not be in PATH."""
    monkeypatch.setenv("PATH", os.defpath)
    (tmp_path / "telling.py").write_text("import json, os; print(json.dumps({'event': os.environ['PATH']}))")
    events = []
    stage.run_module("s", ["telling"], events.append, folder=tmp_path)
    assert events == [{"event": f"{os.path.dirname(sys.executable)}{os.pathsep}{os.defpath}"}]


def test_a_command_of_another_kind_is_no_stage_of_ours():
    assert dvc_pipeline.module_of("python -m tasks.data digits") == ("tasks.data", "digits")
    assert dvc_pipeline.module_of("./mine.sh") == dvc_pipeline.module_of(["a", "b"]) == ("",)


def test_a_stage_that_says_nothing_is_told_by_how_it_ended():
    assert stage._last_error(["round 3: a warning"], -9) == "it ended by SIGKILL"
    assert stage._last_error([" "], 143) == "it ended by exit status 143 and said nothing"
    assert stage._last_error(["ERROR: failed to reproduce 'a': "], 255).startswith(
        "it ended by exit status 255"
    )


@pytest.mark.parametrize(
    ("lines", "said", "retryable"),
    [
        ([WARNED, "ERROR: failed to reproduce 'x': failed to run: python -m tasks.distill, exited with -9"],
         "it ended by SIGKILL", True),
        (["RuntimeError: earlier", "ERROR: failed to reproduce 'x': failed to run: python, exited with -15"],
         "it ended by SIGTERM", True),
        (["OSError: [Errno 28] full", "ERROR: failed to reproduce 'x': failed to run: python, exited with 1"],
         "OSError: [Errno 28] full", False),
        ([WARNED, "ERROR: failed to reproduce 'x': failed to run: python, exited with 1"],
         "failed to run: python, exited with 1", True),
    ],
)  # fmt: skip
def test_a_killed_stage_is_told_by_its_signal_and_no_warning_is_a_reason(lines, said, retryable):
    message = stage._last_error(lines, 255)
    assert message == said
    assert stage._is_permanent(message) is not retryable


HOLD = """
import sys
from dvc.repo import Repo
from dvc.rwlock import rwlock
repo = Repo(".")
with rwlock(repo.tmp_dir, repo.fs, "dvc repro", [], [sys.argv[1]], False):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def another(here):
    """A process that has the student's weights by DVC's own lock until its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(here / STUDENT)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process


def test_a_plan_waits_for_another_process_that_writes_what_it_reads(here, another):
    plans = []
    waiting = threading.Thread(target=lambda: plans.append(dvc_pipeline.Pipeline().plan([FERD])), daemon=True)
    told = "waiting: another process is running stages of this folder ("  # and which, in DVC's words
    with redirect_stdout(io.StringIO()) as said:
        waiting.start()
        wait_until(lambda: said.getvalue().startswith(told))
    another.stdin.close()
    waiting.join(timeout=60)
    assert [item.stale for item in plans[0]] == [False] * 5


def test_a_stage_that_another_process_has_is_not_run_and_loses_nothing(here, change_params, request):
    change_params(here, 0.1, "methods", "ferd", "utae", "gamma")
    wanted = planned("distill-digits@resnet8-w8-ferd-s0")
    holder = request.getfixturevalue("another").pid
    with pytest.raises(stage.StageBusy, match=rf"\(PID {holder}\): dvc repro; If there are no processes"):
        stage.run(wanted, lambda event: None)
    assert all(path.exists() for path in wanted.uncached)


@pytest.mark.parametrize(
    ("name", "options", "added"),
    [
        ("distill", {}, []),
        ("distill", {"anew": True}, ["--no-run-cache"]),
        ("distill", {"pull": True}, ["--pull"]),
        ("sources", {"pull": True}, []),
    ],
)
def test_a_stage_is_run_by_dvc_alone_and_anew_or_from_the_remote_as_is_asked(
    monkeypatch, name, options, added
):
    commands = []
    monkeypatch.setattr(stage, "run_module", lambda _name, command, *_: commands.append(command))
    stage.run(stage.Stage(name, (), True, (f"tasks.{name}",), ()), print, **options)
    assert commands == [["tasks.run_dvc", "--wait-for-lock", "repro", "--single-item", name, *added]]


def test_what_is_no_event_is_passed_over(tmp_path):
    (tmp_path / "speaks.py").write_text("""print('3\\n[]\\n{"loss": 1.0}\\n{"event": "computed"}')""")
    events = []
    stage.run_module("speaks", ["speaks"], events.append, folder=tmp_path)
    assert events == [{"event": "computed"}]


def test_bytes_that_are_no_text_fail_no_stage(tmp_path):
    (tmp_path / "speaks.py").write_text("import sys; sys.stdout.buffer.write(b'caf\\xe9\\n')")
    stage.run_module("speaks", ["speaks"], lambda _: None, {"PYTHONPATH": str(tmp_path)})


def test_a_pipeline_that_cannot_be_read_names_the_line(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    text = (workspace / "dvc.yaml").read_text()
    (workspace / "dvc.yaml").write_text(text.replace("stages:", "stages: &digits", 1))
    with pytest.raises(FerdError, match=r"^dvc: unable to read: .dvc.yaml.*line \d+"):
        dvc_pipeline.Pipeline()


def test_a_failed_stage_puts_back_what_it_had_where_it_was_begun(tmp_path, monkeypatch):
    """A night that is stopped has left its clone before its stages have ended."""
    home, night = tmp_path / "home", tmp_path / "night"
    for folder in (home, night):
        (folder / "results/digits").mkdir(parents=True)
        (folder / "results/digits/s0.json").write_text(folder.name)
    checkouts = []
    monkeypatch.setattr(stage.subprocess, "run", lambda command, **how: checkouts.append((command, how)))

    def stopped_meanwhile(name, module, on_event, environment, folder):
        on_event({"event": "resumable", "folder": ".resume/a/b"})
        (folder / "results/digits/s0.json").write_text("half")
        os.chdir(home)
        raise stage.StageFailed(name, "stopped", retryable=False)

    monkeypatch.setattr(stage, "run_module", stopped_meanwhile)
    one = stage.Stage("evaluate", (), True, ("tasks.evaluate",), (Path("results"),))
    with chdir(night), pytest.raises(stage.StageFailed):
        stage.run(one, lambda event: None)
    assert [(folder / "results/digits/s0.json").read_text() for folder in (home, night)] == ["home", "night"]
    ((command, how),) = checkouts
    assert command[1:] == ["-m", "dvc", "--wait-for-lock", "checkout", "--quiet", "--force", "evaluate"]
    assert how["cwd"] == night
    assert how["start_new_session"]  # a second Ctrl-C would end it


def test_a_stage_that_another_process_has_is_left_to_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s0.json").write_text("before")

    def busy(name, *_):
        (tmp_path / "s0.json").write_text("the other's")
        raise stage.StageFailed(name, f"(PID 7): dvc repro; remove 'x/{stage.BUSY}.", retryable=True)

    monkeypatch.setattr(stage, "run_module", busy)
    monkeypatch.setattr(stage.subprocess, "run", None)
    with pytest.raises(stage.StageBusy, match=r"^evaluate: \(PID 7\)"):
        stage.run(stage.Stage("evaluate", (), True, ("tasks.evaluate",), (Path("s0.json"),)), print)
    assert (tmp_path / "s0.json").read_text() == "the other's"


@pytest.mark.parametrize("computing", [False, True])
def test_attempts_are_discarded_by_who_holds_the_tasks_lock(tmp_path, monkeypatch, computing):
    """Another process may have begun the same task with other settings since DVC's has ended."""
    attempt, lock = tmp_path / ".resume/distill-a/b", tmp_path / ".resume/locks/distill-a"
    for folder in (attempt, lock.parent):
        folder.mkdir(parents=True)

    def finish(name, module, on_event, environment, folder):
        on_event({"event": "resumable", "folder": ".resume/distill-a/b"})
        os.chdir("/")

    monkeypatch.setattr(stage, "run_module", finish)
    with held(lock) if computing else nullcontext(), chdir(tmp_path):
        stage.run(stage.Stage("distill", (), True, ("tasks.distill",), ()), print)
    assert attempt.exists() == computing


def test_the_lock_is_that_of_the_task(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lock = stage.lock_of(process.resume_folder("distill a/b").parent)
    with process.alone("distill a/b"), pytest.raises(FerdError, match="taken"), held(lock, refusal="taken"):
        pass


def test_a_stage_runs_by_the_plain_shell_and_in_utf_8_whatever_its_caller_has(tmp_path, monkeypatch):
    """DVC runs commands by $SHELL, which a service's account may have none of."""
    (tmp_path / "telling.py").write_text(
        "import os, sys; print(f'{os.environ[\"SHELL\"]} {sys.flags.utf8_mode}')", "utf-8"
    )
    monkeypatch.setenv("SHELL", "/usr/sbin/nologin")
    monkeypatch.setenv("PYTHONUTF8", "0")
    with stage._started("s", ["telling"], None, tmp_path) as process:
        assert process.stdout.read() == "/bin/sh 1\n"
