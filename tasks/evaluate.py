"""Stage ``evaluate``: a checkpoint -> its accuracy, a class and an attack at a time."""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ferd.checkpoint import load_classifier, load_state, read_facts, save_state
from ferd.config import fingerprint
from ferd.datasets import dataset, load_images
from ferd.errors import FerdError
from ferd.evaluation import Evaluation
from ferd.files import atomic_write, write_json
from tasks import params, paths, process, tracking
from tasks.device import device_with

SEED = 0  # of the attacks; the student's own seed is part of its name


def main() -> None:
    """``python -m tasks.evaluate checkpoints/<benchmark>/....safetensors``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    checkpoint = parser.parse_args().checkpoint
    name = str(checkpoint).removeprefix("checkpoints/").removesuffix(".safetensors")
    with process.running(f"evaluate {name}") as progress:
        evaluate_checkpoint(params.benchmark_of(checkpoint), checkpoint, progress)


def evaluate_checkpoint(benchmark: str, checkpoint: Path, progress: process.Progress) -> None:
    """Run every attack on the test images; goes on where an interrupted attempt was."""
    everything = params.read()
    settings = everything.benchmark(benchmark)
    refuse_missing(everything, benchmark, checkpoint)
    device = device_with(settings.evaluation.threads)
    kind = dataset(settings.data.dataset)
    network = load_classifier(
        checkpoint, benchmark=benchmark, classes=len(kind.class_names), channels=kind.channels
    )
    facts = read_facts(checkpoint, "settings")
    images = paths.images(benchmark, "test")
    evaluation = Evaluation(
        network,
        load_images(images),
        settings.evaluation,
        settings.threat_model,
        SEED,
        device,
    )
    what = fingerprint(
        settings.evaluation,
        settings.threat_model,
        process.sha256(images),
        process.sha256(checkpoint),
    )
    resume = progress.resume_folder(what)
    evaluation.load_state_dict(load_state(resume / "verdicts.pt") or evaluation.state_dict())
    run = tracking.find_run(benchmark, paths.run_key(checkpoint), facts["settings"])
    total = sum(len(trial.rows) for trial in evaluation.trials.values())
    progress.start(judged(evaluation))
    for attack, _, _ in evaluation.batches():
        save_state(resume / "verdicts.pt", evaluation.state_dict())
        progress.advance(judged(evaluation), total, unit="image", attack=attack)
    for warning in evaluation.checks().warnings():
        print(f"{progress.task}: warning: {warning}", file=sys.stderr)
    write_outputs(benchmark, checkpoint, evaluation)
    process.write_cost(paths.cost_of(paths.result_of(checkpoint), "evaluate"), progress, device)
    if run is None:
        run = tracking.start_run(benchmark, paths.run_key(checkpoint), facts["settings"], progress.task, {})
    run.log(tracking.robustness(evaluation.figures(), evaluation.other_balls()))
    run.finish()


def refuse_missing(everything: params.Params, benchmark: str, checkpoint: Path) -> None:
    """Say what makes a checkpoint that is not there, or that nothing does.

    Raises:
        FerdError: it is missing.
    """
    student, method, _ = paths.identity(checkpoint)
    if not checkpoint.exists():
        if student:
            everything.method(method)
        raise FerdError(f"{checkpoint}: missing; `python -m {paths.made_by(benchmark, checkpoint)}` makes it")


def judged(evaluation: Evaluation) -> int:
    """Verdicts so far, over all attacks."""
    return sum(len(verdicts) for verdicts in evaluation.verdicts.values())


def write_outputs(benchmark: str, checkpoint: Path, evaluation: Evaluation) -> None:
    """The result as JSON, and beside it the verdict on every image."""
    result = paths.result_of(checkpoint)
    student, method, seed = paths.identity(checkpoint)
    arrays: dict[str, Any] = {key: value.numpy() for key, value in evaluation.verdicts.items()}
    with atomic_write(result.with_suffix(".verdicts.npz")) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)
    write_json(
        result,
        {
            "schema": paths.RESULT_SCHEMA,
            "benchmark": benchmark,
            "student": student,
            "method": method,
            "seed": seed,
            "network": read_facts(checkpoint)["network"],
            "threat_model": evaluation.threat.model_dump(),
            "attacks": evaluation.figures(),
            "other_balls": evaluation.other_balls(),
            "checks": evaluation.checks().as_json(),
        },
    )


if __name__ == "__main__":
    main()
