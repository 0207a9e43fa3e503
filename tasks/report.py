"""Stage ``report``: all results at hand -> one self-contained page and ``results/summary.json``."""

import argparse
import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, FileSystemLoader, select_autoescape
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ferd.config import Benchmark
from ferd.datasets import dataset
from ferd.files import atomic_write, write_json
from tasks import analysis_table, params, process
from tasks.paths import RESULTS
from tasks.results import FIGURES, Group, load, spread, students
from tasks.table import AGREEMENT, COLUMNS, NAMES, agreement, cell, heading, identity, warnings

PAGE = RESULTS / "report" / "index.html"
SUMMARY = RESULTS / "summary.json"
TEMPLATE = Path(__file__).with_name("report.html.j2")
SHOWN = ("ferd", "no-reweighting", "no-fae", "real-data", "uniform-noise", "untrained-generator")
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#999999", "#56b4e9")  # Okabe and Ito
MOST_MAPPED, MOST_PRINTED = 20, 10  # classes of a heat map, and of one with values in its cells
PANELS = 3  # heat maps in a row


def main() -> None:
    """``python -m tasks.report``."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with process.running("report") as progress:
        progress.start()
        benchmarks = params.read().benchmarks
        groups = {name: load(name) for name in benchmarks}
        write_json(SUMMARY, summary(groups))
        sections = [section(name, benchmarks[name], found) for name, found in groups.items() if found]
        environment = Environment(
            loader=FileSystemLoader(TEMPLATE.parent), autoescape=select_autoescape(["j2"])
        )
        page = environment.get_template(TEMPLATE.name).render(sections=sections)
        with atomic_write(PAGE) as part:
            part.write_text(page)
        for name, found in groups.items():
            if found:
                with atomic_write(PAGE.with_name(f"{name}.png")) as part:
                    overview_chart(name, found).savefig(part, format="png", dpi=150)


def summary(groups: dict[str, list[Group]]) -> dict[str, Any]:
    """For each benchmark, student, method, attack and figure: mean and std over seeds."""
    return {
        "schema": "ferd-summary/1",
        "benchmarks": {
            name: [
                {
                    "student": group.student,
                    "method": group.method,
                    "seeds": group.seeds,
                    "attacks": {attack: _figures(group, attack) for attack in group.attacks},
                    "warnings": group.warnings(),
                }
                for group in found
            ]
            for name, found in groups.items()
            if found
        },
    }


def _figures(group: Group, attack: str) -> dict[str, Any]:
    figures: dict[str, Any] = {"n": group.images(attack)}
    for figure in FIGURES:
        average, deviation = spread(group.values(attack, figure))
        figures[figure] = {"mean": average, "std": deviation}
    return figures


def section(name: str, benchmark: Benchmark, groups: Sequence[Group]) -> dict[str, Any]:
    """What the page shows of one benchmark."""
    threat = benchmark.threat_model
    return {
        "name": name,
        "epsilon": f"{threat.epsilon:.4g}",
        "teacher": benchmark.teacher.network,
        "headings": [*(heading(groups, *column) for column in COLUMNS), AGREEMENT],
        "rows": [
            {
                "method": group.method,
                "student": group.student or groups[0].results[0]["network"],
                "seeds": len(group.seeds),
                "cells": [*(cell(group, *column) for column in COLUMNS), agreement(group)],
            }
            for group in groups
        ],
        "warnings": warnings(groups),
        "overview": svg(overview_chart(name, groups)),
        "charts": [
            {
                "title": f"{NAMES[attack]}, {student}",
                "svg": svg(per_class_chart(_beside(student, groups), attack, _class_names(benchmark))),
            }
            for student in students(groups) or ["teacher"]
            for attack in ("clean", "pgd20")
        ],
        "failures": failures(analysis_table.load(name), _class_names(benchmark)),
        "grids": _grids(name, groups),
        "class_names": ", ".join(_class_names(benchmark)),
    }


def overview_chart(name: str, groups: Sequence[Group]) -> Figure:
    """Accuracy under PGD-20 of every method: average and worst class, with std over seeds."""
    figure = Figure(figsize=(9, 0.6 + 0.42 * len(groups)), layout="constrained")
    axes = figure.subplots()
    places = range(len(groups))
    for number, (kind, colour) in enumerate((("average", COLOURS[0]), ("worst", COLOURS[1]))):
        spreads = [spread(group.values("pgd20", kind)) for group in groups]
        axes.barh(
            [place + 0.38 * (number - 0.5) for place in places],
            [100 * average for average, _ in spreads],
            0.36,
            xerr=[100 * (deviation or 0) for _, deviation in spreads],
            color=colour,
            ecolor="#444444",
            label=f"{kind} of the classes" if kind == "average" else "worst class",
        )
    rows = zip(*identity(groups).values(), strict=True)
    names = [" ".join(filter(None, row)) for row in rows]
    axes.set_yticks(
        places, [f"{name} ({len(group.seeds)})" for name, group in zip(names, groups, strict=True)]
    )
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"{name}: accuracy under PGD-20, % (seeds in brackets; bars: std over seeds)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    return figure


def per_class_chart(groups: Sequence[Group], attack: str, class_names: Sequence[str]) -> Figure:
    """Accuracy of each class, the first group's (the teacher's) behind; its weakest class first."""
    profile = groups[0].per_class(attack)
    order = sorted(range(len(profile)), key=profile.__getitem__)
    shown = [group for group in groups[1:] if group.method in SHOWN]
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.bar(
        range(len(order)), [100 * profile[c] for c in order], 0.95, color="#dddddd", label=groups[0].method
    )
    width = 0.8 / max(1, len(shown))
    for number, group in enumerate(shown):
        values = group.per_class(attack)
        left = [place + (number + 0.5) * width - 0.4 for place in range(len(order))]
        colour = COLOURS[SHOWN.index(group.method)]
        axes.bar(left, [100 * values[c] for c in order], width, color=colour, label=group.method)
    axes.set_xticks(range(len(order)), [class_names[c] for c in order])
    axes.set_ylim(0, 100)
    axes.set_ylabel("accuracy, %")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure


def failures(analyses: Sequence[dict[str, Any]], class_names: Sequence[str]) -> dict[str, Any] | None:
    """The tables of a benchmark's analyses and heat maps for each student; None where there are none."""
    if not analyses:
        return None
    return {
        "tables": analysis_table.tables(analyses, class_names),
        "maps": _success_maps(analyses, class_names) if len(class_names) <= MOST_MAPPED else [],
    }


