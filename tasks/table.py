"""Results as one table on the terminal."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ferd import validity
from tasks import params
from tasks.command import as_command, command_line
from tasks.results import text_table
from tasks.results.stored import Group, load, spread, students, warnings
from tasks.results.tidy import PLACES

COLUMNS = [
    ("clean", "average"),
    ("clean", "worst"),
    ("clean", "nsd"),
    ("pgd20", "average"),
    ("pgd20", "worst"),
    ("pgd20", "nsd"),
    ("autoattack", "average"),
]
FURTHER = [
    ("fgsm", "average"),
    ("cw30", "average"),
    ("cw30", "worst"),
    ("autoattack", "worst"),
    ("autoattack", "nsd"),
    ("all", "average"),
    ("all", "worst"),
]
AGREEMENT = "pool agreement"
NAMES = {"clean": "clean", **validity.NAMES, "all": "all attacks"}


def cell(group: Group, attack: str, figure: str) -> str:
    """Percent (NSD: a fraction) over the seeds; empty without."""
    values = group.values(attack, figure)
    return over_seeds(values, 3) if figure == "nsd" else percent(values)


def percent(values: Sequence[float], digits: int = 1) -> str:
    """Fractions in percent, over the seeds."""
    return over_seeds([100 * value for value in values], digits)


def over_seeds(values: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation; one or two values as they are, of which a deviation says nothing."""
    shown, between = (values, " / ") if len(values) <= 2 else (spread(values), " ± ")
    return between.join(f"{round(value, PLACES):.{digits}f}" for value in shown if value is not None)


def beside_autoattack(groups: Sequence[Group]) -> dict[str, list[str]]:
    """PGD-20 on the images of AutoAttack alone, a column, so that the two can be compared; empty without."""
    found = [group.on_the_images_of("autoattack", "pgd20") for group in groups]
    sizes = [images for images, values in found if values]
    name = f"PGD-20 (the {sizes[0]} of AutoAttack) average" if sizes else ""
    return {name: [percent(values) for _, values in found]} if sizes else {}


def agreement(group: Group) -> str:
    """Percent of the pool that the teacher gives the requested label."""
    return percent(group.agreements(), digits=0)


def heading(groups: Sequence[Group], attack: str, figure: str) -> str:
    """The attack, on how many images, and which figure."""
    sizes = [f" ({group.images(attack)})" for group in groups if group.values(attack, figure)]
    name, *ball = attack.split(" ", 1)
    return (
        " ".join([NAMES.get(name, name), *ball])
        + f"{(sizes or [''])[0]} {'NSD' if figure == 'nsd' else figure}"
    )


def cells(groups: Sequence[Group], columns: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """A column an attack and figure, by its heading."""
    return {heading(groups, *column): [cell(group, *column) for group in groups] for column in columns}


def figures(groups: Sequence[Group]) -> dict[str, list[str]]:
    """The figures of the first table, a column a heading."""
    return (
        cells(groups, COLUMNS)
        | beside_autoattack(groups)
        | {AGREEMENT: [agreement(group) for group in groups]}
    )


def further(groups: Sequence[Group]) -> dict[str, list[str]]:
    """What the first table leaves out, a column a heading: more attacks and figures, and other balls."""
    ran = dict.fromkeys(attack for group in groups for attack in group.attacks)
    elsewhere = dict.fromkeys(attack for group in groups for attack in group.in_other_balls)
    columns = [column for column in FURTHER if column[0] in ran]
    own = [attack for attack in ran if attack not in NAMES]
    columns += [(attack, figure) for attack in own for figure in ("average", "worst")]
    columns += [(attack, figure) for attack in elsewhere for figure in ("average", "worst")]
    return cells(groups, columns)


def identity(groups: Sequence[Group]) -> dict[str, list[str]]:
    """What says which group a row is, a column a key; the student only where there are several."""
    columns = {"student": [group.student or "" for group in groups]} if len(students(groups)) > 1 else {}
    return {**columns, "method": [group.method for group in groups]}


def print_table(
    benchmark: str, methods: Sequence[str] | None = None, seeds: Sequence[int] | None = None
) -> None:
    """Print a benchmark's results: the teacher first, controls last."""
    groups = load(benchmark, methods, seeds)
    if not groups:
        print(f"{benchmark}: no results yet")
        return
    title = (
        f"{benchmark}: accuracy in percent on so many test images; NSD = population std / mean over classes"
    )
    print_groups(title, identity(groups), groups, COLUMNS, beside_autoattack(groups))


def print_groups(
    title: str,
    names: Mapping[str, Sequence[str]],
    groups: Sequence[Group],
    columns: Sequence[tuple[str, str]],
    last: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> None:
    """Print a row a group, within 120 characters; ``names`` come first, ``last`` in the end, by heading."""
    shown = {**cells(groups, columns), **last}
    table = Table(title=title, box=SIMPLE_HEAD)
    for name in names:
        table.add_column(name, no_wrap=True)
    for name in shown:
        table.add_column(name.replace(" ", "\n"), justify="right")
    narrow = ([text.replace(" ", "") for text in column] for column in shown.values())
    for row in zip(*names.values(), *narrow, strict=True):
        table.add_row(*row)
    Console(width=None if Console().is_terminal else 120).print(table)
    for warning in warnings(groups):
        print(f"warning: {warning}")


def markdown(benchmark: str) -> str:
    """The same table for a document and one of what it leaves out, or one line where there are no results."""
    groups = load(benchmark)
    if not groups:
        return f"{benchmark}: no results yet"
    names = identity(groups)
    first = {**names, "seeds": [str(len(group.seeds)) for group in groups], **figures(groups)}
    below = [f"- warning: {warning}" for warning in warnings(groups)]
    parts = [
        text_table.markdown(first),
        text_table.markdown({**names, **further(groups)}),
        *(["\n".join(below)] if below else []),
    ]
    return "\n\n".join(parts)


def main() -> None:
    """``python -m tasks.table BENCHMARK``: the table in Markdown."""
    parser = command_line(__doc__)
    parser.add_argument("benchmark")
    benchmark = parser.parse_args().benchmark
    with as_command("table"):
        params.read().benchmark(benchmark)
        print(markdown(benchmark))


if __name__ == "__main__":
    main()
