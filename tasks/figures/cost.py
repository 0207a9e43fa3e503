"""What each method cost."""

from collections import Counter
from collections.abc import Sequence

import altair as alt

from tasks.figures.figure import Figure, mean_and_std, missing, panel
from tasks.figures.style import BLUE, GREEN, ORANGE
from tasks.results.tidy import Row

COLOURS = {"distill": BLUE, "train": GREEN, "evaluate": ORANGE}


def seconds(rows: Sequence[Row], command: str) -> Figure:
    """Stacked bars a method, and a machine where one stage ran on several; ``rows``: ``tidy.costs``."""
    title = "Cost of each method"
    if not rows:
        return missing("cost", title, "No stage has left its cost.", command)
    machines = sorted({_machine(row) for row in rows})
    stages = Counter((row["label"], row["stage"]) for row in rows)
    several = {label for (label, _), count in stages.items() if count > 1}
    shown = [
        row | {"label": f"{row['label']} ({machines.index(_machine(row)) + 1})"}
        if row["label"] in several
        else row
        for row in rows
    ]
    named = [f"({number}) {machine}" for number, machine in enumerate(machines, 1)] if several else machines
    reading = (
        "Seconds a seed, the mean over seeds: making the network (distil; of a teacher train, or fetch and "
        f"measure a given one) and evaluating it{_unknown(rows)}; a pool that a method replays is another's "
        "cost. On a CPU processor time over threads, so that other work hardly counts; wall time on a GPU, "
        f"and of records that have no other. Machines: {'; '.join(named)}."
    )
    return Figure("cost", title, reading, command, rows, {"": _bars(shown)})


def _machine(row: Row) -> str:
    """Device, processor where it is on record, threads and torch."""
    processor = f", {row['processor']}" if row.get("processor") else ""
    return f"{row['device']}{processor}, {row['threads']} thread(s), torch {row['torch']}"


def _unknown(rows: Sequence[Row]) -> str:
    """Which networks' making is not on record, such as that of one that was interrupted."""
    made = {row["label"] for row in rows if row["stage"] != "evaluate"}
    unknown = dict.fromkeys(row["label"] for row in rows if row["label"] not in made)
    return f" (what making {', '.join(unknown)} took is not on record)" if unknown else ""


def _bars(rows: Sequence[Row]) -> alt.TopLevelMixin:
    stages = [stage for stage in COLOURS if any(row["stage"] == stage for row in rows)]
    scale = alt.Scale(domain=stages, range=[COLOURS[stage] for stage in stages])
    y = alt.Y("label:N", title=None, sort=list(dict.fromkeys(row["label"] for row in rows)))
    tips = ["label:N", "stage:N", *mean_and_std(".1f"), "seeds:Q"]
    base = panel([row | {"place": stages.index(row["stage"])} for row in rows])
    bars = base.mark_bar().encode(
        y=y,
        x=alt.X("sum(mean):Q", title="seconds a seed"),
        color=alt.Color("stage:N", title=None, scale=scale),
        order=alt.Order("place:Q"),
        tooltip=tips,
    )
    total = base.mark_text(align="left", dx=5).encode(
        y=y, x="sum(mean):Q", text=alt.Text("sum(mean):Q", format=",.0f")
    )
    return alt.layer(bars, total).properties(height=22 * len({row["label"] for row in rows}))
