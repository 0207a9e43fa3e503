"""The paper's figures (``published.yaml``) beside ours: difference, and whether it is within noise."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ferd.config import Benchmark
from tasks.results.stored import Group, spread
from tasks.results.tidy import Row

PAPER = Path(__file__).with_name("published.yaml")
COLUMNS = (
    ("clean", "average"), ("clean", "worst"), ("pgd20", "worst"),
    ("autoattack", "average"), ("autoattack", "worst"), ("autoattack", "nsd"),
)  # fmt: skip
NOISE = 0.95  # of the differences between two runs of the same are called noise
WHOLE = 10_000  # test images of each of the paper's datasets


def read() -> dict[str, Any]:
    """The versioned figures."""
    content: dict[str, Any] = yaml.safe_load(PAPER.read_text("utf-8"))
    return content


def compare(benchmark: Benchmark, groups: Sequence[Group]) -> list[Row]:
    """A row a (table, paper's student, method, attack, figure); ``paper`` or ``ours`` None where open.

    A method of the paper that is none of ours has no ``method``, and nothing of ours beside it.

    Ours is the benchmark's student of the same name; where it has none, its first student stands beside the
    paper's ResNet-18. ``same_networks`` says whether student and teacher are the paper's.
    """
    rows = []
    paper = read()["datasets"].get(benchmark.data.name, {"tables": []})
    for table in paper["tables"]:
        student = _ours(table["student"], benchmark.students)
        for entry in table["rows"]:
            found = [
                group for group in groups if (group.student, group.method) == (student, entry.get("method"))
            ]
            rows += [
                {
                    "table": table["name"],
                    "paper_student": table["student"],
                    "paper_method": entry["paper"],
                    "student": student or "",
                    "method": entry.get("method", ""),
                    "same_networks": (student, benchmark.teacher.network)
                    == (table["student"], paper["teacher"]),
                    "attack": attack,
                    "figure": figure,
                    **_beside(entry.get(f"{attack}.{figure}"), found, attack, figure),
                }
                for attack, figure in COLUMNS
            ]
    return rows


def _ours(student: str, students: Sequence[str]) -> str | None:
    if student in students:
        return student
    return students[0] if student == "resnet18" else None


def _beside(paper: float | None, found: Sequence[Group], attack: str, figure: str) -> Row:
    values = found[0].values(attack, figure) if found else []
    ours, deviation = spread(values) if values else (None, None)
    factor = 1 if figure == "nsd" else 100
    images = found[0].images(attack) if values else 0
    mean = None if ours is None else round(factor * ours, 6)
    std = None if deviation is None else round(factor * deviation, 6)
    difference = None if paper is None or mean is None else round(mean - paper, 6)
    return {
        "paper": paper, "ours": mean, "std": std, "seeds": len(values),
        "images": images, "difference": difference,
        "within_noise": within_noise(difference, std, len(values)) if images >= WHOLE else None,
    }  # fmt: skip


def within_noise(difference: float | None, std: float | None, seeds: int) -> bool | None:
    """|difference| ≤ t·s·√(1 + 1/n): both are runs of one spread s, the paper's one, ours a mean of n.

    t is Student's 97.5 % point at n − 1 degrees of freedom, since s is an estimate: 12.7 of two seeds, 4.3 of
    three. None where it cannot be said: an open cell, or one seed.
    """
    if difference is None or std is None:
        return None
    from scipy.stats import t  # takes a second to import

    quantile = t.ppf((1 + NOISE) / 2, seeds - 1)
    return bool(abs(difference) <= quantile * std * math.sqrt(1 + 1 / seeds))