def _success_maps(analyses: Sequence[dict[str, Any]], class_names: Sequence[str]) -> list[dict[str, str]]:
    """A chart a student, the teacher in each; all on one scale."""
    shown = [analysis for analysis in analyses if analysis["method"] in ("teacher", *SHOWN)]
    networks = sorted({analysis["student"] for analysis in shown if analysis["student"]}) or ["teacher"]
    most = max((np.nanmax(_percent(analysis)) for analysis in shown), default=0)
    return [
        {"title": network, "svg": svg(success_chart(beside, class_names, most))}
        for network in networks
        if (beside := [analysis for analysis in shown if analysis["student"] in (None, network)])
    ]


def success_chart(analyses: Sequence[dict[str, Any]], class_names: Sequence[str], most: float) -> Figure:
    """How often a class's images end up as the target of an attack, a panel an analysis; 0 to ``most`` %."""
    lines = math.ceil(len(analyses) / PANELS)
    columns = max(2, math.ceil(len(analyses) / lines))
    figure = Figure(figsize=(9, 0.6 + 9 * lines / columns), layout="compressed")
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True)
    names = zip(*analysis_table.identity(analyses).values(), strict=True)
    for axes in panels.flat[len(analyses) :]:
        axes.set_axis_off()
    for axes, name, analysis in zip(panels.flat, names, analyses, strict=False):
        mesh = _draw_map(axes, _percent(analysis), class_names, max(10, most))
        axes.set_title(" ".join(filter(None, name)), fontsize=10)
        axes.set_xlabel("attacked toward", fontsize=8)
    for axes in panels[:, 0]:
        axes.set_ylabel("class of the images", fontsize=8)
    bar = figure.colorbar(mesh, ax=panels, location="top", shrink=0.4, aspect=30)
    bar.set_label("ends up there, % of the class's images", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def _percent(analysis: dict[str, Any]) -> NDArray[np.float64]:
    """(source, target) success of the targeted attacks in percent; NaN where none was run."""
    return 100 * np.array(analysis["adaptive_adversary"]["success"], dtype=np.float64)


def _draw_map(axes: Axes, percent: NDArray[np.float64], class_names: Sequence[str], most: float) -> QuadMesh:
    mesh = axes.pcolormesh(percent, cmap="Blues", vmin=0, vmax=most, edgecolors="#ffffff", linewidth=0.5)
    axes.set_facecolor("#dddddd")
    places = [number + 0.5 for number in range(len(class_names))]
    axes.set_xticks(places, class_names, rotation=90 * (max(map(len, class_names)) > 2), fontsize=7)
    axes.set_yticks(places, class_names, fontsize=7)
    axes.tick_params(length=0)
    axes.set_ylim(len(class_names), 0)
    axes.set_aspect("equal")
    if len(class_names) <= MOST_PRINTED:
        for (source, target), value in np.ndenumerate(percent):
            if not np.isnan(value):
                colour = "#ffffff" if value > 0.7 * most else "#1a1a1a"
                where = (target + 0.5, source + 0.5)
                axes.text(*where, f"{value:.0f}", fontsize=6, color=colour, ha="center", va="center")
    return mesh


def svg(figure: Figure) -> str:
    """The figure as an SVG element; equal figures give equal text."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "ferd"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def _beside(student: str, groups: Sequence[Group]) -> list[Group]:
    """The teacher's results and one student's."""
    return [group for group in groups if group.student in (None, student)]


def _class_names(benchmark: Benchmark) -> tuple[str, ...]:
    return dataset(benchmark.data.dataset).class_names


def _grids(name: str, groups: Sequence[Group]) -> list[dict[str, str]]:
    """The image grids of the first seed, where this machine has made them."""
    grids = []
    for group in groups:
        if group.student is None or group.method not in SHOWN:
            continue
        path = RESULTS / name / group.student / group.method / f"s{group.seeds[0]}.images.png"
        if path.exists():
            data = base64.b64encode(path.read_bytes()).decode()
            grids.append(
                {"title": f"{group.student} {group.method}", "source": f"data:image/png;base64,{data}"}
            )
    return grids


if __name__ == "__main__":
    main()
