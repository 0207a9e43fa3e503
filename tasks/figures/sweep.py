"""A sweep: one key of the settings at several values, against everything that is measured."""

from collections.abc import Sequence

from tasks.figures import curves
from tasks.figures.figure import Figure, missing
from tasks.figures.style import label_colours
from tasks.results import tidy
from tasks.results.stored_sweeps import SweepResults, Value
from tasks.results.tidy import Row

MOST_NAMED = 3  # files

READING = (
    "A line an attack, over the values of {key}. Bands: ± one standard deviation over seeds (none: one seed)."
)

COMPARED = (
    "PGD-20, {images} test images: a line a method, over the values of {key}. Bands: ± one standard "
    "deviation over seeds (none: one seed), which leaves out what other test images would change. Point at a "
    "mark for its seeds; of which state of the code they are is told under each method's own sweep."
)


def over_values(sweep: SweepResults, rows: Sequence[Row], alike: Sequence[SweepResults] = ()) -> Figure:
    """Panels of average, worst and NSD; ``rows``: ``tidy.over_values``, ``alike``: of its key and student."""
    key = f"sweep-{sweep.sweep_id.rpartition('-')[2]}"
    title = f"Sweep of {sweep.key}: {_method(sweep, alike)}, {sweep.student}"
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


def methods_compared(sweeps: Sequence[SweepResults]) -> Figure | None:
    """Panels of average, worst and NSD under PGD-20, a line a method; None where only one was swept so."""
    shown = [
        row | {"label": row["method"], "method": _method(sweep, sweeps)}
        for sweep in sweeps
        if len(sweep.groups) > 1
        for row in tidy.over_values(sweep.groups)
        if row["attack"] == "pgd20"
    ]
    methods = list(dict.fromkeys(row["method"] for row in shown))
    if len(methods) < 2:
        return None
    colours = label_colours({method: method for method in methods})
    key, student = sweeps[0].key, sweeps[0].student
    return Figure(
        f"sweeps-{key}-{student}",
        f"Sweeps of {key}, methods beside each other: {student}",
        COMPARED.format(key=key, images=shown[0]["images"]),
        " && ".join(map(_command, sweeps)),
        shown,
        curves.panels(shown, "value", key, by="method", colours=colours),
        columns=3,
        legend=curves.legend(shown, "method", colours),
    )


def _method(sweep: SweepResults, alike: Sequence[SweepResults]) -> str:
    """A sweep's method; where it was swept under several settings, with what tells these apart."""
    if sum(other.method == sweep.method for other in alike) < 2:
        return sweep.method
    return f"{sweep.method} (settings {sweep.settings[:8] if sweep.settings else 'not on record'})"


def _own(sweep: SweepResults) -> str:
    if sweep.own is None:
        return ""
    return f" At {_plain(sweep.own)}, which params.yaml has: the students of the benchmark itself."


def _age(sweep: SweepResults) -> str:
    changed = sweep.changed()
    if not changed:
        return ""
    files = ", ".join(changed) if len(changed) <= MOST_NAMED else f"{len(changed)} files of code and inputs"
    return f" Some or all of an earlier state: since then {files} changed; the command runs it again."


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
