"""A teacher that is trained, fine-tuned or given, measured, and refused where it is not robust."""

import json
import logging
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file

from ferd.adversarial_training import AdversarialTraining
from ferd.checkpoint import read_facts
from ferd.config import Benchmark, parse
from ferd.dataset_readers import load_splits
from ferd.datasets import Images, load_images, save_images
from ferd.errors import FerdError
from ferd.models.registry import build
from tasks import judge, params, paths, process, teacher
from tests.conftest import ROOT

TEACHER = paths.teacher("digits")
ACCEPTED = {"images": 30, "least_robust": 0.99, "accept_not_robust": True}
REFUSED = ACCEPTED | {"accept_not_robust": False}
TRAINING = {
    "method": "pgd-at",
    "beta": 0.0,
    "attack_steps": 1,
    "attack_step_size": 0.1,
    "epochs": 2,
    "batch_size": 32,
    "learning_rate": 0.1,
    "weight_decay": 5.0e-4,
    "weight_average": 0.0,
    "precision": "float32",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One MLflow store: making its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def folder(tmp_path, monkeypatch, store):
    """The images of digits, 12 training and 5 validation images a class."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    content = benchmark_of().data.model_copy(update={"train_per_class": 12, "validation_per_class": 5})
    for split, part in load_splits(content, None).items():
        save_images(paths.images("digits", split), part)
    return tmp_path


def benchmark_of(**changes) -> Benchmark:
    """digits, whose teacher is a ResNet-8 trained for two epochs; ``changes`` to its block."""
    block = yaml.safe_load((ROOT / "params.yaml").read_text())["benchmarks"]["digits"]
    block["teacher"] |= {"network": "resnet8-w8", "training": TRAINING, "measure": ACCEPTED} | changes
    return parse(Benchmark, block, "benchmarks.digits")


def acquire(**changes) -> None:
    benchmark = benchmark_of(**changes)
    role = teacher.Role("teacher", benchmark.teacher, "teacher")
    teacher.acquire("digits", benchmark, role, process.Progress("teacher digits"))


def refusal(**changes) -> str:
    with pytest.raises(FerdError) as raised:
        acquire(**changes)
    assert "\n" not in str(raised.value)
    assert not Path("checkpoints").exists() and not Path("results").exists()
    return str(raised.value)


def result(kind: str, role: str = "teacher") -> str:
    return Path(f"results/digits/{role}.{kind}").read_text(encoding="utf-8")


def given(path: Path, state: dict[str, torch.Tensor]) -> dict[str, str]:
    """Weights in a file, as settings."""
    save_file(state, path)
    return {"source": "file", "location": str(path), "sha256": process.sha256(path)}


@pytest.fixture
def foreign(folder):
    """Weights of a ResNet-8, as another program wrote them."""
    state = build("resnet8-w8", classes=10, channels=1, seed=5).state_dict()
    return given(folder / "net.safetensors", {f"module.{key}": value for key, value in state.items()})


def events(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_trained_teacher_is_measured_and_written(folder, capsys):
    acquire()
    measured = json.loads(result("measured.json"))
    assert {key: measured[key] for key in ("n", "weights")} == {"n": 30, "weights": None}
    assert 0 <= measured["pgd20"] <= measured["clean"] <= 1
    assert all((30 * measured[attack]) % 1 < 1e-9 for attack in ("clean", "pgd20"))
    assert [json.loads(line)["epoch"] for line in result("rounds.jsonl").splitlines()] == [1, 2]
    cost = json.loads(result("train-cost.json"))
    assert cost["processor_seconds"] > 0 and cost["seconds"] >= 0 and cost["peak_memory_mb"] > 50
    (said,) = [event for event in events(capsys) if event["event"] == "measured"]
    assert {key: said[key] for key in measured} == measured


def test_given_weights_are_the_teacher_and_nothing_is_trained(folder, foreign):
    acquire(weights=foreign, training=None)
    expected = load_file(foreign["location"])
    assert all(torch.equal(value, expected[f"module.{key}"]) for key, value in load_file(TEACHER).items())
    assert result("rounds.jsonl") == ""
    assert json.loads(result("measured.json"))["weights"] == foreign


def test_given_weights_are_fine_tuned_with_a_warm_up(folder, foreign):
    acquire(weights=foreign)
    benchmark = benchmark_of(weights=foreign)
    role = teacher.Role("teacher", benchmark.teacher, "teacher")
    training = AdversarialTraining(
        teacher.initial_network(benchmark.teacher, benchmark, seed=9),
        load_images(paths.images("digits", "train")),
        benchmark.teacher.training,
        benchmark.threat_model,
        benchmark.augmentation,
        role.seed,
        torch.device("cpu"),
        warm_up=True,
    )
    list(training.epochs())
    assert_same(load_file(TEACHER), training.network.state_dict())


def test_the_average_is_what_is_kept(folder):
    acquire()
    plain = load_file(TEACHER)
    acquire(training=TRAINING | {"weight_average": 0.9})
    assert not torch.equal(load_file(TEACHER)["linear.weight"], plain["linear.weight"])


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in found.items():
        assert torch.equal(value, expected[key]), key


def test_a_teacher_of_this_project_may_be_given(folder):
    acquire()
    kept = TEACHER.rename("kept.safetensors").resolve()
    weights = {"source": "file", "location": str(kept), "sha256": process.sha256(kept)}
    acquire(weights=weights, training=None)
    assert_same(load_file(TEACHER), load_file(kept))


def test_weights_of_another_network_are_refused(folder, foreign):
    assert "has other shapes than resnet8-w16" in refusal(
        weights=foreign, training=None, network="resnet8-w16"
    )
    assert "lacks resnet18" in refusal(weights=foreign, training=None, network="resnet18")


def test_other_weights_than_expected_are_refused(folder, foreign):
    assert "0" * 64 in refusal(weights=foreign | {"sha256": "0" * 64}, training=None)


def test_a_teacher_that_is_not_robust_is_refused_with_its_figures(folder, foreign):
    line = refusal(weights=foreign, training=None, measure=REFUSED)
    assert (
        "the teacher is not robust" in line and " % clean but " in line and "of 30 validation images" in line
    )
    assert "99.0 % is asked for" in line and "teacher.measure.accept_not_robust: true" in line


def test_a_refused_teacher_that_is_then_accepted_is_not_trained_again(folder, capsys, caplog):
    refusal(measure=REFUSED)
    assert "progress" in [event["event"] for event in events(capsys)]
    with caplog.at_level(logging.WARNING):
        acquire(measure=ACCEPTED)
    assert "progress" not in [event["event"] for event in events(capsys)]
    assert "the teacher is not robust" in caplog.text and "used all the same" in caplog.text
    resumed = TEACHER.read_bytes()
    TEACHER.unlink()
    acquire(measure=ACCEPTED)
    assert TEACHER.read_bytes() == resumed


@pytest.mark.parametrize("changed", ["threat model", "augmentation", "images"])
def test_what_was_trained_under_other_conditions_is_not_taken_up(folder, capsys, changed):
    acquire()
    events(capsys)
    benchmark = benchmark_of()
    if changed == "threat model":
        other = benchmark.threat_model.model_copy(update={"epsilon": 0.2})
        benchmark = benchmark.model_copy(update={"threat_model": other})
    elif changed == "augmentation":
        other = benchmark.augmentation.model_copy(update={"padding": 3})
        benchmark = benchmark.model_copy(update={"augmentation": other})
    else:
        train = load_images(paths.images("digits", "train"))
        save_images(paths.images("digits", "train"), Images(255 - train.images, train.labels))
    role = teacher.Role("teacher", benchmark.teacher, "teacher")
    teacher.acquire("digits", benchmark, role, process.Progress("teacher digits"))
    assert [event["done"] for event in events(capsys) if event["event"] == "progress"] == [1, 2]


def test_a_teacher_that_was_stopped_has_the_records_of_all_epochs(folder, monkeypatch, store):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(process.Progress, "advance", stop)
        with pytest.raises(KeyboardInterrupt):
            acquire()
    acquire()
    assert [json.loads(line)["epoch"] for line in result("rounds.jsonl").splitlines()] == [1, 2]
    assert json.loads(result("train-cost.json"))["resumed"]
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("digits").experiment_id
    run = client.search_runs([experiment], order_by=["attributes.start_time DESC"])[0]
    assert run.info.status == "FINISHED"
    assert run.data.tags["settings"] == read_facts(TEACHER)["settings"]
    points = client.get_metric_history(run.info.run_id, "teacher/loss")
    assert [point.step for point in points] == [1, 2]
    measured = json.loads(result("measured.json"))
    for attack in ("clean", "pgd20"):
        assert run.data.metrics[f"teacher/measured/{attack}"] == measured[attack]


def test_a_robust_enough_teacher_is_used_without_a_word(folder, caplog):
    acquire(training=TRAINING | {"epochs": 15}, measure=REFUSED | {"least_robust": 0.11})
    assert TEACHER.exists() and not caplog.text


def test_a_teacher_that_does_no_better_than_guessing_is_refused_whatever_is_asked_for(folder, foreign):
    """A constant one has 1/C, which may be more than what is asked for."""
    asked = REFUSED | {"least_robust": 0.0}
    line = refusal(weights=foreign, training=None, measure=asked)
    assert "where 10.0 % is what guessing gives; give another one" in line and not TEACHER.exists()
    acquire(weights=foreign, training=None, measure=asked | {"accept_not_robust": True})


def test_a_teacher_that_has_just_what_is_asked_for_is_used():
    settings = benchmark_of(measure=REFUSED | {"least_robust": 0.5}).teacher
    role = teacher.Role("teacher", settings, "teacher")
    teacher._refuse_what_is_not_robust({"clean": 0.9, "pgd20": 0.5, "n": 30}, role, 10)
    with pytest.raises(FerdError, match=r"^the teacher is not robust: .* where 50\.0 % is asked for; train"):
        teacher._refuse_what_is_not_robust({"clean": 0.9, "pgd20": 0.49, "n": 30}, role, 10)


def test_fewer_validation_images_than_asked_for_are_all_used(folder):
    acquire(measure=ACCEPTED | {"images": 500})
    assert json.loads(result("measured.json"))["n"] == 50


def test_without_validation_images_nothing_is_trained(folder, capsys):
    none = load_images(paths.images("digits", "validation"))
    save_images(paths.images("digits", "validation"), Images(none.images[:0], none.labels[:0]))
    assert "benchmarks.digits.data.validation_per_class" in refusal()
    assert not events(capsys)


@pytest.mark.parametrize(
    ("number", "rows"),
    [(1, [0]), (3, [0, 2, 3]), (4, [0, 1, 2, 3]), (6, [0, 1, 2, 3, 4, 6]), (99, [0, 1, 2, 3, 4, 5, 6])],
)
def test_images_are_taken_evenly_of_all_classes(number, rows):
    labels = torch.tensor([2, 2, 0, 1, 2, 2, 0])
    assert teacher.first_evenly(labels, number).tolist() == rows


def write_params(**changes) -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    digits = content["benchmarks"]["digits"]
    digits["analysis"]["judge"] |= {"network": "resnet8-w8"} | changes
    digits["analysis"]["judge"]["training"] |= {"epochs": 1}
    params.PARAMS.write_text(yaml.safe_dump(content | {"benchmarks": {"digits": digits}}))


def test_the_judge_is_made_the_same_way(folder, monkeypatch, capsys):
    write_params()
    monkeypatch.setattr(sys, "argv", ["judge", "digits"])
    judge.main()
    assert [event["event"] for event in events(capsys)][-1] == "computed"
    assert load_file("checkpoints/digits/judge.safetensors")["linear.weight"].shape == (10, 32)
    assert json.loads(result("measured.json", "judge"))["n"] == 50
    assert len(result("rounds.jsonl", "judge").splitlines()) == 1
    facts = read_facts(Path("checkpoints/digits/judge.safetensors"))
    assert (facts["benchmark"], facts["run_key"], facts["network"]) == ("digits", "judge", "resnet8-w8")
    assert not TEACHER.exists()


def test_a_judge_that_is_refused_is_named_by_its_own_key(folder, monkeypatch, capsys):
    write_params(measure=REFUSED)
    monkeypatch.setattr(sys, "argv", ["judge", "digits"])
    with pytest.raises(SystemExit, match="2"):
        judge.main()
    error = capsys.readouterr().err
    assert error.startswith("judge digits: the judge is not robust") and len(error.splitlines()) == 1
    assert "analysis.judge.measure.accept_not_robust" in error


@pytest.mark.skipif("FERD_DATA" not in os.environ, reason="FERD_DATA is not set: no CIFAR-10")
def test_a_standard_network_of_another_package_is_refused(folder):
    package = Path(find_spec("pyautoattack").submodule_search_locations[0])
    (path,) = [file for file in package.rglob("*.pt*") if file.suffix in {".pt", ".pth"}]
    block = yaml.safe_load((ROOT / "params.yaml").read_text())["benchmarks"]["cifar10"]
    block["data"] |= {"train_per_class": 1, "validation_per_class": 2, "test_per_class": 1}
    block["teacher"] = {
        "network": "resnet18",
        "weights": {"source": "file", "location": str(path), "sha256": process.sha256(path)},
        "training": None,
        "measure": REFUSED | {"images": 20, "least_robust": 0.2},
        "threads": 1,
    }
    benchmark = parse(Benchmark, block, "benchmarks.cifar10")
    for split, part in load_splits(benchmark.data, Path(os.environ["FERD_DATA"])).items():
        save_images(paths.images("cifar10", split), part)
    role = teacher.Role("teacher", benchmark.teacher, "teacher")
    with pytest.raises(FerdError, match=r"not robust: (90|95|100)\.0 % clean but 0\.0 % under PGD-20 of 20"):
        teacher.acquire("cifar10", benchmark, role, process.Progress("teacher cifar10"))
    assert not Path("checkpoints").exists()
