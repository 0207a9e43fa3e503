"""Nights as a person runs them: from scratch, broken half-way, and with a committed figure that is wrong."""

import json
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, nullcontext, suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import httpx
import psutil
import pytest
from dvc.repo import Repo
from prefect import flow
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.schemas.objects import FlowRun
from prefect.states import Failed

from ferd.errors import FerdError
from flows import nightly
from flows.alert import alert, check
from tasks import night
from tests.conftest import ROOT, environment, heed_interrupts, make_workspace, run_in

COMMAND = [sys.executable, "-m", "flows.nightly", "--methods", "uniform-noise", "--seeds", "0"]
RESULT = Path("results/digits/resnet8-w8/uniform-noise/s0.json")


def git(folder: Path, *arguments: str) -> str:
    done = run_in(folder, "git", "-c", "user.name=test", "-c", "user.email=test@localhost", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def committed(finished_copy):
    """A finished workspace, committed, with a DVC remote that has nothing yet."""
    run_in(finished_copy, "dvc", "remote", "add", "--local", "--default", "storage", "../remote")
    git(finished_copy, "add", "--all")
    git(finished_copy, "commit", "--quiet", "--message", "tiny")
    return finished_copy


@pytest.fixture
def inbox():
    """A webhook on the loopback; -> (its address, the messages that it took)."""
    messages = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/a-secret", messages
    server.shutdown()
    thread.join()
    server.server_close()


def opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> night.Night:
    """A night of a workspace that has just been committed."""
    (folder / "dvc.lock").write_text("", "utf-8")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "tiny")
    monkeypatch.chdir(folder)
    night.NIGHTS.mkdir()
    return night.open_night({}, datetime.now(UTC))


def test_a_folder_of_any_letters_has_nights_which_share_its_cache(tmp_path, monkeypatch):
    """DVC writes its configuration in ASCII."""
    folder = make_workspace(tmp_path / "größe")
    with Repo(str(opened(folder, monkeypatch).folder)) as there:
        assert Path(there.cache.local_cache_dir) == folder / ".dvc/cache"


def test_what_a_person_ignores_everywhere_is_kept_all_the_same(workspace, tmp_path_factory, monkeypatch):
    person = tmp_path_factory.mktemp("person")
    (person / "ignored").write_text("*.json\n", "utf-8")
    (person / "gitconfig").write_text(f"[core]\n\texcludesFile = {person}/ignored\n", "utf-8")
    tonight = opened(workspace, monkeypatch)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(person / "gitconfig"))
    (tonight.folder / "results/digits/teacher.json").write_text("{}", "utf-8")
    tonight.keep({})
    assert git(tonight.folder, "show", "HEAD:results/digits/teacher.json") == "{}"


def clones(folder: Path) -> list[Path]:
    return [path for path in (folder / ".nightly").iterdir() if path.is_dir()]


def break_off(folder: Path, prefect: Path, number: signal.Signals) -> None:
    """Start a night and end its flow, and kill all below it, when the student is being distilled."""
    with (
        (folder.parent / "broken.log").open("w") as log,
        subprocess.Popen(
            COMMAND,
            cwd=folder,
            env=environment() | {"PREFECT_HOME": str(prefect)},
            stdout=log,
            stderr=log,
            preexec_fn=heed_interrupts,
        ) as flow,
    ):
        for _ in range(4000):
            if list(folder.glob(".nightly/*/.resume/distill*/*/state.pt")) or flow.poll() is not None:
                break
            time.sleep(0.1)
        assert flow.poll() is None, (folder.parent / "broken.log").read_text()
        flow.send_signal(number)
    for process in psutil.process_iter(["cwd"]):  # its stages are process groups of their own
        if process.info["cwd"] and Path(process.info["cwd"]).is_relative_to(folder):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)


