"""A student's stage: what it is given, what its state belongs to, and what it leaves behind."""

import json
import shutil
from argparse import ArgumentTypeError

import pytest
import torch
import yaml
from mlflow import MlflowClient
from PIL import Image

from ferd.checkpoint import read_facts, save_classifier
from ferd.config import Benchmark
from ferd.dataset_readers import load_splits
from ferd.datasets import Images, load_images, save_images
from ferd.errors import FerdError
from ferd.models.registry import build
from ferd.pool import Pool
from tasks import distill, params, paths, process, tracking
from tests.conftest import tiny_params

STUDENT = paths.student("digits", "resnet8-w8", "ferd", 0)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Settings, images and a teacher that was never trained."""
    folder = tmp_path_factory.mktemp("distill") / "prepared"
    content = tiny_params()
    (folder / "data/digits").mkdir(parents=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    benchmark = Benchmark.model_validate(content["benchmarks"]["digits"])
    for split, part in load_splits(benchmark.data, None).items():
        save_images(folder / paths.images("digits", split), part)
    save_teacher(folder, seed=7)
    return folder


def save_teacher(folder, seed):
    save_classifier(
        folder / paths.teacher("digits"),
        build("resnet8-w8", classes=10, channels=1, seed=seed),
        "resnet8-w8",
        size=8,
        benchmark="digits",
        run_key="teacher",
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One MLflow store: making its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def folder(prepared, store, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    return tmp_path / "here"


class Stopped(process.Progress):
    """Of a run that is stopped once so many rounds are done."""

    def __init__(self, task, rounds):
        super().__init__(task)
        self.rounds, self.done = rounds, []

    def advance(self, done, total, **details):
        self.done.append(done)
        if done == self.rounds:
            raise KeyboardInterrupt


def distil(method="ferd", stop_after=None):
    """-> the rounds that were done."""
    progress = Stopped(f"distill digits/resnet8-w8/{method}/s0", stop_after)
    try:
        distill.distil_student("digits", "resnet8-w8", method, 0, progress)
    except KeyboardInterrupt:
        assert stop_after
    return progress.done


def latest_run(store):
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("digits").experiment_id
    return client.search_runs([experiment], order_by=["attributes.start_time DESC"])[0]


def test_a_student_is_written_with_all_that_is_known_of_it(folder, store):
    distil()
    facts = read_facts(STUDENT)
    assert (facts["benchmark"], facts["run_key"]) == ("digits", "resnet8-w8/ferd/s0")
    assert (facts["network"], facts["size"]) == ("resnet8-w8", 8)
    names = {path.name for path in (folder / "results/digits/resnet8-w8/ferd").iterdir()}
    assert names == {"s0.rounds.jsonl", "s0.distill-cost.json", "s0.images.png"}
    shards = sorted(path.name for path in STUDENT.with_suffix(".pool").iterdir())
    assert shards == [f"round-000{number}.safetensors" for number in (1, 2, 3)]
    run = latest_run(store)
    assert (run.info.status, run.data.tags["settings"]) == ("FINISHED", facts["settings"])
    points = MlflowClient(store).get_metric_history(run.info.run_id, "generator/agreement")
    assert [point.step for point in points] == [1, 2, 3]


def test_a_student_that_was_stopped_has_the_records_of_all_rounds(folder):
    distil()
    records = STUDENT.with_name("whole.jsonl")
    shutil.move("results/digits/resnet8-w8/ferd/s0.rounds.jsonl", records)
    shutil.rmtree(".resume")
    assert distil(stop_after=2) == [1, 2]
    assert distil() == [3]
    again = (folder / "results/digits/resnet8-w8/ferd/s0.rounds.jsonl").read_text()
    assert again == records.read_text()
    assert [json.loads(line)["round"] for line in again.splitlines()] == [1, 2, 3]


def test_a_stop_after_a_round_is_recorded_loses_none_of_its_points(folder, store, monkeypatch):
    log = tracking.Run.log

    def stop_after(run, metrics, step=0):
        log(run, metrics, step)
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(tracking.Run, "log", stop_after)
        distil(stop_after=2)
    distil()
    points = MlflowClient(store).get_metric_history(latest_run(store).info.run_id, "generator/agreement")
    assert sorted({point.step for point in points}) == [1, 2, 3]


def test_a_student_that_was_stopped_in_its_first_round_begins_anew(folder, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(distill, "save_state", stop)
        distil(stop_after=1)
    assert list(folder.glob(".resume/*/*/pool/round-0001.safetensors"))
    assert distil() == [1, 2, 3]


def test_a_student_goes_on_with_the_same_real_images_alone(folder):
    distil("real-data", stop_after=2)
    train = load_images(paths.images("digits", "train"))
    save_images(paths.images("digits", "train"), Images(255 - train.images, train.labels))
    assert distil("real-data", stop_after=1) == [1]
    save_images(paths.images("digits", "train"), train)
    assert distil("real-data") == [3]


def test_what_a_student_depends_on_is_behind_its_hash(folder):
    settings = params.read()
    benchmark, ferd = settings.benchmark("digits"), settings.method("ferd")
    pool = folder / "pool"
    Pool(pool, 1, (1, 8, 8), CPU).append(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.tensor([0]))

    def changed(key, **values):
        block = getattr(benchmark, key).model_copy(update=values)
        return benchmark.model_copy(update={key: block})

    hashes = [
        distill.hash_of_settings("digits", *given)
        for given in (
            (benchmark, "resnet8-w8", ferd, 0, CPU, None),
            (changed("distillation", rounds=4), "resnet8-w8", ferd, 0, CPU, None),
            (changed("augmentation", padding=3), "resnet8-w8", ferd, 0, CPU, None),
            (changed("threat_model", epsilon=0.2), "resnet8-w8", ferd, 0, CPU, None),
            (benchmark, "resnet8-w16", ferd, 0, CPU, None),
            (benchmark, "resnet8-w8", settings.method("no-fae"), 0, CPU, None),
            (benchmark, "resnet8-w8", ferd, 1, CPU, None),
            (benchmark, "resnet8-w8", ferd, 0, torch.device("cuda"), None),
            (benchmark, "resnet8-w8", ferd, 0, CPU, pool),
        )
    ]
    Pool(pool, 2, (1, 8, 8), CPU).append(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.tensor([0]))
    hashes.append(distill.hash_of_settings("digits", benchmark, "resnet8-w8", ferd, 0, CPU, pool))
    save_teacher(folder, seed=8)
    hashes.append(distill.hash_of_settings("digits", benchmark, "resnet8-w8", ferd, 0, CPU, None))
    assert len(set(hashes)) == 11


def test_a_seed_is_both_of_the_network_and_of_its_training(folder, tmp_path):
    settings = params.read()
    benchmark, ferd = settings.benchmark("digits"), settings.method("ferd")
    teacher = build("resnet8-w8", classes=10, channels=1, seed=7)
    runs = [
        distill.begin(benchmark, teacher, "resnet8-w8", ferd, seed, tmp_path / str(seed), CPU, None)
        for seed in (0, 1)
    ]
    fresh = build("resnet8-w8", classes=10, channels=1, seed=1).state_dict()
    assert all(torch.equal(value, fresh[key]) for key, value in runs[1].student.state_dict().items())
    assert not torch.equal(*(torch.rand(9, generator=run.rng) for run in runs))


def test_a_pool_that_was_not_made_is_missed_with_what_makes_it(folder):
    replaying, pool = params.read().method("rslad"), paths.pool("digits", "resnet8-w8", "ferd", 3)
    with pytest.raises(FerdError, match=r"ferd/s3\.pool: missing; `python .* ferd s3` makes it$"):
        distill.given_images("digits", "resnet8-w8", replaying, 3)
    pool.mkdir(parents=True)
    assert distill.given_images("digits", "resnet8-w8", replaying, 3) == pool


def test_a_seed_is_written_with_an_s():
    assert distill.seed("s10") == 10
    for wrong in ("10", "s", "s1x", "xs1", "s-1"):
        with pytest.raises(ArgumentTypeError, match=r"is no seed; write s0, s1, \.\.\.$"):
            distill.seed(wrong)


def test_real_images_are_those_of_training(folder):
    given = distill.given_images("digits", "resnet8-w8", params.read().method("real-data"), 0)
    train = load_images(paths.images("digits", "train"))
    assert torch.equal(given[0], train.images) and torch.equal(given[1], train.labels)


def test_a_class_has_a_row_of_its_last_images_and_black_where_there_are_too_few(tmp_path):
    pool = Pool(tmp_path / "pool", 15, (1, 2, 3), CPU)
    images = torch.arange(1, 16, dtype=torch.uint8).reshape(15, 1, 1, 1).expand(15, 1, 2, 3)
    pool.append(images, torch.tensor([1] * 13 + [0] * 2))
    distill.write_image_grid(tmp_path / "grid.png", pool, 3)
    with Image.open(tmp_path / "grid.png") as grid:
        assert (grid.mode, grid.size) == ("RGB", (12 * 4, 3 * 3))
        rows = [[grid.getpixel((4 * column, 3 * row))[0] for column in range(12)] for row in range(3)]
        assert grid.getpixel((3, 0)) == grid.getpixel((0, 2)) == (0, 0, 0)  # the lines between two
    assert rows == [[14, 15, *[0] * 10], [*range(2, 14)], [0] * 12]
