"""How networks fail: which class turns into which, and where UTAEs end up."""

from collections.abc import Sequence

import altair as alt

from tasks.figures.figure import Figure, missing, panel, scale_of
from tasks.results.tidy import Row

MOST_MAPPED, MOST_PRINTED = 20, 10  # classes of a heat map, and of one with values in its cells
PAIRS_READING = (
    "Of a class's images that are right without an attack (rows; none where none is), the percent that "
    "end up as the target class (columns) when attacked toward it: of {fewest} to {most} images, how many is "
    "in the download. All panels on one scale of colours, beyond which controls may go."
)
UTAE_READING = (
    "Percent of a student's uniform-target adversarial examples (test images, as many of each class) that "
    "it takes for a class (columns), for γ from 0 (rows); even is the same share in every column."
)


def pairs(rows: Sequence[Row], classes: Sequence[str], command: str) -> Figure:
    """A (source × target) heat map an analysis; ``rows``: ``tidy.targeted``."""
    title = "Which class turns into which"
    if not rows:
        return missing("pairs", title, "No network has been analysed.", command)
    tries = [row["attacked"] for row in rows]
    reading = PAIRS_READING.format(fewest=min(tries), most=max(tries))
    if len(classes) > MOST_MAPPED:
        gap = f"{len(classes)} classes are too many for a heat map: see the download and the tables."
        return Figure("pairs", title, reading, command, rows, gap=gap)
    most = scale_of(rows, "percent", least=10.0)
    panels = {
        name: _heat_map(found, "source", "class of the images", "target", "attacked toward", classes, most)
        for name, found in by_analysis(rows).items()
    }
    return Figure("pairs", title, reading, command, rows, panels, columns=3)


def utae_ends(rows: Sequence[Row], classes: Sequence[str], command: str) -> Figure:
    """A (γ × predicted class) heat map an analysed student; ``rows``: ``tidy.utae_outcomes``."""
    title = "Where UTAEs end up"
    if not rows:
        return missing("utae", title, "No student has been analysed.", command)
    most = scale_of(rows, "percent", least=10.0)
    panels = {
        name: _heat_map(found, "gamma", "γ", "class", "taken for", classes, most)
        for name, found in by_analysis(rows).items()
    }
    return Figure("utae", title, UTAE_READING, command, rows, panels, columns=3)


def by_analysis(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each analysed network; student and seed in its name only where there are several."""
    several = {key for key in ("student", "seed") if len({row[key] for row in rows if row["student"]}) > 1}
    found: dict[str, list[Row]] = {}
    for row in rows:
        name = row["method"]
        if row["student"]:
            name += f" · {row['student']}" if "student" in several else ""
            name += f" · seed {row['seed']}" if "seed" in several else ""
        found.setdefault(name, []).append(row)
    return found


def _heat_map(
    rows: Sequence[Row], down: str, down_title: str, across: str, across_title: str,
    classes: Sequence[str], most: float,
) -> alt.TopLevelMixin:  # fmt: skip
    order = list(classes)
    angle = -45 if max(map(len, order)) > 2 else 0
    x = alt.X(f"{across}:N", title=across_title, sort=order, axis=alt.Axis(labelAngle=angle))
    y = alt.Y(
        f"{down}:{'O' if down == 'gamma' else 'N'}", title=down_title, sort=None if down == "gamma" else order
    )
    scale = alt.Scale(domain=[0, most], clamp=True, interpolate="rgb")
    printed = len(order) <= MOST_PRINTED
    legend = None if printed else alt.Legend(gradientLength=120, titleOrient="left")
    colour = alt.Color("percent:Q", title="%", scale=scale, legend=legend)
    base = panel(rows)
    tips = [f"{down}:N", f"{across}:N", alt.Tooltip("percent:Q", format=".1f")]
    layers = [base.mark_rect().encode(x=x, y=y, color=colour, tooltip=tips)]
    if printed:
        for style, test in (
            ("low", f"datum.percent <= {0.8 * most}"),
            ("high", f"datum.percent > {0.8 * most}"),
        ):
            text = base.transform_filter(test).mark_text(style=style)
            layers.append(text.encode(x=x, y=y, text=alt.Text("percent:Q", format=".0f")))
    return alt.layer(*layers).properties(height=24 * len({row[down] for row in rows}))
