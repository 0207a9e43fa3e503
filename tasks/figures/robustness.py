"""The headline, and average against worst: every method as one number, or as two."""

import math
from collections.abc import Sequence
from typing import Any

import altair as alt

from tasks.figures.figure import Figure, missing, panel
from tasks.figures.style import by_colour, by_shape, explained, kind, kind_colours, label_colours
from tasks.results.tidy import Row

WITH_DATA = ("teacher", "real-data")
HEADLINE_READING = (
    "Accuracy in percent under PGD-20, a bar a method: the mean over seeds; whiskers: ± one standard "
    "deviation over seeds (none: one seed), which leave out what other test images would change. Dashed: the "
    "teacher. The worst class is each seed's own. {images} test images, as many of each class."
)
TRADE_OFF_READING = (
    "Under PGD-20, percent: the average over classes to the right, the worst class (the worst tenth of the "
    "classes) upward; whiskers: ± one standard deviation over seeds. Up and right is better. The line is the "
    "Pareto front of the methods without real data: no mean without data is higher than theirs in both, "
    "whatever the noise."
)


def headline(rows: Sequence[Row], command: str) -> Figure:
    """Bars of the worst class and of the average, a row a method; ``rows``: ``tidy.accuracy``."""
    shown = _under_pgd20(rows, ("worst", "average"))
    title = "Worst class and average, every method"
    if not shown:
        return missing("headline", title, "No student or teacher has been evaluated.", command)
    most = max(1.0, *(row["high"] for row in shown))  # one scale for both
    return Figure(
        "headline",
        title,
        HEADLINE_READING.format(images=f"{shown[0]['images']:,}"),
        command,
        shown,
        {
            "Worst class": _bars([row for row in shown if row["figure"] == "worst"], most),
            "Average of the classes": _bars([row for row in shown if row["figure"] == "average"], most),
        },
        columns=2,
        legend=explained(kind_colours([row["kind"] for row in shown])),
    )


def _under_pgd20(rows: Sequence[Row], figures: Sequence[str]) -> list[Row]:
    return [
        {"kind": kind(row["method"]), "text": _text(row), **row}
        for row in rows
        if row["attack"] == "pgd20" and row["figure"] in figures
    ]


def _text(row: Row) -> str:
    return f"{row['mean']:.1f}" if row["std"] is None else f"{row['mean']:.1f} ± {row['std']:.1f}"


def _bars(rows: Sequence[Row], most: float) -> alt.TopLevelMixin:
    teacher = [row for row in rows if row["method"] == "teacher"]
    y = alt.Y("label:N", title=None, sort=[row["label"] for row in rows], scale=alt.Scale(paddingInner=0.25))
    step = next(step for step in (1, 2, 5, 10, 20) if step == 20 or most / step <= 5)
    last = step * math.ceil(most / step)
    axis = alt.Axis(values=list(range(0, last + 1, step)), format="d", titleAnchor="start")
    scale = alt.Scale(domain=[0, 1.45 * last])  # numbers stand beyond the bars
    x = alt.X("mean:Q", title="under PGD-20, %", scale=scale, axis=axis)
    tips = ["label:N", "text:N", "seeds:Q", "images:Q"]
    base = panel(rows)
    colour = by_colour("kind", kind_colours([row["kind"] for row in rows]))
    bars = base.mark_bar().encode(y=y, x=x, color=colour, tooltip=tips)
    whiskers = base.mark_rule(style="whisker", clip=True).encode(y=y, x="low:Q", x2="high:Q")
    values = base.mark_text(align="right").encode(y=y, x=alt.value("width"), text="text:N")
    line = panel(teacher).mark_rule(style="reference").encode(x="mean:Q")
    return alt.layer(*([line] if teacher else []), bars, whiskers, values).properties(height=24 * len(rows))


def trade_off(rows: Sequence[Row], command: str) -> Figure:
    """Average against worst: all methods, and the cluster of those without data from nearby."""
    points = pivot(rows)
    title = "Average against worst class"
    if not points:
        return missing("trade-off", title, "No student has been evaluated.", command)
    near = [row for row in points if row["kind"] in ("FERD", "variant of FERD", "baseline")]
    panels = {"Everything": _scatter(points, points, whole=True)}
    if len(near) > 1:
        panels["From nearby: FERD, its variants and baselines"] = _scatter(near, points, whole=False)
    legend = explained(label_colours({point["label"]: point["method"] for point in points}), shapes=True)
    return Figure("trade-off", title, TRADE_OFF_READING, command, points, panels, columns=2, legend=legend)


def pivot(rows: Sequence[Row]) -> list[Row]:
    """A row a method: average and worst side by side, and whether it is on the Pareto front."""
    found: dict[str, dict[str, Any]] = {}
    for row in _under_pgd20(rows, ("average", "worst")):
        entry = found.setdefault(
            row["label"], {key: row[key] for key in ("label", "student", "method", "kind", "seeds")}
        )
        for key in ("mean", "std", "low", "high", "text"):
            entry[f"{row['figure']}_{key}"] = row[key]
    points = list(found.values())
    candidates = [point for point in points if point["method"] not in WITH_DATA]
    return [point | {"front": point in candidates and _undominated(point, candidates)} for point in points]


def _undominated(point: Row, points: Sequence[Row]) -> bool:
    """Nothing is at least as good in both and better in one."""
    mine = (point["average_mean"], point["worst_mean"])
    return not any(
        theirs != mine and theirs[0] >= mine[0] and theirs[1] >= mine[1]
        for theirs in ((other["average_mean"], other["worst_mean"]) for other in points)
    )


def _scatter(rows: Sequence[Row], legend: Sequence[Row], *, whole: bool) -> alt.TopLevelMixin:
    colours = label_colours({row["label"]: row["method"] for row in legend})
    scale = alt.Scale(zero=True, nice=True) if whole else alt.Scale(zero=False, nice=True, padding=12)
    x = alt.X("average_mean:Q", title="average of the classes, %", scale=scale)
    y = alt.Y("worst_mean:Q", title="worst class, %", scale=scale)
    base = panel(rows)
    front = (
        base.transform_filter("datum.front")
        .mark_line(style="reference")
        .encode(x=x, y=y, order="average_mean:Q")
    )
    across = base.mark_rule(style="whisker").encode(x="average_low:Q", x2="average_high:Q", y=y)
    upward = base.mark_rule(style="whisker").encode(x=x, y="worst_low:Q", y2="worst_high:Q")
    points = base.mark_point(filled=True, size=110, opacity=1).encode(
        x=x,
        y=y,
        color=by_colour("label", colours),
        shape=by_shape("label", colours),
        tooltip=["label:N", "average_text:N", "worst_text:N", "seeds:Q"],
    )
    return alt.layer(front, across, upward, points).properties(height=300)
