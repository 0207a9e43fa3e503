"""Results in the forms that ``dvc metrics`` and ``dvc plots`` read: a file a method, and tables."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from ferd.config import Benchmark, Method
from ferd.datasets import dataset
from ferd.files import atomic_write, write_json
from tasks.paths import RESULTS
from tasks.results import tidy
from tasks.results.stored import FIGURES, Group

METRICS = RESULTS / "metrics"
PLOTS = RESULTS / "plots"
ATTACKS = ("clean", "pgd20", "autoattack")


def write_metrics(groups: Mapping[str, Sequence[Group]]) -> None:
    """``metrics/<benchmark>/<student>/<method>.json``: {attack: {figure: its mean over seeds}}."""
    for benchmark, found in groups.items():
        for group in found:
            path = METRICS / benchmark / (group.student or "") / f"{group.method}.json"
            attacks = [attack for attack in ATTACKS if attack in group.attacks]
            write_json(path, {attack: _means(group, attack) for attack in attacks})


def write_plots(
    groups: Mapping[str, Sequence[Group]], benchmarks: Mapping[str, Benchmark], methods: Mapping[str, Method]
) -> None:
    """``plots/<benchmark>/``: ``gamma.csv``, ``classes.csv``, ``agreement.csv``; percent, means over seeds.

    The first has a column a (student, figure) under PGD-20, of the students with several values of γ; the
    others a column a (student, method). A student is named where there are several.
    """
    for name, found in groups.items():
        if found:
            names = dataset(benchmarks[name].data.dataset).class_names
            by_round = tidy.rounds(found)
            tables = {
                "gamma": _pivot(_over_gamma(found, tidy.gammas(methods)), "gamma", "column"),
                "classes": _pivot(tidy.per_class(found, "pgd20", names), "class", "label"),
                "agreement": _pivot(
                    [row for row in by_round if row["quantity"] == "agreement"], "round", "label"
                ),
            }
            for table, rows in tables.items():
                _write_table(PLOTS / name / f"{table}.csv", rows)


def _over_gamma(groups: Sequence[Group], gamma_of: Mapping[str, float]) -> list[tidy.Row]:
    rows = [row for row in tidy.over_gamma(groups, gamma_of) if row["attack"] == "pgd20"]
    rows = tidy.compared(rows, "gamma")
    several = len({row["student"] for row in rows}) > 1
    return [
        row | {"column": f"{row['figure']} · {row['student']}" if several else row["figure"]} for row in rows
    ]


def _pivot(rows: Sequence[tidy.Row], index: str, column: str) -> list[tidy.Row]:
    """A row a value of ``index``, with the mean of each value of ``column``."""
    wide: dict[Any, tidy.Row] = {}
    for row in rows:
        wide.setdefault(row[index], {index: row[index]})[row[column]] = row["mean"]
    return list(wide.values())


def _means(group: Group, attack: str) -> dict[str, float]:
    return {figure: mean(group.values(attack, figure)) for figure in FIGURES}


def _write_table(path: Path, rows: Sequence[tidy.Row]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic_write(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=columns)
        writer.writeheader()
        writer.writerows(rows)
