"""Analysis files read back (``tasks.analyse``)."""

from pathlib import Path
from typing import Any

from ferd.files import NUMBER, check_fields, read_json
from tasks.params import CONTROLS
from tasks.paths import ANALYSIS_SCHEMA, RESULTS
from tasks.results.stored import require_classes

FIELDS = {
    "student": str | None,
    "method": str,
    "seed": int,
    "adaptive_adversary": {
        "n": int,
        "turned": [list],
        "attacked": [list],
        "worst_pairs": [{"source": int, "target": int, "turned": int, "attacked": int}],
        "clean": {"average": NUMBER},
        "union": {"average": NUMBER, "worst": NUMBER},
    },
}
SOURCE = {"best_target": int | None, "turned": list, "attacked": list}  # a class under attack
OF_STUDENT = {  # what a student's analysis has beside
    "weakest_classes": [{"class": int, "student": SOURCE, "teacher": SOURCE}],
    "utae_outcomes": [
        {"gamma": NUMBER, "n": int, "entropy": NUMBER, "fooled": int, "same_end": NUMBER | None}
        | {"kl_from_uniform": NUMBER, "correct": NUMBER, "distribution": list}
    ],
    "images": {
        "n": int,
        "n_real": int,
        "agreement": {"judge": NUMBER, "teacher": NUMBER},
        "judge_on_real": NUMBER,
        "features": str,
        "feature_dim": int,
        "inception_score": NUMBER,
        "frechet_distance": NUMBER,
        "balance": {"entropy": NUMBER},
    },
}


def load(benchmark: str, classes: int) -> list[dict[str, Any]]:
    """A benchmark's analyses: the teacher first, controls last, methods by name between.

    Raises:
        FerdError: a file is not an analysis of this project, or of another number of classes.
    """
    folder = RESULTS / benchmark
    files = [*folder.glob("teacher.analysis.json"), *folder.glob("*/*/s*.analysis.json")]
    analyses = {path: _read(path) for path in files}
    for path, analysis in analyses.items():
        require_classes(path, len(analysis["adaptive_adversary"]["attacked"]), classes, "analyse")
    return sorted(analyses.values(), key=_place)


def _place(analysis: dict[str, Any]) -> tuple[bool, str, bool, str, int]:
    student, method = analysis["student"] or "", analysis["method"]
    return (method in CONTROLS, student, method != "ferd", method, analysis["seed"])


def _read(path: Path) -> dict[str, Any]:
    again = "run its analyse stage"
    analysis = read_json(path, FIELDS, schema=ANALYSIS_SCHEMA, again=again)
    if analysis["student"] is not None:
        check_fields(analysis, OF_STUDENT, str(path), again)
    return analysis
