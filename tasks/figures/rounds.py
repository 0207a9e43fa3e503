"""What happens over the rounds of distillation: class proportions, losses, robust channels, agreement."""

from collections.abc import Sequence

import altair as alt

from tasks.figures.figure import Figure, mean_and_std, missing, panel
from tasks.figures.style import by_colour, explained, label_colours
from tasks.results.tidy import Row

SHOWN = (
    "ferd", "mixed-reweighting", "no-reweighting", "no-fae", "no-utae", "no-fae-utae", "ferd-released",
    "dfhl-rs", "rslad",
)  # fmt: skip
MEASURES = {
    "agreement": "Pool agreement, %",
    "robust_fraction": "Robust channels, %",
    "generator loss": "Generator: whole loss",
    "generator bn": "Generator: BatchNorm, L_bn",
    "generator oh": "Generator: label, L_oh",
    "generator adv": "Generator: disagreement, L_adv",
    "generator uni": "Generator: uniformity, L_uni",
    "student clean_loss": "Student: loss on clean images",
    "student adversarial_loss": "Student: loss on adversarial images",
}
PROPORTIONS_READING = (
    "Percent of a round's synthetic images that are asked for as a class: p, Eq. 2, the mean over seeds. "
    "Methods without reweighting draw every class alike and are left out.{others}"
)
MEASURES_READING = (
    "The mean over seeds after each round, with bands of ± one standard deviation over seeds (none: one "
    "seed). A method that lacks a loss term has no line in its panel; losses are unweighted, and each "
    "method's own: IKL on UTAEs in FERD and its variants, a KL divergence or cross-entropy in others. "
    "Pool agreement: percent of a round's images that the teacher gives the label they were asked for. "
    "Robust channels: Eq. 3-6. Drawn is the first student.{others}"
)


def proportions(rows: Sequence[Row], classes: Sequence[str], command: str) -> Figure:
    """A (class × round) heat map a reweighting method; ``rows``: ``tidy.proportions``."""
    title = "Class proportions p over the rounds"
    shown = [row for row in rows if row["method"] in SHOWN]
    reading = PROPORTIONS_READING.format(others=_others(rows))
    if not shown:
        return missing("proportions", title, "No method with reweighting has been distilled.", command)
    most = max(row["mean"] for row in shown)
    labels = dict.fromkeys(row["label"] for row in shown)
    panels = {
        label: _proportions_map([row for row in shown if row["label"] == label], classes, most)
        for label in labels
    }
    return Figure("proportions", title, reading, command, rows, panels, columns=3)


def _others(rows: Sequence[Row]) -> str:
    """A sentence: which methods are in the download alone."""
    others = dict.fromkeys(row["method"] for row in rows if row["method"] not in SHOWN)
    return f" In the download alone: {', '.join(others)}." if others else ""


def _proportions_map(rows: Sequence[Row], classes: Sequence[str], most: float) -> alt.Chart:
    few = max(row["round"] for row in rows) <= 20
    x = alt.X("round:O", title="round", axis=alt.Axis(labelAngle=0, labelOverlap=not few))
    y = alt.Y("class:N", title=None, sort=list(classes), axis=alt.Axis(labelOverlap=True))
    legend = alt.Legend(gradientLength=120, titleOrient="left")
    colour = alt.Color(
        "mean:Q", title="%", scale=alt.Scale(domain=[0, most], interpolate="rgb"), legend=legend
    )
    tips = ["class:N", "round:Q", *mean_and_std(".1f")]
    step = 18 if len(classes) <= 20 else 3
    return (
        panel(rows)
        .mark_rect()
        .encode(x=x, y=y, color=colour, tooltip=tips)
        .properties(height=step * len(classes))
    )


def measures(rows: Sequence[Row], command: str) -> Figure:
    """A panel a quantity, a line a method; ``rows``: ``tidy.rounds``."""
    title = "Losses, robust channels and pool agreement over the rounds"
    known = [row for row in rows if row["quantity"] in MEASURES]
    shown = [row for row in known if row["method"] in SHOWN]
    if not shown:
        return missing("rounds", title, "No student has been distilled.", command)
    drawn = [row for row in shown if row["student"] == shown[0]["student"]]
    methods = {row["label"]: row["method"] for row in drawn}
    panels = {
        text: _lines(found, methods)
        for quantity, text in MEASURES.items()
        if (found := [row for row in drawn if row["quantity"] == quantity])
    }
    legend = explained(label_colours(methods))
    reading = MEASURES_READING.format(others=_others(known))
    return Figure("rounds", title, reading, command, known, panels, columns=3, legend=legend)


def _lines(rows: Sequence[Row], methods: dict[str, str]) -> alt.TopLevelMixin:
    colour = by_colour("label", label_colours(methods))
    x = alt.X("round:Q", title="round", axis=alt.Axis(tickMinStep=1))
    most = 100 if rows[0]["quantity"] == "agreement" else alt.Undefined
    scale = alt.Scale(zero=False, domainMax=most)
    y = alt.Y("mean:Q", title=None, scale=scale)
    base = panel(rows)
    tips = ["label:N", "round:Q", *mean_and_std(".2f")]
    band = base.mark_area(opacity=0.15, clip=True).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=colour)
    line = base.mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=18)).encode(
        x=x, y=y, color=colour, tooltip=tips
    )
    return alt.layer(band, line).properties(height=170)
