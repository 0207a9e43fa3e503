"""The analysis of a checkpoint, on untrained networks: its figures, its files, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from mlflow import MlflowClient

from ferd.adaptive_adversary import AdaptiveAdversary
from ferd.checkpoint import save_classifier
from ferd.config import Weights
from ferd.dataset_readers import load_splits
from ferd.datasets import Images, load_images, save_images
from ferd.errors import FerdError
from ferd.image_quality import agreement
from ferd.models.registry import build
from ferd.pool import Pool
from tasks import analyse, evaluate, params, paths, process, tracking
from tests.conftest import ROOT

TEACHER = paths.teacher("digits")
STUDENT = paths.student("digits", "resnet8-w8", "ferd", 0)
NETWORKS = {TEACHER: "resnet8-w16", STUDENT: "resnet8-w8", analyse.judge_of("digits"): "resnet8-w16"}
CPU = torch.device("cpu")


def small_params() -> dict:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    digits = content["benchmarks"]["digits"]
    digits["data"] |= {"train_per_class": 5, "validation_per_class": 3, "test_per_class": 3}
    digits["distillation"]["utae_steps"] = 2
    digits["analysis"] |= {
        "images_per_class": 2,
        "targeted_steps": 2,
        "gammas": [0.0, 0.5],
        "pool_images": 25,
        "batch_size": 8,
    }
    return content | {"benchmarks": {"digits": digits}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Networks, images and a pool of two rounds of 16, as the earlier stages leave them."""
    monkeypatch.chdir(tmp_path)
    # MLflow keeps a store that is named by a relative path open: the next test would write there.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    Path("params.yaml").write_text(yaml.safe_dump(small_params()), encoding="utf-8")
    for split, part in load_splits(params.read().benchmark("digits").data, None).items():
        save_images(paths.images("digits", split), part)
    for seed, (path, name) in enumerate(NETWORKS.items()):
        network = build(name, classes=10, channels=1, seed=seed)
        with torch.no_grad():  # predictions differ from image to image
            network.train()(load_images(paths.images("digits", "test")).images / 255)
            network.linear.weight.mul_(8)
        save_classifier(path, network, name, benchmark="digits", settings=f"settings-{seed}")
    pool, rng = Pool(STUDENT.with_suffix(".pool"), 32, (1, 8, 8), CPU), torch.Generator().manual_seed(3)
    for label in (0, 1):
        images = torch.randint(0, 256, (16, 1, 8, 8), generator=rng).to(torch.uint8)
        pool.append(images, torch.full((16,), label))
    return tmp_path


def run(monkeypatch, checkpoint: Path) -> dict:
    """``python -m tasks.analyse``, and the JSON that it writes."""
    monkeypatch.setattr("sys.argv", ["analyse", str(checkpoint)])
    analyse.main()
    return json.loads(paths.result_of(checkpoint).with_suffix(".analysis.json").read_text())


def analysis_of(checkpoint: Path) -> analyse.Analysis:
    settings = params.read().benchmark("digits")
    return analyse.Analysis("digits", checkpoint, settings, process.Progress("analyse"))


