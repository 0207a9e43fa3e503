"""γ, the weight of the uniform target in the attack (Eq. 10), against everything that is measured."""

from collections.abc import Mapping, Sequence

import altair as alt

from tasks.figures.figure import Figure, Row, mean_and_std, missing, panel
from tasks.figures.style import BLUE, GREEN, ORANGE, RED, SKY, by_colour, by_shape, explained
from tasks.table import NAMES

COLOURS = {
    NAMES[attack]: colour
    for attack, colour in zip(
        ("clean", "fgsm", "pgd20", "cw30", "autoattack"), (SKY, ORANGE, BLUE, GREEN, RED), strict=True
    )
}
TITLES = {"average": "Average of the classes, %", "worst": "Worst class, %", "nsd": "NSD (lower is fairer)"}
READING = (
    "A line an attack, over γ: the weight of the uniform target in the student's adversarial examples; "
    "γ = 0 is plain KL-PGD, γ = 0.5 is FERD. Bands: ± one standard deviation over seeds (none: one seed)."
)


def curves(rows: Sequence[Row], gamma_of: Mapping[str, float], command: str) -> Figure:
    """Panels of average, worst and NSD for each student; ``rows``: ``tidy.over_gamma``."""
    title = "γ, the weight of the uniform target"
    ran = {row["method"] for row in rows}
    absent = [name for name in sorted(gamma_of, key=gamma_of.__getitem__) if name not in ran]
    missing_note = "No student for " + ", ".join(f"γ = {gamma_of[name]:g}" for name in absent) + "."
    students = [
        student
        for student in dict.fromkeys(row["student"] for row in rows)
        if len({row["gamma"] for row in rows if row["student"] == student}) > 1
    ]
    if not students:
        return missing("gamma", title, f"Needs two values of γ or more. {missing_note}", command)
    shown = [
        row | {"attack": NAMES[row["attack"]]}
        for row in rows
        if NAMES[row["attack"]] in COLOURS and row["student"] in students
    ]
    panels = {
        text if len(students) == 1 else f"{student}: {text}": _lines(
            [row for row in shown if row["figure"] == figure and row["student"] == student], figure
        )
        for student in students
        for figure, text in TITLES.items()
    }
    legend = explained({name: COLOURS[name] for name in attacks_of(shown)}, shapes=True)
    sizes = {row["attack"]: row["images"] for row in shown}
    reading = f"{READING} Test images: {', '.join(f'{name} {size}' for name, size in sizes.items())}."
    gap = missing_note if absent else ""
    return Figure("gamma", title, reading, command, shown, panels, gap, columns=3, legend=legend)


def attacks_of(rows: Sequence[Row]) -> list[str]:
    """The attacks that occur, weak to strong."""
    return [name for name in COLOURS if any(row["attack"] == name for row in rows)]


def _lines(rows: Sequence[Row], figure: str) -> alt.TopLevelMixin:
    attacks = attacks_of(rows)
    colour = by_colour("attack", {name: COLOURS[name] for name in attacks})
    axis = alt.Axis(values=sorted({row["gamma"] for row in rows}), format="~g")
    x = alt.X("gamma:Q", title="γ", scale=alt.Scale(padding=12), axis=axis)
    y = alt.Y("mean:Q", title=None, scale=alt.Scale(zero=figure != "average"))
    base = panel(rows)
    tips = ["attack:N", "gamma:Q", *mean_and_std(".3f"), "seeds:Q"]
    band = base.mark_area(opacity=0.18).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=colour)
    line = base.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour)
    points = base.mark_point(filled=True, size=55, opacity=1).encode(
        x=x,
        y=y,
        color=colour,
        shape=by_shape("attack", attacks),
        tooltip=tips,
    )
    return alt.layer(band, line, points).properties(height=230)
