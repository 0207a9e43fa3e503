"""What each of FERD's three mechanisms does: students of all eight combinations, over seeds.

``python -m benchmarks.factorial digits --seeds 20 21 --to students.jsonl``, in a folder that has the
benchmark's images and teacher, distils them, judges them on as many of its test images as its ``evaluation``
says, and appends a line a student to the file; what the file has is not computed again. Then it prints, over
all seeds that the file has whole, what the students of each combination have, and the effect of each
mechanism: by seed the mean of the four students with it less the mean of the four without, and of all three
the student with them less the one with none. ``--combinations "reweighting, FAE" none`` takes these two
alone, and prints the first less the other.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from scipy.stats import t

from ferd.config import Attack, Method
from ferd.datasets import load_images
from ferd.errors import FerdError
from ferd.fairness import nsd, worst
from tasks import checkpoints, params, paths
from tasks.command import as_command, command_line
from tasks.device import device_with
from tasks.distill import hash_of_settings
from tasks.validate import distil, figures_of, typed_seed

MECHANISMS = ("reweighting", "FAE", "UTAE")
ALL = "all three"
ATTACKS: Sequence[Attack] = ("clean", "pgd20", "cw30")
FIGURES = ("average", "worst", "nsd")

Combination = tuple[bool, ...]  # for each mechanism whether it is there
COMBINATIONS: Sequence[Combination] = tuple(product((True, False), repeat=len(MECHANISMS)))


@dataclass(frozen=True)
class Student:
    """A student's seed, its combination, and by attack the accuracy of each class (0-1).

    ``settings`` is a hash of what it was distilled with, teacher and all.
    """

    seed: int
    has: Combination
    per_class: Mapping[str, Sequence[float]]
    settings: str

    def figure(self, attack: str, figure: str) -> float:
        """Average or worst class in percent, or NSD."""
        row = torch.tensor(self.per_class[attack], dtype=torch.float64)
        return {"average": 100 * row.mean().item(), "worst": 100 * worst(row), "nsd": nsd(row)}[figure]


@dataclass(frozen=True)
class Effect:
    """With less without, over seeds: its mean, 95 % interval and two-sided p by Student's t."""

    mean: float
    low: float
    high: float
    p: float


def main() -> None:
    """Parse the command line, distil what is missing, print both tables."""
    parser = command_line(__doc__)
    parser.add_argument("benchmark")
    parser.add_argument("--seeds", type=typed_seed, nargs="*", default=[], help="computed where missing")
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help="of the students, a line each")
    parser.add_argument(
        "--combinations", type=typed_combination, nargs="+", default=COMBINATIONS, help="default: all eight"
    )
    args = parser.parse_args()
    with as_command("factorial"):
        if args.seeds:
            compute(args.benchmark, args.seeds, args.combinations, args.to)
        students = whole_seeds([*read(args.to).values()], args.combinations)
        report(over_two_seeds(str(args.to), students), args.combinations)


def typed_combination(text: str) -> Combination:
    """As ``name_of`` names it."""
    named = {name_of(has): has for has in COMBINATIONS}
    if text not in named:
        known = ", ".join(f'"{name}"' for name in named)
        raise argparse.ArgumentTypeError(f"no combination {text!r}; there are {known}")
    return named[text]


def without(method: Method, has: Combination) -> Method:
    """A method less the mechanisms that a combination leaves out: even labels, no L_uni, γ = 0."""
    off: Mapping[str, Mapping[str, Any]] = {
        "reweighting": {"sampler": "uniform"},
        "FAE": {"synthesis": "plain"},
        "UTAE": {"utae": method.utae.model_copy(update={"gamma": 0.0})},
    }
    for mechanism, there in zip(MECHANISMS, has, strict=True):
        method = method if there else method.model_copy(update=off[mechanism])
    return method


def compute(name: str, seeds: Sequence[int], combinations: Sequence[Combination], file: Path) -> None:
    """Append the students of these seeds and combinations that a file does not have.

    Raises:
        FerdError: the benchmark's images, teacher or one of the attacks are missing, or the file has students
            of other settings.
    """
    everything, there = params.read(), read(file)
    benchmark, ferd = everything.benchmark(name), everything.method("ferd")
    student, device = benchmark.students[0], device_with(benchmark.distillation.threads)
    if lacking := [attack for attack in ATTACKS if attack not in benchmark.evaluation.attacks]:
        raise FerdError(
            f"benchmarks.{name}.evaluation.attacks: lacks {', '.join(lacking)}; add what is looked at"
        )
    numbers = {attack: benchmark.evaluation.attacks[attack] for attack in ATTACKS}
    teacher = checkpoints.load(name, benchmark, paths.teacher(name))
    test = load_images(paths.images(name, "test"))
    file.parent.mkdir(parents=True, exist_ok=True)
    for seed, has in product(seeds, combinations):
        method = without(ferd, has)
        settings = hash_of_settings(name, benchmark, student, method, seed, device, None)
        if (seed, has) in there:
            if there[seed, has].settings != settings:
                raise FerdError(
                    f"{file}: seed {seed} is of other settings or another teacher; name another file"
                )
            continue
        network, _ = distil(benchmark, teacher, student, method, seed, device)
        figures = figures_of(network, test, benchmark, numbers, device)
        per_class: dict[str, list[float]] = {attack: figures[attack]["per_class"] for attack in ATTACKS}
        there[seed, has] = Student(seed, has, per_class, settings)
        with file.open("a", encoding="utf-8") as lines:
            lines.write(f"{json.dumps(asdict(there[seed, has]))}\n")
        print(f"factorial: seed {seed}, {name_of(has)}", file=sys.stderr, flush=True)


