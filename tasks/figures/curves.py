"""Average, worst and NSD under each attack, over a setting: what γ and sweeps are drawn as."""

from collections.abc import Mapping, Sequence

import altair as alt

from tasks.figures.figure import mean_and_std, panel
from tasks.figures.style import BLUE, GREEN, ORANGE, RED, SKY, by_colour, by_shape, explained
from tasks.results.tidy import Row
from tasks.table import NAMES

COLOURS = {
    NAMES[attack]: colour
    for attack, colour in zip(
        ("clean", "fgsm", "pgd20", "cw30", "autoattack"), (SKY, ORANGE, BLUE, GREEN, RED), strict=True
    )
}
TITLES = {"average": "Average of the classes, %", "worst": "Worst class, %", "nsd": "NSD (lower is fairer)"}


def drawn(rows: Sequence[Row]) -> list[Row]:
    """The rows of the attacks that have a line, under the names that readers know."""
    return [row | {"attack": name} for row in rows if (name := NAMES.get(row["attack"])) in COLOURS]


def panels(
    rows: Sequence[Row],
    field: str,
    title: str,
    prefix: str = "",
    *,
    by: str = "attack",
    colours: Mapping[str, str] = COLOURS,
) -> dict[str, alt.TopLevelMixin]:
    """A panel a figure, in it a line for each of ``by``; ``rows``: with the setting's value in ``field``."""
    return {
        f"{prefix}{text}": _lines(
            [row for row in rows if row["figure"] == figure],
            figure,
            field,
            title,
            by,
            _occurring(rows, by, colours),
        )
        for figure, text in TITLES.items()
    }


def legend(
    rows: Sequence[Row], by: str = "attack", colours: Mapping[str, str] = COLOURS
) -> dict[str, tuple[str, str]]:
    """What stands for which line."""
    return explained(_occurring(rows, by, colours), shapes=True)


def sizes(rows: Sequence[Row]) -> str:
    """A sentence: how many test images each attack was run on."""
    images = {row["attack"]: row["images"] for row in rows}
    compared = (
        " Lines of other numbers of images are not to be compared." if len({*images.values()}) > 1 else ""
    )
    return f"Test images: {', '.join(f'{name} {size}' for name, size in images.items())}.{compared}"


def _occurring(rows: Sequence[Row], by: str, colours: Mapping[str, str]) -> dict[str, str]:
    """The colours of those that occur, in their order: of attacks, weak to strong."""
    found = {row[by] for row in rows}
    return {name: colour for name, colour in colours.items() if name in found}


def _across(rows: Sequence[Row], field: str, title: str) -> alt.X:
    """Numbers as far apart as they are, words and switches side by side."""
    values = list(dict.fromkeys(row[field] for row in rows))
    if any(isinstance(value, bool | str) for value in values):
        return alt.X(f"{field}:N", title=title, sort=values, axis=alt.Axis(labelAngle=0))
    axis = alt.Axis(values=sorted(values), format=".6~g")
    return alt.X(f"{field}:Q", title=title, scale=alt.Scale(padding=12, zero=False), axis=axis)


def _lines(
    rows: Sequence[Row], figure: str, field: str, title: str, by: str, colours: Mapping[str, str]
) -> alt.TopLevelMixin:
    colour = by_colour(by, colours)
    x = _across(rows, field, title)
    y = alt.Y("mean:Q", title=None, scale=alt.Scale(zero=figure != "average"))
    base = panel(rows)
    tips = [f"{by}:N", f"{field}:{x.shorthand[-1]}", *mean_and_std(".3f"), "seeds:Q"]
    band = base.mark_area(opacity=0.18).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=colour)
    line = base.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour)
    points = base.mark_point(filled=True, size=55, opacity=1).encode(
        x=x,
        y=y,
        color=colour,
        shape=by_shape(by, colours),
        tooltip=tips,
    )
    return alt.layer(band, line, points).properties(height=230)
