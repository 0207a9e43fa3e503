"""Colours that colour-blind readers tell apart (Okabe and Ito), and a light and a dark theme."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from tasks.params import CONTROLS

BLUE, SKY, GREEN, ORANGE, RED, PINK, GREY = (
    "#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#cc79a7", "#8c8c8c",
)  # fmt: skip
BASELINES = ("dfhl-rs", "rslad", "fair-rslad", "absld")  # and those on another pool
KINDS = {"teacher": GREEN, "FERD": BLUE, "variant of FERD": SKY, "baseline": PINK, "control": ORANGE}
PURPLE, BROWN, OLIVE = "#8e6bb5", "#a0654a", "#b8a800"
METHODS = {
    "teacher": PURPLE,
    "ferd": BLUE,
    "no-reweighting": ORANGE,
    "no-fae": GREEN,
    "no-utae": PINK,
    "no-fae-utae": SKY,
    "mixed-reweighting": GREY,
    "rslad": RED,
    "dfhl-rs": BROWN,
    "ferd-released": OLIVE,
    "real-data": GREY,
    "uniform-noise": BROWN,
    "untrained-generator": OLIVE,
}
SQUARE = "■"
SHAPES = {
    "circle": "●", "square": "■", "triangle-up": "▲", "diamond": "◆", "cross": "✚",
    "triangle-down": "▼", "triangle-right": "▶", "triangle-left": "◀",
}  # fmt: skip
FONT = "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', sans-serif"


def _theme(
    ink: str, quiet: str, lines: str, ramp: list[str], diverging: list[str], high: str
) -> dict[str, Any]:
    """``high`` is the ink on the strong end of a heat map."""
    return {
        "background": "transparent",
        "font": FONT,
        "view": {"stroke": None},
        "axis": {
            "labelColor": ink,
            "titleColor": quiet,
            "titleFontWeight": "normal",
            "titleFontSize": 12,
            "labelFontSize": 12,
            "labelLimit": 220,
            "gridColor": lines,
            "domainColor": lines,
            "tickColor": lines,
        },
        "legend": {
            "labelColor": ink, "titleColor": quiet, "titleFontWeight": "normal",
            "labelFontSize": 12, "titleFontSize": 12, "orient": "top", "symbolStrokeWidth": 2,
            "labelLimit": 220,
        },
        "title": {"color": ink, "fontSize": 13, "anchor": "start"},
        "text": {"color": ink, "fontSize": 12},
        "style": {
            "whisker": {"color": ink, "strokeWidth": 1.5, "opacity": 0.75},
            "behind": {"color": lines},
            "reference": {"color": quiet, "strokeDash": [4, 3]},
            "low": {"color": ink, "fontSize": 11},
            "high": {"color": high, "fontSize": 11},
        },
        "range": {"ramp": ramp, "heatmap": ramp, "diverging": diverging},
    }  # fmt: skip


CONFIG = {
    "light": _theme(
        "#1a1a1a", "#555555", "#dedede",
        ["#f4f8fb", "#c6dcec", "#84b5d8", "#3c85bb", "#0b4f85"],
        ["#b35806", "#f1a340", "#fee0b6", "#f7f7f7", "#d1e5f0", "#67a9cf", "#2166ac"],
        "#ffffff",
    ),
    "dark": _theme(
        "#ececec", "#b4b4b4", "#3d434a",
        ["#1c2530", "#1d3a54", "#1e5078", "#20669d", "#2580c6"],
        ["#a85a08", "#7d4a15", "#4d361f", "#23282e", "#1f3f59", "#1f5a8a", "#2478b8"],
        "#ffffff",
    ),
}  # fmt: skip


def kind(method: str) -> str:
    """What role a method plays in the comparison."""
    if method == "teacher":
        return "teacher"
    if method == "ferd":
        return "FERD"
    if method in CONTROLS:
        return "control"
    return "baseline" if method.startswith(BASELINES) else "variant of FERD"


def kind_colours(kinds: Sequence[str]) -> dict[str, str]:
    """The colours of the roles that occur."""
    return {name: colour for name, colour in KINDS.items() if name in kinds}


def label_colours(methods: Mapping[str, str]) -> dict[str, str]:
    """A colour for each label: a method's is the same on every chart, those without one take turns."""
    spare = (RED, PINK, OLIVE, BROWN, GREY)
    return {
        label: METHODS.get(method, spare[place % len(spare)])
        for place, (label, method) in enumerate(methods.items())
    }


def by_colour(field: str, colours: Mapping[str, str]) -> alt.Color:
    """The field in these colours, with a legend."""
    scale = alt.Scale(domain=list(colours), range=list(colours.values()))
    return alt.Color(f"{field}:N", title=None, scale=scale, legend=alt.Legend(columns=4, symbolOpacity=1))


def by_shape(field: str, colours: Mapping[str, str]) -> alt.Shape:
    """The same legend by shape, for those who do not see the colours."""
    shapes = shapes_of(colours)
    return alt.Shape(
        f"{field}:N", title=None, scale=alt.Scale(domain=list(shapes), range=list(shapes.values()))
    )


def shapes_of(colours: Mapping[str, str]) -> dict[str, str]:
    """A shape for each name: they take turns, but for one that has the name's colour already."""
    shapes: dict[str, str] = {}
    for place, (name, colour) in enumerate(colours.items()):
        turn = [*list(SHAPES)[place % len(SHAPES) :], *SHAPES]
        taken = {shape for other, shape in shapes.items() if colours[other] == colour}
        shapes[name] = next((shape for shape in turn if shape not in taken), turn[0])
    return shapes


def explained(colours: Mapping[str, str], *, shapes: bool = False) -> dict[str, tuple[str, str]]:
    """(colour, symbol) of each name: what a legend outside the charts shows."""
    symbols = {name: SHAPES[shape] for name, shape in shapes_of(colours).items()} if shapes else {}
    return {name: (colour, symbols.get(name, SQUARE)) for name, colour in colours.items()}
