"""A checkpoint of a benchmark: loaded, looked at by a stage, and named in what that writes and records."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ferd.checkpoint import load_classifier, read_facts
from ferd.config import Benchmark
from ferd.datasets import dataset
from ferd.models.classifier import Classifier
from tasks import params, paths, process, tracking
from tasks.command import command_line


def look_at(command: str, doc: str | None, work: Callable[[str, Path, process.Progress], None]) -> None:
    """``python -m tasks.COMMAND checkpoints/BENCHMARK/....safetensors``: a stage's body on it.

    Args:
        doc: the docstring of the stage's module.
        work: takes the benchmark, the checkpoint and what progress is told to.
    """
    parser = command_line(doc)
    parser.add_argument("checkpoint", type=Path)
    checkpoint = parser.parse_args().checkpoint
    name = str(checkpoint).removeprefix("checkpoints/").removesuffix(".safetensors")
    with process.running(f"{command} {name}") as progress:
        work(params.benchmark_of(checkpoint), checkpoint, progress)


def load(name: str, benchmark: Benchmark, checkpoint: Path) -> Classifier:
    """A network of the benchmark of that name.

    Raises:
        FerdError: it is missing, damaged, or of another benchmark or other images.
    """
    kind = dataset(benchmark.data.dataset)
    return load_classifier(checkpoint, benchmark=name, classes=len(kind.class_names), channels=kind.channels)


def heading(schema: str, benchmark: str, checkpoint: Path) -> dict[str, Any]:
    """What a file of figures begins with: its schema, and of which network it is."""
    student, method, seed = paths.identity(checkpoint)
    return {
        "schema": schema,
        "benchmark": benchmark,
        "student": student,
        "method": method,
        "seed": seed,
        "network": read_facts(checkpoint)["network"],
    }


@contextmanager
def recorded(benchmark: str, checkpoint: Path, task: str) -> Iterator[dict[str, float]]:
    """The metrics to be recorded in the end, in the run that made the checkpoint, or one of its own."""
    key, settings = paths.run_key(checkpoint), read_facts(checkpoint, "settings")["settings"]
    run = tracking.find_run(benchmark, key, settings)
    metrics: dict[str, float] = {}
    yield metrics
    if run is None:
        run = tracking.start_run(benchmark, key, settings, task, {})
    run.log(metrics)
    run.finish()