@pytest.mark.services  # for its time: minutes
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_night_that_broke_off_goes_on_and_finds_the_same_figures(
    committed, change_params, tmp_path, number
):
    change_params(committed, 100, "benchmarks", "digits", "distillation", "rounds")
    run_in(committed, "dvc", "repro", "--quiet", "evaluate-digits@resnet8-w8-uniform-noise-s0")
    git(committed, "commit", "--quiet", "--all", "--message", "long enough to be killed")
    before = (committed / RESULT).read_bytes()
    changed = (committed / RESULT).with_suffix(
        ".rounds.jsonl"
    )  # what a night that is stopped puts back is its own
    changed.write_text(changed.read_text() + "not committed\n")
    prefect = tmp_path / "prefect"
    break_off(committed, prefect, number)
    (clone,) = clones(committed)
    teacher = clone / "checkpoints/digits/teacher.safetensors"
    trained = teacher.stat().st_mtime_ns
    rounds = len(list(clone.glob(".resume/distill*/*/pool/*")))

    night = run_in(committed, *COMMAND, timeout=900, PREFECT_HOME=str(prefect))
    assert night.returncode == 0, night.stdout + night.stderr
    assert f"night {clone.name} goes on" in night.stdout
    assert rounds > 0 and teacher.stat().st_mtime_ns == trained
    # distill, evaluate, the report, and the teacher's evaluation if it was not done
    assert re.search(r"nightly: [34] of 7 stages to run", night.stdout)
    branch, verdict = night.stdout.splitlines()[-2:]
    assert branch == f"night {clone.name}: git branch nightly/{clone.name}"
    assert re.fullmatch(rf"night {clone.name}: \d+ identical", verdict)

    # nothing of the folder itself has changed, and what came out is a branch and in the remote
    status = git(committed, "status", "--porcelain", "--untracked-files=no")
    assert status == f" M {changed.relative_to(committed)}\n"
    assert changed.read_text().endswith("}\nnot committed\n")
    assert (committed / RESULT).read_bytes() == before
    assert git(committed, "show", f"nightly/{clone.name}:{RESULT}").encode() == before
    assert len(list((committed.parent / "remote").rglob("*"))) > 20
    with closing(sqlite3.connect(f"file:{prefect}/prefect.db?mode=ro", uri=True)) as database:
        ((page,),) = database.execute("select data from artifact where key = 'nightly'").fetchall()
    assert "| identical | `digits/teacher` | clean | average | 1 |" in json.loads(page)
    assert "/#/compare-runs?runs=" in json.loads(page)


@pytest.mark.services
def test_a_committed_figure_that_is_not_reproduced_fails_and_alerts(committed, inbox, tmp_path):
    address, messages = inbox
    result = json.loads((committed / RESULT).read_text())
    result["attacks"]["pgd20"]["worst"] = 0.9
    result["attacks"]["clean"]["average"] = 0.001
    (committed / RESULT).write_text(json.dumps(result))
    git(committed, "commit", "--quiet", "--all", "--message", "tampered with")
    # an earlier night's checkpoints, and all that was ever computed, must not answer
    stale = committed / ".nightly/2026-01-01T020000Z"
    stale.mkdir(parents=True)
    ways = {"PREFECT_HOME": str(tmp_path / "prefect"), "FERD_ALERT_WEBHOOK": address}
    night = run_in(committed, *COMMAND, timeout=900, **ways)
    assert night.returncode == 2
    assert "6 of 7 stages to run" in night.stdout
    assert not stale.exists()
    (said,) = night.stderr.strip().splitlines()
    assert said.startswith("nightly: 1 fell, 1 changed, ")
    assert "digits/resnet8-w8/uniform-noise pgd20 worst: fell, " in said
    assert "where 90.0 is committed" in said
    (message,) = messages
    assert "nightly" in message["text"] and "pgd20 worst: fell" in message["text"]
    assert "a-secret" not in night.stdout + night.stderr
    assert json.loads((committed / RESULT).read_text()) == result


def test_a_folder_without_a_commit_is_refused(finished_copy, prefect_home):
    refused = run_in(finished_copy, *COMMAND, PREFECT_HOME=str(prefect_home))
    assert refused.returncode == 2
    assert "commit something first" in refused.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("block", "words"), [("nonsense", "is not type/name"), ("sendgrid-email/nobody", "named nobody")]
)
def test_a_block_that_is_not_there_is_refused(prefect_server, block, words):
    with pytest.raises(FerdError, match=words):
        check(block)


def test_a_saved_block_is_told_what_failed(prefect_server, inbox):
    address, messages = inbox
    said = {"text": "{{subject}}: {{body}}"}
    CustomWebhookNotificationBlock(name="team", url=address, json_data=said).save("team")
    check("custom-webhook/team")

    @flow(name="night", on_failure=[alert])
    def broken(alert_block):
        raise FerdError("pgd20 worst: fell")

    with pytest.raises(FerdError):
        broken("custom-webhook/team")
    (message,) = messages
    assert message["text"].startswith("night ")
    assert "pgd20 worst: fell" in message["text"]


def test_a_night_takes_nothing_that_was_computed_before(monkeypatch):
    asked = []
    monkeypatch.setattr(nightly, "evaluations", lambda *_: [])
    monkeypatch.setattr(nightly, "Pipeline", lambda: SimpleNamespace(plan=lambda *_, **__: []))
    monkeypatch.setattr(nightly, "run_stale", lambda *_, **options: asked.append(options))
    nightly.reproduce(SimpleNamespace(goes_on=True), {"methods": None, "seeds": None}, ["digits"], 1)
    assert asked == [{"anew": True}]


