"""The flow as a person runs it: the real Prefect, DVC and MLflow on tiny settings."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.conftest import environment, heed_interrupts, run_in

COMMAND = [sys.executable, "-m", "flows.reproduce", "--seeds", "0", "--methods"]


def test_the_flow_runs_every_stage_once_and_shows_the_table(finished):
    log = (finished / "flow.log").read_text()
    assert "9 of 9 stages to run, 2 at a time, on " in log
    for name in ("data@digits", "teacher@digits", "evaluate-digits@resnet8-w8-ferd-s0", "report"):
        assert log.count(f"] {name}: done") == 1
    assert re.search(r"\d+ s in all, of which orchestration \(no stage was computing\) \d+ s", log)
    assert log.index("teacher ") < log.index("uniform-noise ", log.index("teacher "))
    assert "Traceback" not in log


def test_results_have_the_promised_form(finished):
    result = json.loads((finished / "results/digits/resnet8-w8/ferd/s0.json").read_text())
    assert result["schema"] == "ferd-result/1"
    assert (result["benchmark"], result["student"], result["method"], result["seed"]) == (
        "digits",
        "resnet8-w8",
        "ferd",
        0,
    )
    assert result["threat_model"]["epsilon"] == 0.1
    assert result["attacks"]["clean"]["n"] == 50
    assert result["attacks"]["autoattack"]["n"] == 10
    for figures in result["attacks"].values():
        assert set(figures) == {"n", "average", "worst", "nsd", "per_class"}
        assert len(figures["per_class"]) == 10
    assert "seconds" not in json.dumps(result)


def test_a_second_run_finds_everything_up_to_date(finished):
    again = run_in(finished, *COMMAND, "ferd", "uniform-noise")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "all 9 stages are up to date; nothing to run" in again.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_flow_ends_its_stages_and_goes_on_later(finished_copy, change_params, number):
    change_params(finished_copy, 500, "benchmarks", "digits", "distillation", "rounds")
    command = [*COMMAND, "ferd"]
    output = finished_copy / "stopped.log"
    with (
        output.open("w") as log,
        subprocess.Popen(
            command,
            cwd=finished_copy,
            env=environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=heed_interrupts,
        ) as flow,
    ):
        states = finished_copy / ".resume"
        for _ in range(6000):
            if list(states.glob("*/*/state.pt")) or flow.poll() is not None:
                break
            time.sleep(0.1)
        try:
            assert list(states.glob("*/*/state.pt")), output.read_text()
            os.killpg(flow.pid, number)  # to all processes of its group, as a terminal sends it
            assert flow.wait(timeout=180) != 0
        except BaseException:
            os.killpg(flow.pid, signal.SIGKILL)  # or it is waited for
            raise
    if number == signal.SIGINT:  # after the others Prefect ends the process itself
        assert output.read_text().splitlines()[-1] == "reproduce: stopped; run it again to go on from here"
    assert "Traceback" not in output.read_text()
    assert list(states.glob("*/*/state.pt"))
    assert (finished_copy / "checkpoints/digits/resnet8-w8/ferd/s0.safetensors").exists()  # put back
    left = [
        process
        for process in psutil.process_iter(["cwd", "cmdline"])
        if process.info["cwd"] == str(finished_copy)
    ]
    assert [process.info["cmdline"] for process in left] == []


def test_a_failing_stage_fails_the_flow_in_one_line_and_spares_the_others(finished_copy, change_params):
    change_params(finished_copy, -1, "methods", "no-fae", "utae", "gamma")
    failed = run_in(finished_copy, *COMMAND, "no-fae")
    assert failed.returncode == 2
    said = failed.stderr.strip().splitlines()[-1]
    assert said.startswith("reproduce: params.yaml: methods.no-fae.utae.gamma")

    change_params(finished_copy, 0.5, "methods", "no-fae", "utae", "gamma")
    in_the_way = finished_copy / "checkpoints/digits/resnet8-w8/no-fae"
    in_the_way.write_text("")
    failed = run_in(finished_copy, *COMMAND, "no-fae", "no-utae")
    assert failed.returncode == 2
    assert len(failed.stderr.strip().splitlines()) == 1, failed.stderr
    assert "checkpoints/digits/resnet8-w8/no-fae" in failed.stderr
    assert (finished_copy / "results/digits/resnet8-w8/no-utae/s0.json").exists()
    assert not (finished_copy / "results/digits/resnet8-w8/no-fae/s0.json").exists()
