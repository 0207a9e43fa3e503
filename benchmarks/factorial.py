"""What each of FERD's three mechanisms does: students of all eight combinations, over seeds.

``python -m benchmarks.factorial digits --seeds 20 21 --to students.jsonl``, in a folder that has the
benchmark's images and teacher, distils them, judges them on its test images and appends a line a student to
the file; what the file has is not computed again. Then it prints, over all seeds that the file has whole,
what the students of each combination have, and the effect of each mechanism: by seed the mean of the four
students with it less the mean of the four without, and of all three the student with them less the one
with none.
"""

import json
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from scipy.stats import t

from ferd.config import Attack, Benchmark, Method
from ferd.datasets import Images, load_images
from ferd.errors import FerdError
from ferd.evaluation import Evaluation
from ferd.fairness import nsd
from ferd.models.classifier import Classifier
from tasks import checkpoints, params, paths
from tasks.command import as_command, command_line
from tasks.device import device_with
from tasks.distill import begin
from tasks.evaluate import SEED as SEED_OF_ATTACKS

MECHANISMS = ("reweighting", "FAE", "UTAE")
ALL = "all three"
ATTACKS: tuple[Attack, ...] = ("clean", "pgd20", "cw30")
FIGURES = ("average", "worst", "nsd")

Combination = tuple[bool, ...]  # for each mechanism whether it is there
COMBINATIONS: Sequence[Combination] = tuple(product((True, False), repeat=len(MECHANISMS)))


@dataclass(frozen=True)
class Student:
    """A student's seed, its combination, and by attack the accuracy of each class (0-1)."""

    seed: int
    has: Combination
    per_class: Mapping[str, Sequence[float]]

    def figure(self, attack: str, figure: str) -> float:
        """Average or worst class in percent, or NSD."""
        row = self.per_class[attack]
        return {"average": 100 * mean(row), "worst": 100 * min(row), "nsd": nsd(torch.tensor(row))}[figure]


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
    parser.add_argument("--seeds", type=int, nargs="*", default=[], help="to be computed where missing")
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help="of the students, a line each")
    args = parser.parse_args()
    with as_command("factorial"):
        compute(args.benchmark, args.seeds, args.to)
        report(whole_seeds(read(args.to)))


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


def compute(benchmark: str, seeds: Sequence[int], file: Path) -> None:
    """Append the students of these seeds that a file does not have.

    Raises:
        FerdError: the benchmark's images or teacher are missing.
    """
    everything = params.read()
    settings, ferd = everything.benchmark(benchmark), everything.method("ferd")
    there = {(student.seed, student.has) for student in read(file)}
    missing = [key for key in product(seeds, COMBINATIONS) if key not in there]
    if not missing:
        return
    test = load_images(paths.images(benchmark, "test"))
    for seed, has in missing:
        network = distilled(benchmark, settings, without(ferd, has), seed)
        line = json.dumps({"seed": seed, "has": has, "per_class": judged(network, settings, test)})
        with file.open("a", encoding="utf-8") as lines:
            lines.write(f"{line}\n")
        print(f"factorial: seed {seed}, {name_of(has)}", file=sys.stderr, flush=True)


def distilled(name: str, benchmark: Benchmark, method: Method, seed: int) -> Classifier:
    """A student as ``tasks.distill`` makes it."""
    device = device_with(benchmark.distillation.threads)
    teacher = checkpoints.load(name, benchmark, paths.teacher(name))
    with tempfile.TemporaryDirectory() as folder:
        student = benchmark.students[0]
        run = begin(benchmark, teacher, student, method, seed, Path(folder) / "pool", device, None)
        for _ in run.rounds():
            pass
    return run.student


def judged(network: Classifier, benchmark: Benchmark, test: Images) -> dict[str, list[float]]:
    """By attack the accuracy of each class, as ``tasks.evaluate`` finds it."""
    attacks: dict[Attack, str] = dict.fromkeys(ATTACKS, "all")
    settings = benchmark.evaluation.model_copy(update={"attacks": attacks, "other_balls": []})
    device = device_with(settings.threads)
    evaluation = Evaluation(network, test, settings, benchmark.threat_model, SEED_OF_ATTACKS, device)
    for _ in evaluation.batches():
        pass
    return {attack: found["per_class"] for attack, found in evaluation.figures().items() if attack in ATTACKS}


def read(file: Path) -> list[Student]:
    """The students of a file, none where it is not there yet.

    Raises:
        FerdError: a line is none that ``compute`` wrote.
    """
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    students = []
    for number, line in enumerate(lines, 1):
        try:
            found = json.loads(line)
            students.append(Student(found["seed"], tuple(found["has"]), found["per_class"]))
        except (ValueError, KeyError, TypeError):
            raise FerdError(f"{file}:{number}: no line of a student; remove it, and it is computed") from None
    return students


def whole_seeds(students: Sequence[Student]) -> list[Student]:
    """Those of seeds that have all combinations."""
    seeds = [student.seed for student in students]
    return [student for student in students if seeds.count(student.seed) == len(COMBINATIONS)]


def effect(students: Sequence[Student], mechanism: str, attack: str, figure: str) -> Effect:
    """Of a mechanism, or of ``ALL``, on a figure; of two seeds or more, each with all combinations."""
    differences = []
    for seed in sorted({student.seed for student in students}):
        sides: dict[bool | None, list[float]] = {True: [], False: [], None: []}
        for student in students:
            if student.seed == seed:
                sides[is_with(student.has, mechanism)].append(student.figure(attack, figure))
        differences.append(mean(sides[True]) - mean(sides[False]))
    return over_seeds(differences)


def is_with(has: Combination, mechanism: str) -> bool | None:
    """Whether it is there; of ``ALL`` None where some are and some are not."""
    if mechanism == ALL:
        return has[0] if len({*has}) == 1 else None
    return has[MECHANISMS.index(mechanism)]


def over_seeds(values: Sequence[float]) -> Effect:
    """Student's t of two values or more; where all are the same p is 0, or 1 if that is 0."""
    freedom, middle = len(values) - 1, mean(values)
    error = stdev(values) / math.sqrt(len(values))
    margin = t.ppf(0.975, freedom) * error
    p = 2 * t.sf(abs(middle) / error, freedom) if error else float(middle == 0)
    return Effect(middle, middle - margin, middle + margin, p)


def report(students: Sequence[Student]) -> None:
    """Print the combinations and the effects as tables."""
    seeds = sorted({student.seed for student in students})
    if len(seeds) < 2:
        raise FerdError("two seeds or more are needed with all combinations; compute some by --seeds")
    print(f"{len(seeds)} seeds: {', '.join(map(str, seeds))}\n")
    columns = list(product(ATTACKS, FIGURES))
    print_row("mechanisms", (f"{attack} {figure}" for attack, figure in columns))
    print_row("---", ("---" for _ in columns))
    for has in COMBINATIONS:
        cell = [student for student in students if student.has == has]
        print_row(name_of(has), (spread([s.figure(*column) for s in cell], column[1]) for column in columns))
    print()
    print_row("effect of", (f"{attack} {figure}" for attack, figure in columns))
    print_row("---", ("---" for _ in columns))
    for mechanism in (*MECHANISMS, ALL):
        found = [(effect(students, mechanism, *column), digits(column[1])) for column in columns]
        print_row(
            mechanism,
            (f"{e.mean:+.{n}f} ({e.low:+.{n}f} to {e.high:+.{n}f}), p {e.p:.2g}" for e, n in found),
        )


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
