"""Results as one table on the terminal."""

import argparse
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tasks.results import Group, load, spread

COLUMNS = [
    ("clean", "average"),
    ("clean", "worst"),
    ("clean", "nsd"),
    ("pgd20", "average"),
    ("pgd20", "worst"),
    ("pgd20", "nsd"),
    ("autoattack", "average"),
]
AGREEMENT = "pool agreement"
NAMES = {
    "clean": "clean",
    "fgsm": "FGSM",
    "pgd20": "PGD-20",
    "cw30": "CW-30",
    "autoattack": "AutoAttack",
}


def cell(group: Group, attack: str, figure: str) -> str:
    """Percent (NSD: a fraction), with the standard deviation where there are several seeds."""
    average, deviation = spread(group.values(attack, figure))
    if figure == "nsd":
        return f"{average:.3f}" if deviation is None else f"{average:.3f} ± {deviation:.3f}"
    return f"{100 * average:.1f}" if deviation is None else f"{100 * average:.1f} ± {100 * deviation:.1f}"


def agreement(group: Group) -> str:
    """Percent of the pool that the teacher gives the requested label."""
    values = group.agreements()
    if not values:
        return ""
    average, deviation = spread(values)
    return f"{100 * average:.0f}" if deviation is None else f"{100 * average:.0f} ± {100 * deviation:.0f}"


def heading(groups: Sequence[Group], attack: str, figure: str) -> str:
    """The attack, on how many images, and which figure."""
    return f"{NAMES[attack]} ({groups[0].images(attack)}) {'NSD' if figure == 'nsd' else figure}"


def print_table(
    benchmark: str, methods: Sequence[str] | None = None, seeds: Sequence[int] | None = None
) -> None:
    """Print a benchmark's results: the teacher first, controls last."""
    groups = load(benchmark, methods, seeds)
    if not groups:
        print(f"{benchmark}: no results yet")
        return
    table = Table(
        title=f"{benchmark}: accuracy in percent on so many test images; NSD = std/mean over classes"
    )
    table.add_column("method", no_wrap=True)
    for attack, figure in COLUMNS:
        table.add_column(heading(groups, attack, figure), justify="right")
    for group in groups:
        table.add_row(group.method, *(cell(group, attack, figure) for attack, figure in COLUMNS))
    Console(width=None if Console().is_terminal else 120).print(table)


def markdown(benchmark: str) -> str:
    """The same table for a document."""
    groups = load(benchmark)
    heads = ["method", "seeds", *(heading(groups, *column) for column in COLUMNS), AGREEMENT]
    rows = [heads, ["---"] * len(heads)]
    for group in groups:
        cells = [cell(group, attack, figure) for attack, figure in COLUMNS]
        rows.append([f"`{group.method}`", str(len(group.seeds)), *cells, agreement(group)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """``python -m tasks.table BENCHMARK``: the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmark")
    print(markdown(parser.parse_args().benchmark))


if __name__ == "__main__":
    main()
