"""Chart of what each of FERD's mechanisms does, of the students that ``benchmarks.factorial`` has written.

``python -m benchmarks.effects_figure --set "half dose" one.jsonl two.jsonl --to effects.png``: a row a
mechanism, a colour a set of students; a point is the mean over seeds of the effect, with less without, and a
line its 95 % interval by Student's t. ``--less "reweighting, FAE" none``, once or more, draws such pairs of
combinations instead, of files that need no others.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import altair as alt

from benchmarks.factorial import (
    ALL,
    COMBINATIONS,
    MECHANISMS,
    Combination,
    Effect,
    Student,
    effect,
    less,
    name_of,
    over_two_seeds,
    read,
    typed_combination,
    whole_seeds,
)
from ferd.errors import FerdError
from tasks.command import as_command, command_line
from tasks.figures.figure import Figure, panel
from tasks.figures.style import BLUE, GREEN, ORANGE, PINK, by_colour
from tasks.results.tidy import Row

COLOURS = (BLUE, ORANGE, GREEN, PINK)  # a set each
PANELS = {"worst": "Worst class", "average": "Average of the classes"}
ATTACK = "pgd20"
ROW_HEIGHT = 22  # of a set, in points

Comparison = Callable[..., Effect]  # of students, on a ``figure``


def main() -> None:
    """Parse the command line, write the picture."""
    parser = command_line(__doc__)
    parser.add_argument(
        "--set", nargs="+", action="append", required=True, metavar="LABEL FILE", help="its name, its files"
    )
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help="a name in .png or .pdf")
    parser.add_argument(
        "--less", nargs=2, type=typed_combination, action="append", default=[], metavar="COMBINATION"
    )
    args = parser.parse_args()
    with as_command("effects_figure"):
        needed = {has for pair in args.less for has in pair} or {*COMBINATIONS}
        sets = {label: students_of(label, files, [*needed]) for label, *files in args.set}
        figure(sets, pairwise(args.less) if args.less else by_mechanism()).save(args.to)


def by_mechanism() -> dict[str, Comparison]:
    """Each mechanism's effect, and that of all three."""
    return {
        mechanism: partial(effect, mechanism=mechanism, attack=ATTACK) for mechanism in (*MECHANISMS, ALL)
    }


def pairwise(pairs: Sequence[tuple[Combination, Combination]]) -> dict[str, Comparison]:
    """Of each pair of combinations the one less the other."""
    return {
        f"{short(one)}, less {short(other)}": partial(less, these=[one], those=[other], attack=ATTACK)
        for one, other in pairs
    }


def short(has: Combination) -> str:
    """Its name, by plus signs; of all mechanisms ``ALL``."""
    return ALL if all(has) else name_of(has).replace(", ", " + ")


def students_of(label: str, files: Sequence[str], needed: Sequence[Combination]) -> list[Student]:
    """Of these combinations, of the seeds for which the files have them all.

    Raises:
        FerdError: fewer than two.
    """
    students = {key: student for file in files for key, student in read(Path(file)).items()}
    return over_two_seeds(label, whole_seeds([*students.values()], needed))


def figure(sets: Mapping[str, Sequence[Student]], compared: Mapping[str, Comparison]) -> Figure:
    """Effects on worst class and average under PGD-20, in points."""
    if len(sets) > len(COLOURS):
        raise FerdError(f"{len(sets)} sets of students; at most {len(COLOURS)} can be told apart")
    rows = [row for label, students in sets.items() for row in rows_of(label, students, compared)]
    ends = [min(row["low"] for row in rows), max(row["high"] for row in rows)]
    colours = dict(zip(dict.fromkeys(row["students"] for row in rows), COLOURS, strict=False))
    panels = {
        title: effects([row for row in rows if row["figure"] == key], colours, ends, [*compared])
        for key, title in PANELS.items()
    }
    reading = "A point: mean over seeds of the difference. A line: 95 % interval."
    return Figure("effects", "Effects of the mechanisms", reading, "", rows, panels, columns=2)


def rows_of(label: str, students: Sequence[Student], compared: Mapping[str, Comparison]) -> list[Row]:
    """Mean and 95 % interval of each comparison, on each figure."""
    seeds = len({student.seed for student in students})
    rows: list[Row] = []
    for name, comparison in compared.items():
        for key in PANELS:
            found = comparison(students, figure=key)
            rows.append(
                {
                    "students": f"{label}, {seeds} seeds",
                    "compared": name,
                    "figure": key,
                    "mean": found.mean,
                    "low": found.low,
                    "high": found.high,
                    "says": f"{signed(found.mean)} ({signed(found.low)} to {signed(found.high)})",
                }
            )
    return rows


def signed(points: float) -> str:
    """With its sign, to a tenth."""
    return f"{points:+.1f}".replace("-", "−")


def effects(
    rows: Sequence[Row], colours: Mapping[str, str], ends: Sequence[float], order: Sequence[str]
) -> alt.TopLevelMixin:
    """Of one figure: a row a comparison, within it a line a set; ``ends`` of the axis."""
    base = panel(rows).encode(
        y=alt.Y("compared:N", title=None, sort=[*order], axis=alt.Axis(ticks=False, labelLimit=260)),
        yOffset=alt.YOffset("students:N", sort=list(colours), scale=alt.Scale(paddingOuter=0.35)),
        color=by_colour("students", colours),
    )
    x = alt.X(
        "low:Q",
        title="points under PGD-20",
        scale=alt.Scale(domain=ends),
        axis=alt.Axis(tickMinStep=1, format="+.0f"),
    )
    return alt.layer(
        panel([{"at": 0}]).mark_rule(style="reference").encode(x="at:Q"),
        base.mark_rule(strokeWidth=2).encode(x=x, x2="high:Q"),
        base.mark_point(filled=True, size=70, opacity=1).encode(x="mean:Q"),
        base.mark_text(align="left").encode(x=alt.value(310), text="says:N"),
    ).properties(height=alt.Step(ROW_HEIGHT, **{"for": "offset"}))


if __name__ == "__main__":
    main()
