"""Analyses are tabulated as they stand in their files; what is missing leaves a row out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ferd.adaptive_adversary import AdaptiveAdversary
from ferd.config import ThreatModel
from ferd.datasets import Images, dataset
from ferd.errors import FerdError
from ferd.image_quality import TeacherEmbedding, image_quality
from ferd.models.registry import build
from ferd.utae_outcomes import UtaeOutcomes
from tasks import analysis_table
from tasks.results import stored_analyses
from tests.conftest import ROOT

CIFAR10 = dataset("cifar10").class_names
CAT, DOG, SHIP = (CIFAR10.index(name) for name in ("cat", "dog", "ship"))
CPU = torch.device("cpu")


def source(target: int | None, turned: int) -> dict[str, Any]:
    """Of twenty images that are right."""
    return {"best_target": target, "turned": [turned] * 10, "attacked": [20] * 10}


def an_analysis(student: str | None = "resnet8-w8", method: str = "ferd", seed: int = 0) -> dict[str, Any]:
    """An analysis in which cats become dogs; a teacher's has the first part alone."""
    attacked = [[0 if row == column else 20 for column in range(10)] for row in range(10)]
    turned = [[0] * 10 for _ in range(10)]
    turned[CAT][DOG], turned[DOG][CAT], turned[DOG][SHIP] = 11, 5, 2
    pairs = [(CAT, DOG, 11, 20), (DOG, CAT, 5, 20), (DOG, SHIP, 2, 16), (SHIP, DOG, 1, 16)]
    keys = ("source", "target", "turned", "attacked")
    analysis: dict[str, Any] = {
        "schema": "ferd-analysis/2",
        "student": student,
        "method": method,
        "seed": seed,
        "adaptive_adversary": {
            "n": 200,
            "turned": turned,
            "attacked": attacked,
            "worst_pairs": [dict(zip(keys, pair, strict=True)) for pair in pairs],
            "clean": {"average": 0.92, "worst": 0.8, "nsd": 0.1, "per_class": []},
            "union": {"average": 0.745, "worst": 0.45, "nsd": 0.2, "per_class": []},
        },
    }
    if student is None:
        return analysis
    outcome = {"n": 200, "entropy": 0.975, "kl_from_uniform": 3.1886, "correct": 0.755}
    outcome["distribution"] = [0.1] * 10
    return analysis | {
        "weakest_classes": [{"class": CAT, "student": source(DOG, 11), "teacher": source(SHIP, 4)}],
        "utae_outcomes": [
            outcome | {"gamma": 0.0, "fooled": 1, "same_end": None},
            outcome | {"gamma": 0.5, "fooled": 49, "same_end": 0.3125},
        ],
        "images": {
            "n": 720,
            "n_real": 210,
            "agreement": {"judge": 0.875, "teacher": 0.969},
            "judge_on_real": 0.995,
            "features": "teacher",
            "feature_dim": 64,
            "inception_score": 5.969,
            "frechet_distance": 2.359,
            "balance": {"counts": [], "entropy": 0.9615},
        },
    }


