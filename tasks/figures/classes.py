"""Accuracy of every class: beside the teacher's profile, and as gain or loss against FERD."""

from collections.abc import Sequence

import altair as alt

from tasks.figures.figure import Figure, mean_and_std, missing, panel, scale_of
from tasks.figures.style import by_colour, kind, kind_colours
from tasks.results.tidy import Row

MOST_NAMED = 20  # classes that fit on an axis
MOST_PANELS = 12
PROFILE_READING = (
    "Accuracy in percent under PGD-20, a bar a class, the teacher's weakest class first; wide grey bars "
    "behind: the teacher on the same class; whiskers: ± one standard deviation over seeds."
)
GAIN_READING = (
    "Percentage points under PGD-20 by which a method is better (blue) or worse (orange) than FERD in a "
    "class, means over seeds, not tested against noise; the teacher's weakest class first. Controls may go "
    "beyond the scale of colours."
)


def profiles(rows: Sequence[Row], command: str) -> Figure:
    """A panel a method, the teacher behind; ``rows``: ``tidy.per_class``."""
    title = "Accuracy of every class, beside the teacher's profile"
    students = [row for row in rows if row["method"] != "teacher"]
    if not students:
        return missing("classes", title, "No student has been evaluated.", command)
    labels = list(dict.fromkeys(row["label"] for row in students))
    left_out = f" In the download alone: {', '.join(labels[MOST_PANELS:])}." if labels[MOST_PANELS:] else ""
    order = weakest_first(rows)
    panels = {
        label: _profile([row for row in rows if row["label"] == label], _teacher(rows), order)
        for label in labels[:MOST_PANELS]
    }
    return Figure("classes", title, f"{PROFILE_READING}{left_out}", command, rows, panels, columns=3)


def weakest_first(rows: Sequence[Row]) -> list[str]:
    """The classes by the teacher's accuracy, or by the first method's where it has none."""
    first = _teacher(rows) or [row for row in rows if row["label"] == rows[0]["label"]]
    return [row["class"] for row in sorted(first, key=lambda row: row["mean"])]


def _teacher(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["method"] == "teacher"]


def _classes(order: Sequence[str]) -> alt.X:
    axis = alt.Axis(labelAngle=-45 if max(map(len, order)) > 2 else 0, labels=len(order) <= MOST_NAMED)
    return alt.X("class:N", title=None, sort=list(order), axis=axis)


def _profile(rows: Sequence[Row], teacher: Sequence[Row], order: Sequence[str]) -> alt.TopLevelMixin:
    rows = [row | {"kind": kind(row["method"])} for row in rows]
    x = _classes(order)
    y = alt.Y("mean:Q", title="%", scale=alt.Scale(domain=[0, 100]))
    tips = ["label:N", "class:N", *mean_and_std(".1f")]
    behind = (
        panel(teacher)
        .mark_bar(style="behind", width=alt.RelativeBandSize(0.98))
        .encode(x=x, y=y, tooltip=tips)
    )
    colour = by_colour("kind", kind_colours([row["kind"] for row in rows])).legend(None)
    bars = panel(rows).mark_bar(width=alt.RelativeBandSize(0.55)).encode(x=x, y=y, color=colour, tooltip=tips)
    whiskers = panel(rows).mark_rule(style="whisker", clip=True).encode(x=x, y="low:Q", y2="high:Q")
    return alt.layer(behind, bars, whiskers).properties(height=150)


def gains(rows: Sequence[Row], command: str) -> Figure:
    """A heat map a student network: method by class, the difference to FERD in points."""
    title = "Where each method gains or loses against FERD"
    found = differences(rows)
    if not found:
        gap = "Needs FERD and another method of the same student."
        return missing("gains", title, gap, command)
    order = weakest_first(rows)
    most = scale_of(found, "points", least=5.0)
    students = list(dict.fromkeys(row["student"] for row in found))
    panels = {
        student if len(students) > 1 else "": _differences_map(
            [row for row in found if row["student"] == student], order, most
        )
        for student in students
    }
    return Figure("gains", title, GAIN_READING, command, found, panels)


def differences(rows: Sequence[Row]) -> list[Row]:
    """Each method's accuracy of each class minus FERD's, of the same student."""
    ferd = {(row["student"], row["class"]): row["mean"] for row in rows if row["method"] == "ferd"}
    return [
        {
            "label": row["label"],
            "student": row["student"],
            "method": row["method"],
            "class": row["class"],
            "points": round(row["mean"] - ferd[row["student"], row["class"]], 6),
        }
        for row in rows
        if row["method"] not in ("ferd", "teacher") and (row["student"], row["class"]) in ferd
    ]


def _differences_map(rows: Sequence[Row], order: Sequence[str], most: float) -> alt.TopLevelMixin:
    y = alt.Y("method:N", title=None, sort=list(dict.fromkeys(row["method"] for row in rows)))
    legend = None if len(order) <= MOST_NAMED else alt.Legend(format="+.0f")
    scale = alt.Scale(domain=[-most, most], range="diverging", clamp=True, interpolate="rgb")
    colour = alt.Color("points:Q", title="points", scale=scale, legend=legend)
    base = panel(
        [row | {"text": f"{points:+d}" if (points := round(row["points"])) else "0"} for row in rows]
    )
    cells = base.mark_rect().encode(
        x=_classes(order),
        y=y,
        color=colour,
        tooltip=["label:N", "class:N", alt.Tooltip("points:Q", format="+.1f")],
    )
    layers = [cells]
    if len(order) <= MOST_NAMED:
        strong = f"abs(datum.points) > {0.9 * most}"
        for style, test in (("low", f"!({strong})"), ("high", strong)):
            text = base.transform_filter(test).mark_text(style=style, fontSize=10)
            layers.append(text.encode(x=_classes(order), y=y, text="text:N"))
    return alt.layer(*layers).properties(height=26 * len({row["label"] for row in rows}))
