"""A sweep as a person runs it: refused before anything runs, each point once, the figures of the stages."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from prefect import flow as prefect_flow

from ferd.errors import FerdError
from flows import sweep as flow
from tasks.results.stored_sweeps import input_hash
from tasks.stage import StageFailed
from tasks.sweep import Point, Sweep, plain
from tests.conftest import ROOT, free_port, run_in, tiny_params

COMMAND = [sys.executable, "-m", "flows.sweep"]


@pytest.fixture(scope="module")
def settings_alone(tmp_path_factory):
    """A folder with params.yaml and nothing else."""
    folder = tmp_path_factory.mktemp("settings")
    (folder / "params.yaml").write_text(yaml.safe_dump(tiny_params()))
    return folder


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--key utae.gama --values 0", "methods.ferd.utae.gama: unknown key"),
        ("--key utae.gamma --values 0 -1", "greater than or equal to 0 (found -1)"),
        ("--key threat_model.epsilon --values big", "valid number (found 'big'; in [0, 1] pixels"),
        ("--key teacher.network --values resnet18", "data and teacher as they are"),
        ("--key nothing --values 1", "nothing: unknown key"),
        ("--key utae.gamma --values 1 --method rslad", "replays the pool of 'ferd'"),
        ("--key images --values generator pool-of-ferd", "images=pool-of-ferd replays the pool of 'ferd'"),
        ("--key utae.gamma --values 1 --student nobody", "network 'nobody' is unknown"),
        ("--key utae.gamma --values 1 --slots 0", "slots: 0; at least one stage must compute"),
    ],
)
def test_a_fault_is_one_line_before_anything_runs(
    settings_alone, monkeypatch, handlers, capsys, arguments, said
):
    monkeypatch.chdir(settings_alone)
    monkeypatch.setattr(sys, "argv", ["sweep", *arguments.split()])
    with pytest.raises(SystemExit) as refused:
        flow.main()
    assert refused.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sweep: ") and said in line
    assert [path.name for path in settings_alone.iterdir()] == ["params.yaml"]


def test_as_a_command_it_refuses_by_its_exit_status(settings_alone):
    refused = run_in(settings_alone, *COMMAND, "--key", "nothing", "--values", "1", PYTHONPATH=str(ROOT))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("sweep: nothing: unknown key") and refused.stderr.count("\n") == 1
    assert [path.name for path in settings_alone.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "here"])
def test_an_address_where_no_cluster_answers_is_one_line(monkeypatch, form):
    pytest.importorskip("prefect_ray", reason="needs the extra `ray`")
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    address = form.format(free_port())
    with pytest.raises(FerdError, match=rf"^ray: no cluster answers at {address} \([^\n]+$"):
        flow._ray_runner(address)


@pytest.mark.services  # for its time: minutes
def test_each_point_runs_once_and_one_that_fails_does_not_lose_the_others(finished_copy):
    sweep = [*COMMAND, "--key", "utae.gamma", "--values", "0", "0.5", "--seeds", "0"]
    teacher = (finished_copy / "checkpoints/digits/teacher.safetensors").read_bytes()
    first = run_in(finished_copy, *sweep)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "2 of 2 points to run" in first.stdout
    assert "viewStateShareKey=digits-resnet8-w8-ferd-utae.gamma-" in first.stdout
    [file] = (finished_copy / "results/sweeps").glob("*.json")
    points = json.loads(file.read_text())["points"]
    assert len(json.loads(file.read_text())["settings"]) == 64
    assert [point["value"] for point in points] == [0.0, 0.5]
    staged = json.loads((finished_copy / "results/digits/resnet8-w8/ferd/s0.json").read_text())
    assert points[1]["result"]["attacks"] == staged["attacks"]  # γ = 0.5 is `ferd`
    assert (finished_copy / "checkpoints/digits/teacher.safetensors").read_bytes() == teacher

    [folder] = (finished_copy / "sweeps").iterdir()
    in_the_way = folder / "checkpoints/digits/resnet8-w8/ferd,utae.gamma=1"
    in_the_way.write_text("")
    more = run_in(finished_copy, *sweep[:-2], "1", "0.7", "--seeds", "0")
    assert more.returncode != 0
    assert "2 of 4 points to run" in more.stdout
    assert "utae.gamma=1 s0: " in more.stderr
    values = [point["value"] for point in json.loads(file.read_text())["points"]]
    assert values == [0.0, 0.5, 0.7]

    in_the_way.unlink()
    again = run_in(finished_copy, *sweep[:-2], "1", "0.7", "--seeds", "0")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "1 of 4 points to run" in again.stdout


def test_a_sweep_may_have_many_points(monkeypatch, prefect_server):
    """Each carries all settings; what a flow is given, Prefect's server takes up to 512 KiB of."""
    settings = (ROOT / "params.yaml").read_text()
    points = [
        Point("id", "digits", "resnet8-w8", "ferd", "utae.gamma", 0.5, seed, settings, {})
        for seed in range(40)
    ]
    computed = []
    monkeypatch.setattr(Point, "compute", lambda self, *_: computed.append(self.seed))

    @prefect_flow
    def parent():
        return flow.on_this_machine(points, 4)

    assert parent() == []
    assert sorted(computed) == list(range(40))


