"""Stage ``evaluate``: a checkpoint -> its accuracy, a class and an attack at a time."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ferd.checkpoint import load_state, save_state
from ferd.config import Benchmark, fingerprint
from ferd.datasets import load_images
from ferd.errors import FerdError
from ferd.evaluation import Evaluation
from ferd.files import atomic_write, write_json
from tasks import checkpoints, cost_record, params, paths, process, tracking
from tasks.device import device_with

SEED = 0  # of the attacks; the student's own seed is part of its name


def main() -> None:
    """``python -m tasks.evaluate checkpoints/<benchmark>/....safetensors``."""
    checkpoints.look_at("evaluate", __doc__, evaluate_checkpoint)


def evaluate_checkpoint(benchmark: str, checkpoint: Path, progress: process.Progress) -> None:
    """Run every attack on the test images; goes on where an interrupted attempt was."""
    everything = params.read()
    settings = everything.benchmark(benchmark)
    refuse_missing(everything, benchmark, checkpoint)
    with checkpoints.recorded(benchmark, checkpoint, progress.task) as metrics:
        device = device_with(settings.evaluation.threads)
        evaluation = evaluated(benchmark, settings, checkpoint, device, progress)
        for warning in evaluation.checks().warnings():
            print(f"{progress.task}: warning: {warning}", file=sys.stderr)
        write_outputs(benchmark, checkpoint, evaluation)
        cost_record.write(paths.cost_of(paths.result_of(checkpoint), "evaluate"), progress, device)
        metrics |= tracking.robustness(evaluation.figures(), evaluation.other_balls())


def evaluated(
    benchmark: str, settings: Benchmark, checkpoint: Path, device: torch.device, progress: process.Progress
) -> Evaluation:
    """A finished evaluation, of which verdicts are saved batch by batch."""
    images = paths.images(benchmark, "test")
    evaluation = Evaluation(
        checkpoints.load(benchmark, settings, checkpoint),
        load_images(images),
        settings.evaluation,
        settings.threat_model,
        SEED,
        device,
    )
    resume = progress.resume_folder(
        fingerprint(
            settings.evaluation,
            settings.threat_model,
            process.sha256(images),
            process.sha256(checkpoint),
        )
    )
    evaluation.load_state_dict(load_state(resume / "verdicts.pt") or evaluation.state_dict())
    total = sum(len(trial.rows) for trial in evaluation.trials.values())
    progress.start(judged(evaluation))
    for attack, _, _ in evaluation.batches():
        save_state(resume / "verdicts.pt", evaluation.state_dict())
        progress.advance(judged(evaluation), total, unit="image", attack=attack)
    return evaluation


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
    arrays: dict[str, Any] = {key: value.numpy() for key, value in evaluation.verdicts.items()}
    with atomic_write(result.with_suffix(".verdicts.npz")) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)
    write_json(
        result,
        {
            **checkpoints.heading(paths.RESULT_SCHEMA, benchmark, checkpoint),
            "threat_model": evaluation.threat.model_dump(),
            "attacks": evaluation.figures(),
            "other_balls": evaluation.other_balls(),
            "checks": evaluation.checks().as_json(),
        },
    )


if __name__ == "__main__":
    main()
