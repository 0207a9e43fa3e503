"""The teacher that comes with the package: whole, small, robust, and enough to distil without data."""

import hashlib
import os
from pathlib import Path

import pytest
import torch

from ferd.assets import CIFAR10_TEACHER, cifar10_teacher
from ferd.config import Benchmark, Method
from ferd.datasets import Images
from ferd.distillation import Distillation
from ferd.evaluation import Evaluation
from ferd.models.registry import build
from tests.conftest import tiny_params

SHA256 = "9f431289c164b8f76a27c0457631456ee1e251bb5377aa79735d6942e9024c69"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def benchmark():
    """cifar10-small with the smallest schedule that has every part."""
    block = tiny_params()["benchmarks"]["cifar10-small"]
    schedule = block["distillation"]
    schedule |= {"rounds": 2, "warmup_rounds": 0, "batch_size": 4, "utae_steps": 2, "precision": "float32"}
    schedule["synthesis"] |= {"steps": 2}
    schedule["student"] |= {"steps": 2}
    block["threat_model"] |= {"steps": 2}
    return Benchmark(**block)


def test_it_is_the_file_that_was_measured_and_small():
    content = CIFAR10_TEACHER.read_bytes()
    assert hashlib.sha256(content).hexdigest() == SHA256
    assert len(content) < 8e6


def test_a_student_is_distilled_from_it_without_any_image(benchmark, tmp_path):
    student = build("resnet8-w8", classes=10, channels=3)
    method = Method(**tiny_params()["methods"]["ferd"])
    distillation = Distillation(
        cifar10_teacher(),
        student,
        (3, 32, 32),
        benchmark.distillation,
        benchmark.augmentation,
        method,
        benchmark.threat_model,
        0,
        tmp_path / "pool",
        CPU,
    )
    records = list(distillation.rounds())
    assert len(records) == 2 and distillation.pool.size == 8
    assert all(record.student["clean_loss"] > 0 for record in records)


@pytest.mark.skipif("FERD_DATA" not in os.environ, reason="FERD_DATA is not set: no CIFAR-10")
def test_it_is_robust(benchmark):
    from ferd.dataset_readers import read

    _, test = read("cifar10", Path(os.environ["FERD_DATA"]))
    some: Images = test.take(torch.arange(40))
    attacks = benchmark.evaluation.model_copy(
        update={"attacks": {"clean": "all", "pgd20": "all"}, "other_balls": []}
    )
    evaluation = Evaluation(cifar10_teacher(), some, attacks, benchmark.threat_model.with_steps(20), 0, CPU)
    for _ in evaluation.batches():
        pass
    figures = evaluation.figures()
    assert figures["clean"]["average"] > 0.65
    assert figures["pgd20"]["average"] > 0.35