@pytest.mark.parametrize("method", ["rslad", "fair-rslad", "absld", "dfhl-rs"])
def test_a_weight_that_a_method_takes_no_notice_of_is_no_key(workspace, monkeypatch, method):
    monkeypatch.chdir(workspace)
    key = "distillation.student.adversarial_weight"
    with pytest.raises(
        FerdError, match=f"^{key}: {method} takes no notice of it; all points would be alike$"
    ):
        Sweep("digits", None, method, key, [0.1, 0.9], [0])
    Sweep("digits", None, "ferd", key, [0.1, 0.9], [0])


def test_a_sweep_keeps_the_settings_that_it_was_asked_for(workspace, monkeypatch, change_params):
    """Its inputs may take hours to be made; its points must not be filed under what is set by then."""
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(Sweep, "inputs", {})
    asked = Sweep("digits", None, "ferd", "utae.gamma", [0.0], [0])
    same = Sweep("digits", None, "ferd", "utae.gamma", [0.0], [0]).id
    change_params(workspace, 5, "benchmarks", "digits", "distillation", "rounds")
    assert asked.id == same != Sweep("digits", None, "ferd", "utae.gamma", [0.0], [0]).id


@pytest.fixture
def point(tmp_path, monkeypatch):
    """Of a sweep that depends on one file; nothing is computed."""
    monkeypatch.chdir(tmp_path)
    Path("teacher").write_text("teacher", encoding="utf-8")
    of = ("digits", "resnet8-w8", "ferd", "utae.gamma", 0.3, 0, "settings")
    return Point("digits-0a1b2c3d", *of, {"teacher": input_hash(Path("teacher"))})


@pytest.mark.parametrize("there", ["another", None])
def test_a_machine_with_another_teacher_computes_no_point(point, tmp_path, monkeypatch, there):
    ran = []
    monkeypatch.setattr("tasks.sweep.run_module", lambda *arguments: ran.append(arguments))
    for name, content in {"alike": "teacher", "other": there}.items():
        (tmp_path / name).mkdir()
        if content:
            (tmp_path / name / "teacher").write_text(content)
    point.compute(tmp_path / "alike", print, {})
    with pytest.raises(StageFailed, match=r"other/teacher is missing, or another file than where the sweep"):
        point.compute(tmp_path / "other", print, {})
    assert len(ran) == 1


def test_what_a_machine_sends_back_is_whole_once_its_cost_is_there(point, monkeypatch):
    names = ("s0.evaluate-cost.json", "s0.json", "s0.rounds.jsonl", "s0.verdicts.npz")
    written, write = [], Path.write_bytes
    monkeypatch.setattr(
        Path, "write_bytes", lambda path, data: written.append(path.name) or write(path, data)
    )
    names = ("s0.evaluate-cost.json", "s0.json", "s0.rounds.jsonl", "s0.verdicts.npz")
    point.keep(dict.fromkeys(names, b"{}"))
    assert [name.partition(".part-")[0].lstrip(".") for name in written] == [*names[1:], names[0]]
    assert point.done


def test_a_result_without_its_cost_is_not_done(point):
    point.keep({"s0.json": b"{}"})
    assert point.result.exists() and not point.done


def test_a_value_that_is_given_twice_is_one(settings_alone, monkeypatch):
    monkeypatch.chdir(settings_alone)
    assert Sweep("digits", None, "ferd", "utae.gamma", [0, 0.5, 0.0], [0]).values == [0.0, 0.5]


@pytest.mark.parametrize(("value", "name"), [(0.0, "0"), (True, "true"), (1e308, "1e+308"), ("a/b", "a_b")])
def test_a_value_in_a_name_is_short(value, name):
    assert plain(value) == name