def test_a_verdict_stands_though_neither_prefect_nor_git_takes_what_belongs_to_it(monkeypatch):
    def refuse(error):
        def refused(*_, **__):
            raise error

        return refused

    tonight = SimpleNamespace(
        publish=refuse(FerdError("git: declined")), branch="nightly/now", folder="there", name="now"
    )
    monkeypatch.setattr(nightly, "write_page", lambda *_: "# Night")
    monkeypatch.setattr(nightly, "create_markdown_artifact", refuse(httpx.ConnectError("no connection")))
    monkeypatch.setattr(nightly, "push", refuse(ValueError("Invalid\nendpoint")))  # whatever it is
    assert nightly.deliver(tonight, ["digits"], [], []) == [
        "no page of the verdicts: no connection",
        "no branch nightly/now, the results are in there: git: declined",
        "files are not on the remote: Invalid endpoint",
    ]


def test_a_night_whose_results_are_not_delivered_fails_by_what_is_missing(monkeypatch):
    finished = []
    tonight = SimpleNamespace(
        name="now", folder=Path("there"), goes_on=False, entered=nullcontext, keep=id, finish=finished.append
    )
    settings = SimpleNamespace(nightly=SimpleNamespace(benchmarks=["digits"], tolerances=None))
    monkeypatch.setattr("tasks.night.alone", nullcontext)
    monkeypatch.setattr("tasks.night.open_night", lambda *_: tonight)
    monkeypatch.setattr("tasks.night.pairs", lambda *_: [])
    monkeypatch.setattr("tasks.params.read", lambda _: settings)
    monkeypatch.setattr(nightly, "make_experiments", lambda *_: None)
    monkeypatch.setattr(nightly, "reproduce", lambda *_: [])
    monkeypatch.setattr(nightly, "deliver", lambda *_: ["files are not on the remote: no connection"])
    with pytest.raises(FerdError, match=r"^no figures; files are not on the remote: no connection$"):
        nightly.nightly.fn()
    assert finished == [{"benchmarks": None, "methods": None, "seeds": None}]


def test_a_webhook_that_does_not_answer_does_not_silence_the_block(monkeypatch, capsys):
    said = []
    team = SimpleNamespace(notify=lambda body, subject: said.append((subject, body)))
    monkeypatch.setattr("flows.alert.Block.load", lambda _: team)
    monkeypatch.setattr("flows.alert.url_for", lambda _: None)
    monkeypatch.setenv("FERD_ALERT_WEBHOOK", "http://127.0.0.1:9/a-secret")
    run = FlowRun(flow_id=UUID(int=1), name="late-owl", parameters={"alert_block": "custom-webhook/team"})
    alert(nightly.nightly, run, Failed(message="pgd20 worst: fell"))
    assert said == [("nightly late-owl: Failed", "pgd20 worst: fell")]
    assert capsys.readouterr().out == "alert: FERD_ALERT_WEBHOOK did not take the message: ConnectError\n"


def test_an_address_that_is_none_is_refused_before_the_night_without_being_shown(monkeypatch):
    monkeypatch.setenv("FERD_ALERT_WEBHOOK", "hooks.example/a-secret")
    with pytest.raises(
        FerdError, match=r"^FERD_ALERT_WEBHOOK: does not begin with https:// or http://; correct"
    ):
        check(None)


def test_messages_can_be_tried_before_a_night_fails(inbox, tmp_path):
    command = (sys.executable, "-m", "flows.alert")
    nobody = run_in(ROOT, *command)
    assert (nobody.returncode, nobody.stderr) == (
        2,
        "alert: nobody to tell; set FERD_ALERT_WEBHOOK, or name an --alert-block\n",
    )
    address, messages = inbox
    told = run_in(ROOT, *command, FERD_ALERT_WEBHOOK=address)
    assert told.returncode == 0, told.stderr
    assert messages == [{"text": "ferd\nA test: messages arrive."}]
    assert told.stdout.splitlines()[-1] == "alert: FERD_ALERT_WEBHOOK took the message"
    silent = run_in(ROOT, *command, FERD_ALERT_WEBHOOK="http://127.0.0.1:9/a-secret")
    assert silent.returncode == 1
    assert (
        silent.stdout.splitlines()[-1] == "alert: FERD_ALERT_WEBHOOK did not take the message: ConnectError"
    )


def test_a_night_that_crashes_alerts_too():
    assert alert in nightly.nightly.on_crashed_hooks and alert in nightly.nightly.on_failure_hooks