def test_a_student_is_analysed_and_recorded(folder, monkeypatch, capsys):
    found = run(monkeypatch, STUDENT)
    assert found["schema"] == "ferd-analysis/2"
    assert (found["student"], found["method"], found["seed"]) == ("resnet8-w8", "ferd", 0)
    assert (found["network"], found["threat_model"]["epsilon"]) == ("resnet8-w8", 0.1)
    assert (found["adaptive_adversary"]["n"], found["adaptive_adversary"]["steps"]) == (20, 2)
    assert [outcome["gamma"] for outcome in found["utae_outcomes"]] == [0.0, 0.5]
    assert all(sum(map(sum, outcome["counts"])) == 20 for outcome in found["utae_outcomes"])
    assert found["images"]["balance"]["counts"][:3] == [9, 16, 0]  # the last 25 of 32
    assert (found["images"]["features"], found["images"]["n_real"]) == ("teacher", 30)

    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    done = [(event["done"], event["total"]) for event in events if event["event"] == "progress"]
    assert done == [(n, 62) for n in (8, 16, 20, 22, 30, 38, 42, 50, 58, 62)]
    assert (
        json.loads(Path("results/digits/resnet8-w8/ferd/s0.analyse-cost.json").read_text(encoding="utf-8"))[
            "threads"
        ]
        == 1
    )
    assert [path.name for path in Path(".resume").iterdir()] == ["locks"]

    client = MlflowClient(tracking.store())
    (record,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert record.data.tags["run_key"] == "resnet8-w8/ferd/s0"
    assert record.data.metrics == pytest.approx(analyse.metrics_of(found))
    assert "analysis/utae-0.5/entropy" in record.data.metrics
    assert record.info.status == "FINISHED"


def test_the_weakest_class_stands_beside_the_teachers(folder):
    figures = analysis_of(STUDENT).of_student()
    (row,) = figures["weakest_classes"]
    per_class = figures["adaptive_adversary"]["union"]["per_class"]
    assert row["class"] == per_class.index(min(per_class))
    assert row["student"]["union_accuracy"] == min(per_class)
    assert row["student"]["success"] == figures["adaptive_adversary"]["success"][row["class"]]

    analysis = analysis_of(TEACHER)
    members = analysis.attacked.labels == row["class"]
    data = Images(analysis.attacked.images[members], analysis.attacked.labels[members])
    threat = analysis.settings.threat_model.with_steps(2)
    teacher = AdaptiveAdversary(analysis.network, data, threat, 8, 0, CPU)
    list(teacher.batches())
    assert row["teacher"] == teacher.source(row["class"])


def test_judge_teacher_and_student_are_told_apart(folder):
    analysis = analysis_of(STUDENT)
    images = analysis.of_student()["images"]
    pool = Pool(STUDENT.with_suffix(".pool"), 32, (1, 8, 8), CPU)
    last = Images(pool.images[-25:], pool.labels[-25:])
    expected = {
        name: agreement(analysis.load(path), last, 8, CPU)
        for name, path in (("judge", analyse.judge_of("digits")), ("teacher", TEACHER))
    }
    assert images["agreement"] == expected


def test_a_teacher_is_given_the_adaptive_adversary_alone(folder):
    analyse.judge_of("digits").unlink()  # and needs no more
    paths.images("digits", "validation").unlink()
    analyse.refuse_missing("digits", TEACHER)
    figures = analysis_of(TEACHER).of_teacher()
    assert list(figures) == ["adaptive_adversary"]
    assert set(analyse.metrics_of(figures)) == {f"analysis/targeted/{k}" for k in ("average", "worst", "nsd")}


@pytest.mark.parametrize("stop", [2, 4, 6])
def test_an_interrupted_analysis_goes_on_and_ends_with_the_same_figures(folder, monkeypatch, stop, capsys):
    class Killed(Exception):
        pass

    def advance(self, done, total, **details):
        batches.append(done)
        if len(batches) == stop:
            raise Killed

    whole = analysis_of(STUDENT)
    expected = whole.of_student()
    process.discard(whole.resume)
    batches: list[int] = []
    monkeypatch.setattr(process.Progress, "advance", advance)
    with pytest.raises(Killed):
        analysis_of(STUDENT).of_student()
    assert analysis_of(STUDENT).of_student() == expected
    assert batches == [8, 16, 20, 22, 30, 38, 42, 50, 58, 62]  # none twice


@pytest.mark.parametrize(
    ("missing", "command"),
    [
        (paths.images("digits", "test"), "tasks.data digits"),
        (paths.images("digits", "validation"), "tasks.data digits"),
        (TEACHER, "tasks.teacher digits"),
        (analyse.judge_of("digits"), "tasks.judge digits"),
        (STUDENT, "tasks.distill digits resnet8-w8 ferd s0"),
        (STUDENT.with_suffix(".pool"), "tasks.distill digits resnet8-w8 ferd s0"),
    ],
)
def test_what_is_missing_is_named_with_the_stage_that_makes_it(folder, monkeypatch, capsys, missing, command):
    missing.rename(folder / "away")
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, STUDENT)
    assert ended.value.code == process.BAD_INPUT
    assert capsys.readouterr().err == (
        f"analyse digits/resnet8-w8/ferd/s0: {missing}: missing; `python -m {command}` makes it\n"
    )


@pytest.mark.parametrize("stage", [analyse, evaluate])
def test_a_checkpoint_of_no_stage_is_refused_before_anything_is_computed(folder, monkeypatch, capsys, stage):
    network = build(NETWORKS[STUDENT], classes=10, channels=1)
    save_classifier(STUDENT, network, NETWORKS[STUDENT], benchmark="digits")
    monkeypatch.setattr("sys.argv", ["stage", str(STUDENT)])
    with pytest.raises(SystemExit) as ended:
        stage.main()
    assert ended.value.code == process.BAD_INPUT
    assert f"{STUDENT}: its header lacks 'settings'" in capsys.readouterr().err
    assert not Path("results").exists()


def test_more_images_a_class_than_there_are_is_refused_in_one_line():
    data = Images(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1, 0]))
    assert analyse.first_images(data, 2).labels.tolist() == [0, 1, 0, 1]
    with pytest.raises(FerdError, match=r"has 2 images where 3 .* lower analysis.images_per_class"):
        analyse.first_images(data, 3)


def test_a_pool_without_images_or_a_damaged_one_is_refused(tmp_path):
    with pytest.raises(FerdError, match="holds no images; run stage `distill` again"):
        analyse.pool_size(tmp_path)
    (tmp_path / "round-0001.safetensors").write_bytes(b"cut")
    with pytest.raises(FerdError, match=r"damaged .* run stage `distill` again"):
        analyse.pool_size(tmp_path)


def test_without_validation_images_there_is_nothing_to_compare_with(folder):
    none = Images(torch.zeros(0, 1, 8, 8, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
    save_images(paths.images("digits", "validation"), none)
    with pytest.raises(FerdError, match="validation_per_class is 0"):
        analyse.validation_images("digits")


def test_inception_weights_that_are_given_are_fetched_and_used(folder, monkeypatch):
    torch.save([1], "other.pth")
    weights = Weights(source="file", location="other.pth", sha256="0" * 64)
    monkeypatch.setattr(analyse, "fetch_weights", lambda asked: Path(asked.location))
    analysis = analysis_of(STUDENT)
    chosen = analysis.settings.analysis.model_copy(update={"inception": weights})
    analysis.settings = analysis.settings.model_copy(update={"analysis": chosen})
    with pytest.raises(FerdError, match=r"other\.pth: not a state dict of torchvision's inception_v3"):
        analysis.of_student()