def read(file: Path) -> dict[tuple[int, Combination], Student]:
    """The students of a file by seed and combination, none where it is not there yet.

    Raises:
        FerdError: a line is none that ``compute`` wrote.
    """
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    students = {}
    for number, line in enumerate(lines, 1):
        try:
            found = json.loads(line)
            student = Student(**found | {"has": tuple(found["has"])})
            fits = student.has in COMBINATIONS and student.per_class.keys() >= {*ATTACKS}
        except (ValueError, KeyError, TypeError, AttributeError):
            fits = False
        if not fits:
            raise FerdError(f"{file}:{number}: no line of a student; remove it, and it is computed")
        students[student.seed, student.has] = student
    return students


def whole_seeds(
    students: Sequence[Student], combinations: Sequence[Combination] = COMBINATIONS
) -> list[Student]:
    """The students of these combinations, of the seeds that have them all."""
    students = [student for student in students if student.has in combinations]
    seeds = [student.seed for student in students]
    return [student for student in students if seeds.count(student.seed) == len({*combinations})]


def over_two_seeds(name: str, students: list[Student]) -> list[Student]:
    """The same students.

    Raises:
        FerdError: they are of fewer than two seeds.
    """
    if len({student.seed for student in students}) < 2:
        raise FerdError(
            f"{name}: two seeds or more are needed with all combinations; compute some by --seeds"
        )
    return students


def effect(students: Sequence[Student], mechanism: str, attack: str, figure: str) -> Effect:
    """Of a mechanism, or of ``ALL``, on a figure; of two seeds or more, each with all combinations."""
    if mechanism == ALL:
        return less(students, [COMBINATIONS[0]], [COMBINATIONS[-1]], attack, figure)
    index = MECHANISMS.index(mechanism)
    those_with = [has for has in COMBINATIONS if has[index]]
    return less(students, those_with, [has for has in COMBINATIONS if not has[index]], attack, figure)


def less(
    students: Sequence[Student],
    these: Sequence[Combination],
    those: Sequence[Combination],
    attack: str,
    figure: str,
) -> Effect:
    """By seed the mean of these combinations' students less the mean of those; of two seeds or more."""
    differences = []
    for seed in sorted({student.seed for student in students}):
        sides = [
            [s.figure(attack, figure) for s in students if s.seed == seed and s.has in side]
            for side in (these, those)
        ]
        differences.append(mean(sides[0]) - mean(sides[1]))
    return over_seeds(differences)


def over_seeds(values: Sequence[float]) -> Effect:
    """Student's t of two values or more; where all are the same p is 0, or 1 if that is 0."""
    freedom, middle = len(values) - 1, mean(values)
    error = stdev(values) / math.sqrt(len(values))
    margin = t.ppf(0.975, freedom) * error
    p = 2 * t.sf(abs(middle) / error, freedom) if error else float(middle == 0)
    return Effect(middle, middle - margin, middle + margin, p)


def report(students: Sequence[Student], combinations: Sequence[Combination]) -> None:
    """Print what the students of each combination have, and the effects, as tables."""
    seeds = sorted({student.seed for student in students})
    print(f"{len(seeds)} seeds: {', '.join(map(str, seeds))}\n")
    columns = list(product(ATTACKS, FIGURES))
    print_row("mechanisms", (f"{attack} {figure}" for attack, figure in columns))
    print_row("---", ("---" for _ in columns))
    for has in combinations:
        cell = [student for student in students if student.has == has]
        print_row(name_of(has), (spread([s.figure(*column) for s in cell], column[1]) for column in columns))
    print()
    print_row("effect of", (f"{attack} {figure}" for attack, figure in columns))
    print_row("---", ("---" for _ in columns))
    for label, of in effects(students, combinations).items():
        found = [(of(*column), digits(column[1])) for column in columns]
        print_row(
            label, (f"{e.mean:+.{n}f} ({e.low:+.{n}f} to {e.high:+.{n}f}), p {e.p:.2g}" for e, n in found)
        )


def effects(
    students: Sequence[Student], combinations: Sequence[Combination]
) -> dict[str, Callable[[str, str], Effect]]:
    """By label: of each mechanism where all combinations are there, or of the first less each other one."""
    if {*combinations} == {*COMBINATIONS}:
        return {mechanism: partial(effect, students, mechanism) for mechanism in (*MECHANISMS, ALL)}
    first, *others = combinations
    return {
        f"{name_of(first)} less {name_of(other)}": partial(less, students, [first], [other])
        for other in others
    }


def print_row(first: str, cells: Iterator[str]) -> None:
    """Of a Markdown table."""
    print(f"| {' | '.join([first, *cells])} |")


def spread(values: Sequence[float], figure: str) -> str:
    """Mean ± sample standard deviation."""
    return f"{mean(values):.{digits(figure)}f} ± {stdev(values):.{digits(figure)}f}"


def digits(figure: str) -> int:
    """After the decimal point."""
    return 3 if figure == "nsd" else 1


def name_of(has: Combination) -> str:
    """E.g. ``reweighting, UTAE``."""
    there = [mechanism for mechanism, there in zip(MECHANISMS, has, strict=True) if there]
    return ", ".join(there) or "none"


if __name__ == "__main__":
    main()
