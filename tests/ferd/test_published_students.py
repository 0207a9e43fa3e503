"""The students whose weights are published: the files that the page names, as good as it says."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from ferd.checkpoint import load_classifier
from ferd.config import EvaluationSettings
from ferd.dataset_readers import read
from ferd.datasets import first_per_class
from ferd.evaluation import Evaluation
from ferd.paper import THREAT_MODEL
from tests.conftest import ROOT

EVIDENCE = ROOT / "docs" / "evidence"
STUDENTS = sorted((EVIDENCE / "cifar10-fairness-students").iterdir())


def test_the_page_names_every_file_and_its_hash():
    page = (EVIDENCE / "cifar10-fairness.md").read_text()
    assert len(STUDENTS) == 6
    for file in STUDENTS:
        assert f"| `{file.name}` | `{hashlib.sha256(file.read_bytes()).hexdigest()}` |" in page


@pytest.mark.skipif("FERD_DATA" not in os.environ, reason="FERD_DATA is not set: no CIFAR-10")
@pytest.mark.parametrize("file", STUDENTS, ids=lambda file: file.stem)
def test_each_class_is_recognised_as_often_as_was_measured(file):
    method, _, seed = file.stem.rpartition("-")
    expected = json.loads((EVIDENCE / "cifar10-fairness-autoattack.json").read_text())[method][seed]["clean"]
    _, test = read("cifar10", Path(os.environ["FERD_DATA"]))
    images = test.take(first_per_class(test.labels, 0, 100))
    settings = EvaluationSettings(batch_size=500, attacks={"clean": "all"}, other_balls=[], threads=1)
    evaluation = Evaluation(load_classifier(file), images, settings, THREAT_MODEL, 0, "cpu")
    list(evaluation.batches())
    assert evaluation.figures()["clean"]["per_class"] == pytest.approx(expected, abs=0.011)  # an image of 100
