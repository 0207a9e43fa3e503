"""Results in the forms that ``dvc metrics`` and ``dvc plots`` read: a file a method, and tables."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from ferd.files import atomic_write, write_json
from tasks.mlflow_view import ablation_of
from tasks.paths import RESULTS
from tasks.results import FIGURES, Group

METRICS = RESULTS / "metrics"
PLOTS = RESULTS / "plots"
MEASURED = ("clean", "pgd20", "autoattack")


def write_metrics(groups: Mapping[str, Sequence[Group]]) -> None:
    """``metrics/<benchmark>/<student>/<method>.json``: {attack: {figure: the mean over seeds}}."""
    for benchmark, found in groups.items():
        for group in found:
            path = METRICS / benchmark / (group.student or "") / f"{group.method}.json"
            attacks = [attack for attack in MEASURED if attack in group.attacks]
            write_json(path, {attack: _means(group, attack) for attack in attacks})


def write_plots(groups: Mapping[str, Sequence[Group]], gammas: Mapping[str, float]) -> None:
    """``plots/gamma.csv``, ``plots/per_class.csv`` and ``plots/rounds.csv``, a row a point.

    Args:
        gammas: each method's γ.
    """
    _write_table(PLOTS / "gamma.csv", _gamma_rows(groups, gammas))
    _write_table(PLOTS / "per_class.csv", _class_rows(groups))
    _write_table(PLOTS / "rounds.csv", _round_rows(groups))


def _means(group: Group, attack: str) -> dict[str, float]:
    return {figure: mean(group.values(attack, figure)) for figure in FIGURES}


def _students(groups: Mapping[str, Sequence[Group]]) -> Iterator[tuple[str, Group]]:
    for benchmark, found in groups.items():
        for group in found:
            if group.student:
                yield f"{benchmark} {group.student}", group


def _gamma_rows(
    groups: Mapping[str, Sequence[Group]], gammas: Mapping[str, float]
) -> Iterator[dict[str, Any]]:
    for student, group in _students(groups):
        if ablation_of(group.method) and group.method in gammas:
            for seed, worst, average in zip(
                group.seeds, group.values("pgd20", "worst"), group.values("pgd20", "average"), strict=True
            ):
                yield {
                    "student": student,
                    "gamma": gammas[group.method],
                    "seed": seed,
                    "worst": worst,
                    "average": average,
                }


def _class_rows(groups: Mapping[str, Sequence[Group]]) -> Iterator[dict[str, Any]]:
    for student, group in _students(groups):
        columns = [group.per_class(attack) for attack in ("clean", "pgd20")]
        for label, (clean, pgd20) in enumerate(zip(*columns, strict=True)):
            yield {
                "student": student,
                "method": group.method,
                "class": label,
                "clean": clean,
                "pgd20": pgd20,
            }


def _round_rows(groups: Mapping[str, Sequence[Group]]) -> Iterator[dict[str, Any]]:
    for student, group in _students(groups):
        for seed, path in zip(group.seeds, group.paths, strict=True):
            for line in path.with_suffix(".rounds.jsonl").read_text().splitlines():
                record = json.loads(line)
                yield {
                    "run": f"{student} {group.method} s{seed}",
                    "round": record["round"],
                    "agreement": record["agreement"],
                    "largest_proportion": max(record["proportions"]),
                }


def _write_table(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    listed = list(rows)
    with atomic_write(path) as part, part.open("w", newline="") as file:
        if listed:
            writer = csv.DictWriter(file, fieldnames=list(listed[0]))
            writer.writeheader()
            writer.writerows(listed)
