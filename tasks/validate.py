r"""Try settings without touching the test images: distil with overrides, judge on validation images.

    python -m tasks.validate --benchmark digits --method ferd --seeds 0 1 \
        --set benchmarks.digits.distillation.synthesis.weights.uni=1.0

Prints one JSON line a seed: what a data-free user may look at (agreement of the pool, robust
channels, losses) and accuracy on the validation images of the teacher's own training set. Nothing is
recorded. Without ``--method`` the teacher itself is trained and judged.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from ruamel.yaml.error import YAMLError

from ferd.adversarial_training import AdversarialTraining
from ferd.checkpoint import load_classifier
from ferd.config import Attack, Benchmark, Method
from ferd.datasets import Images, dataset, load_images
from ferd.distillation import RoundRecord
from ferd.errors import FerdError
from ferd.evaluation import Evaluation
from ferd.models.classifier import Classifier
from ferd.randomness import stream_seed
from tasks import paths
from tasks.command import as_command, command_line
from tasks.device import device_with
from tasks.distill import Given, begin, given_images
from tasks.evaluate import SEED as SEED_OF_ATTACKS
from tasks.params import PARAMS, Params, parsed, put, read_content, validate
from tasks.teacher import initial_network

ATTACKS: Mapping[Attack, Literal["all"] | int] = {"clean": "all", "pgd20": "all"}
OF_BOTH = ("augmentation", "threat_model", "evaluation.batch_size", "evaluation.threads")
OF_STUDENTS = (*OF_BOTH, "distillation", "students")  # blocks of a benchmark that a trial looks at
OF_TEACHERS = (*OF_BOTH, "teacher")


def main() -> None:
    """Parse the command line, run, print."""
    parser = command_line(__doc__)
    parser.add_argument("--benchmark", required=True)
    parser.add_argument("--method", help="without it, the teacher is trained and judged")
    parser.add_argument("--seeds", type=typed_seed, nargs="+", default=[0])
    parser.add_argument("--teacher", type=Path, help="default: the pipeline's checkpoint")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="overrides"
    )
    args = parser.parse_args()
    with as_command("validate"):
        if args.teacher and not args.method:
            raise FerdError("--teacher is who a student is distilled from; give a --method, too")
        params = override(PARAMS, args.overrides, looked_at(args.benchmark, args.method))
        for seed in args.seeds:
            started = time.monotonic()
            figures = try_method(params, args, seed) if args.method else try_teacher(params, args, seed)
            seconds = round(time.monotonic() - started, 1)
            print(
                json.dumps({"seed": seed, "set": args.overrides, **figures, "seconds": seconds}), flush=True
            )


def typed_seed(text: str) -> int:
    """A seed: a whole number, 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no seed; give whole numbers, 0 or more")
    return int(text)


def looked_at(benchmark: str, method: str | None) -> list[str]:
    """The blocks of ``params.yaml`` that a trial depends on: images and attacks are as they are."""
    blocks = [f"benchmarks.{benchmark}.{block}" for block in (OF_STUDENTS if method else OF_TEACHERS)]
    return [*blocks, f"methods.{method}"] if method else blocks


def override(path: Path, overrides: list[str], blocks: Sequence[str]) -> Params:
    """``params.yaml`` with some values replaced by ``a.b.c=value``, validated; all are in one of ``blocks``.

    Raises:
        FerdError: one is in none of them, or cannot be.
    """
    content = read_content(path)
    for item in overrides:
        key, _, text = item.partition("=")
        if not any(f"{key}.".startswith(f"{block}.") for block in blocks):
            raise FerdError(f"--set {item}: not looked at here; these are: {', '.join(blocks)}")
        try:
            put(content, key, parsed(text))
        except (YAMLError, ValueError, RecursionError):  # the second: a date that there is not
            raise FerdError(f"--set {item}: {text!r} is not valid YAML; put it in quotes") from None
    return validate(content)


def try_teacher(params: Params, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train a teacher and judge it on the validation images."""
    benchmark = params.benchmark(args.benchmark)
    if benchmark.teacher.training is None:
        raise FerdError(f"benchmarks.{args.benchmark}.teacher.training is null: its teacher is not trained")
    device = device_with(benchmark.teacher.threads)
    own_seed = stream_seed(seed, "teacher")  # of seed 0 as the stage's
    training = AdversarialTraining(
        initial_network(benchmark.teacher, benchmark, own_seed),
        load_images(paths.images(args.benchmark, "train")),
        benchmark.teacher.training,
        benchmark.threat_model,
        benchmark.augmentation,
        own_seed,
        device,
        warm_up=benchmark.teacher.weights is not None,
    )
    for record in training.epochs():
        print(record, file=sys.stderr, flush=True)
    return validation_accuracy(training.network, args.benchmark, benchmark, device)


def try_method(params: Params, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Distil a student and judge it on the validation images."""
    benchmark, method = params.benchmark(args.benchmark), params.method(args.method)
    kind, student_name = dataset(benchmark.data.dataset), benchmark.students[0]
    device = device_with(benchmark.distillation.threads)
    teacher = load_classifier(
        args.teacher or paths.teacher(args.benchmark),
        classes=len(kind.class_names),
        channels=kind.channels,
    )
    given = given_images(args.benchmark, student_name, method, seed)
    student, records = distil(benchmark, teacher, student_name, method, seed, device, given)
    last = records[-1]
    return {
        **validation_accuracy(student, args.benchmark, benchmark, device),
        "agreement": sum(record.agreement for record in records) / len(records),
        "generator": last.generator,
        "student": last.student,
        "largest_proportion": max(max(record.proportions) for record in records),
    }


def distil(
    benchmark: Benchmark,
    teacher: Classifier,
    student_name: str,
    method: Method,
    seed: int,
    device: torch.device,
    given: Given = None,
) -> tuple[Classifier, list[RoundRecord]]:
    """A student as ``tasks.distill`` makes it, and its rounds; its images are not kept."""
    records = []
    with tempfile.TemporaryDirectory() as folder:
        pool = Path(folder) / "pool"
        distillation = begin(benchmark, teacher, student_name, method, seed, pool, device, given)
        for record in distillation.rounds():
            print(f"round {record.round}: {record.agreement:.2f} agree, {record.student}", file=sys.stderr)
            records.append(record)
    return distillation.student, records


def validation_accuracy(
    network: Classifier, name: str, benchmark: Benchmark, device: torch.device
) -> dict[str, Any]:
    """Average and worst-class accuracy, clean and under PGD-20."""
    images = load_images(paths.images(name, "validation"))
    return {
        attack: {key: round(figures[key], 4) for key in ("average", "worst")}
        for attack, figures in figures_of(network, images, benchmark, ATTACKS, device).items()
    }


def figures_of(
    network: Classifier,
    images: Images,
    benchmark: Benchmark,
    attacks: Mapping[Attack, Literal["all"] | int],
    device: torch.device,
) -> dict[str, dict[str, Any]]:
    """As ``tasks.evaluate`` finds them, under other attacks and in no further ball."""
    settings = benchmark.evaluation.model_copy(update={"attacks": attacks, "other_balls": []})
    evaluation = Evaluation(network, images, settings, benchmark.threat_model, SEED_OF_ATTACKS, device)
    for _ in evaluation.batches():
        pass
    return evaluation.figures()


if __name__ == "__main__":
    main()
