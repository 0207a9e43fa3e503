"""The paper's worst class under AutoAttack beside ours, a panel a table of the paper."""

from collections.abc import Sequence

import altair as alt

from tasks.figures.figure import Figure, panel
from tasks.figures.style import BLUE, ORANGE, by_colour, by_shape, explained
from tasks.results.tidy import Row

READING = (
    "Worst class under AutoAttack, percent; whiskers: ± one standard deviation over our seeds (none: one "
    "seed)."
)
LEAST_IMAGES = 1_000  # of CIFAR-10: a hundred a class; the worst of classes of five is 0 by sampling alone
LEGEND = {"paper": ORANGE, "ours": BLUE}
TOO_FEW = (
    f"Ours is not drawn: it is of fewer than {LEAST_IMAGES:,} images, where sampling alone makes the worst "
    "class low. It stands in the table below."
)
OPEN = "This benchmark has no student of ours for it: the table below shows what is open."


def beside(rows: Sequence[Row], command: str) -> Figure:
    """Dots of the paper and of ours; ``rows``: ``tasks.results.published.compare``."""
    title = "The paper's figures beside ours"
    if not rows:
        gap = "The paper has no figures for these images, or none are at hand: its cells stay open."
        return Figure("paper", title, "", "", gap=gap)
    shown = [row for row in rows if (row["attack"], row["figure"]) == ("autoattack", "worst")]
    tables = dict.fromkeys((row["table"], row["paper_student"]) for row in shown)
    panels = {
        f"{student}, {name} table": _dots(
            [row for row in shown if (row["table"], row["paper_student"]) == (name, student)]
        )
        for name, student in tables
    }
    gap = "" if any(_is_drawn(row) for row in shown) else TOO_FEW if _ours(shown) else OPEN
    legend = explained(LEGEND, shapes=True)
    return Figure(
        "paper", title, f"{READING}{_ours(shown)}", command, rows, panels, gap, columns=3, legend=legend
    )


def _is_drawn(row: Row) -> bool:
    return row["ours"] is not None and row["images"] >= LEAST_IMAGES


def _ours(rows: Sequence[Row]) -> str:
    """A sentence: which student is compared, and on how many images."""
    of = dict.fromkeys(
        f"{row['student']} on {row['images']} test images" + _other_network(row)
        for row in rows
        if row["ours"] is not None
    )
    return f" Ours: {'; '.join(of)}; theirs: the whole test set." if of else ""


def _other_network(row: Row) -> str:
    if row["same_networks"]:
        return ""
    if row["student"] == row["paper_student"]:
        return ", of another teacher than the paper's"
    return f", not the paper's {row['paper_student']}"


def _dots(rows: Sequence[Row]) -> alt.TopLevelMixin:
    dots = [
        {
            "method": row["paper_method"],
            "of": of,
            "value": row[key],
            "low": row[key] - std,
            "high": row[key] + std,
        }
        for row in rows
        for of, key, std in (("paper", "paper", 0), ("ours", "ours", row["std"] or 0))
        if row[key] is not None and (of == "paper" or _is_drawn(row))
    ]
    y = alt.Y("method:N", title=None, sort=[row["paper_method"] for row in rows])
    x = alt.X("value:Q", title="AutoAttack, worst class, %", scale=alt.Scale(domainMin=0))
    colour = by_colour("of", LEGEND)
    shape = by_shape("of", LEGEND)
    base = panel(dots)
    whiskers = base.mark_rule(style="whisker", clip=True).encode(y=y, x="low:Q", x2="high:Q")
    points = base.mark_point(filled=True, size=90, opacity=1).encode(
        y=y,
        x=x,
        color=colour,
        shape=shape,
        tooltip=["method:N", "of:N", alt.Tooltip("value:Q", format=".1f")],
    )
    return alt.layer(whiskers, points).properties(height=26 * len(rows))