def write_analyses(benchmark: str, analyses: Sequence[dict[str, Any]]) -> None:
    for analysis in analyses:
        name = "teacher" if analysis["student"] is None else "{student}/{method}/s{seed}".format(**analysis)
        path = Path("results", benchmark, f"{name}.analysis.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(analysis), encoding="utf-8")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    return tmp_path


def test_the_adversary_has_the_worst_three_pairs_and_the_weakest_class_beside_the_teachers():
    table = analysis_table.adversary_table([an_analysis(None, "teacher"), an_analysis()], CIFAR10)
    teacher, student = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    assert student == {
        "method": "ferd",
        "images": "200",
        "clean": "92.0",
        "average": "74.5",
        "worst": "45.0",
        "fail most": "cat → dog 11 of 20, dog → cat 5 of 20, dog → ship 2 of 16",
        "weakest class": "cat",
        "student / teacher": "→ dog 11 of 20 / → ship 4 of 20",
    }
    assert teacher == student | {"method": "teacher", "weakest class": "", "student / teacher": ""}


def test_a_class_that_no_attack_turns_has_no_best_target():
    analysis = an_analysis()
    analysis["weakest_classes"][0] |= {"student": source(None, 0), "teacher": source(1, 0)}
    (row,) = analysis_table.adversary_table([analysis], CIFAR10).rows
    assert row[-1] == "none right / 0 of 20"


def test_utaes_have_a_row_a_gamma():
    assert analysis_table.utae_table([an_analysis()]).rows == [
        ("ferd", "0", "200", "0.975", "1", "", "3.189", "75.5"),
        ("ferd", "0.5", "200", "0.975", "49", "31.2", "3.189", "75.5"),
    ]


def test_scores_of_images_stand_under_the_features_they_are_of():
    other = an_analysis(method="no-fae")
    other["images"] |= {"features": "inception-v3", "feature_dim": 2048, "frechet_distance": 31.5}
    table = analysis_table.images_table([an_analysis(), other])
    ferd = table.rows[0]
    assert ferd[:6] == ("ferd", "720", "210", "87.5", "96.9", "99.5")
    assert ferd[-1] == "0.962"
    assert table.columns["Inception Score (teacher, K = 64)"] == ["5.97", ""]
    assert table.columns["Fréchet distance (teacher, K = 64)"] == ["2.36", ""]
    assert table.columns["Fréchet distance (inception-v3, K = 2048)"] == ["", "31.50"]


def test_the_teacher_comes_first_and_controls_last(folder):
    methods = ("untrained-generator", "no-fae", "ferd")
    write_analyses(
        "digits", [*(an_analysis(method=method) for method in methods), an_analysis(None, "teacher")]
    )
    assert [analysis["method"] for analysis in stored_analyses.load("digits", 10)] == [
        "teacher",
        "ferd",
        "no-fae",
        "untrained-generator",
    ]


def test_student_and_seed_are_named_only_where_there_are_several():
    teacher, first = an_analysis(None, "teacher"), an_analysis()
    assert analysis_table.identity([teacher, first]) == {"method": ["teacher", "ferd"]}
    assert analysis_table.identity([teacher, first, an_analysis("resnet18", seed=1)]) == {
        "student": ["", "resnet8-w8", "resnet18"],
        "method": ["teacher", "ferd", "ferd"],
        "seed": ["", "0", "1"],
    }


def test_the_markdown_has_three_tables_with_names_as_code(folder):
    write_analyses("cifar10", [an_analysis(None, "teacher"), an_analysis()])
    lines = analysis_table.markdown("cifar10").splitlines()
    assert [line.split(".**")[0] for line in lines if line.startswith("**")] == [
        "**Under an adversary that picks the target",
        "**Where uniform-target adversarial examples end up",
        "**Synthetic images",
    ]
    assert "| `ferd` | 0.5 | 200 | 0.975 | 49 | 31.2 | 3.189 | 75.5 |" in lines
    assert sum(line.startswith("| `ferd`") for line in lines) == 1 + 2 + 1
    assert {line.count("|") for line in lines if line.startswith("| `ferd`")} == {9, 10}


def test_a_teacher_alone_has_one_table(folder):
    write_analyses("cifar10", [an_analysis(None, "teacher")])
    assert analysis_table.markdown("cifar10").count("\n| --- |") == 1


def test_without_analyses_one_line_names_the_stage_that_makes_them(folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["analysis_table", "digits"])
    analysis_table.main()
    assert capsys.readouterr().out == (
        "digits: no analyses yet; stage `analyse` makes them: "
        "`python -m tasks.analyse checkpoints/digits/teacher.safetensors`, and so for each student\n"
    )


def test_an_unknown_benchmark_is_refused_in_one_line(folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["analysis_table", "mnist"])
    with pytest.raises(SystemExit):
        analysis_table.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("analysis table: benchmark 'mnist' is unknown; choose from digits")


@pytest.mark.parametrize("content", ["{}", "[]", "cut {"])
def test_a_foreign_file_is_refused(folder, content):
    write_analyses("digits", [an_analysis()])
    Path("results/digits/resnet8-w8/ferd/s0.analysis.json").write_text(content, encoding="utf-8")
    with pytest.raises(FerdError, match=r"ferd/s0\.analysis\.json: .*; delete .* analyse stage"):
        stored_analyses.load("digits", 10)


def test_what_an_analysis_is_made_of_is_tabulated():
    student, teacher = (build("resnet8-w8", classes=10, channels=1, seed=seed) for seed in (0, 1))
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (20, 1, 8, 8), generator=rng).to(torch.uint8)
    data = Images(pixels, torch.arange(20) % 10)
    threat = ThreatModel(norm="linf", epsilon=0.1, step_size=0.05, steps=1)
    adversary = AdaptiveAdversary(student, data, threat, 20, 0, CPU)
    outcomes = UtaeOutcomes(student, teacher, data, [0.5], threat, 20, 0, CPU)
    for part in (adversary, outcomes):
        list(part.batches())
    images = image_quality(data, data, teacher, teacher, TeacherEmbedding(teacher, CPU), 20, CPU)
    analysis = {
        "student": "resnet8-w8",
        "method": "ferd",
        "seed": 0,
        "adaptive_adversary": adversary.figures(),
        "weakest_classes": [{"class": 3, "student": adversary.source(3), "teacher": adversary.source(3)}],
        "utae_outcomes": outcomes.figures(),
        "images": images,
    }
    shown = analysis_table.tables([analysis], dataset("digits").class_names)
    adversary_table, utae_table, images_table = (table.columns for table in shown)
    assert adversary_table["average"] == [f"{100 * adversary.figures()['union']['average']:.1f}"]
    assert utae_table["still right"] == [f"{100 * outcomes.figures()[0]['correct']:.1f}"]
    assert images_table["Fréchet distance (teacher, K = 32)"] == ["0.00"]
    assert images_table["class balance"] == ["1.000"]
