"""A sweep: one key of the settings at several values, against everything that is measured."""

from collections.abc import Sequence

from tasks.figures import curves
from tasks.figures.figure import Figure, Row, missing
from tasks.sweep_results import SweepResults, Value

READING = (
    "A line an attack, over the values of {key}. Bands: ± one standard deviation over seeds (none: one seed)."
)


def over_values(sweep: SweepResults, rows: Sequence[Row]) -> Figure:
    """Panels of average, worst and NSD; ``rows``: ``tidy.over_values``."""
    key = f"sweep-{sweep.sweep_id.rpartition('-')[2]}"
    title = f"Sweep of {sweep.key}: {sweep.method}, {sweep.student}"
    if len(sweep.groups) < 2:
        return missing(key, title, "Needs two values or more.", _command(sweep, "ANOTHER"))
    shown = curves.drawn(rows)
    return Figure(
        key,
        title,
        f"{READING.format(key=sweep.key)} {curves.sizes(shown)}{_own(sweep)}{_age(sweep)}",
        _command(sweep),
        shown,
        curves.panels(shown, "value", sweep.key),
        columns=3,
        legend=curves.legend(shown),
    )


def _own(sweep: SweepResults) -> str:
    if sweep.own is None:
        return ""
    return f" At {_plain(sweep.own)}, which params.yaml has: the students of the benchmark itself."


def _age(sweep: SweepResults) -> str:
    changed = sweep.changed()
    if not changed:
        return ""
    return f" Of an earlier state: since then {', '.join(changed)} changed; the command runs it again."


def _command(sweep: SweepResults, *further: str) -> str:
    """What makes the sweep, of ``further`` values, too."""
    swept = {value: group for value, group in sweep.groups.items() if value != sweep.own}
    seeds = sorted({seed for group in swept.values() for seed in group.seeds})
    return (
        f"python -m flows.sweep --benchmark {sweep.benchmark} --student {sweep.student} "
        f"--method {sweep.method} --key {sweep.key} --values {' '.join([*map(_plain, swept), *further])} "
        f"--seeds {' '.join(map(str, seeds))}"
    )


def _plain(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value}"
