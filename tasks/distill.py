"""Stage ``distill``: a teacher -> a student, by a method, without data (but for one control)."""

import argparse
import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ferd.checkpoint import load_state, save_classifier, save_state
from ferd.config import Benchmark, Method, fingerprint
from ferd.datasets import dataset, load_images
from ferd.distillation import Distillation, RoundRecord
from ferd.errors import FerdError
from ferd.files import atomic_write, write_json_lines
from ferd.models.classifier import Classifier
from ferd.models.registry import build
from ferd.pool import Pool
from tasks import checkpoints, cost_record, params, paths, process, tracking
from tasks.command import command_line
from tasks.device import device_with

GRID_COLUMNS = 12
Given = tuple[Tensor, Tensor] | Path | None  # real images and labels, or a finished pool


def main() -> None:
    """``python -m tasks.distill BENCHMARK STUDENT METHOD SEED``, the seed written ``s0``."""
    parser = command_line(__doc__)
    for name in ("benchmark", "student", "method"):
        parser.add_argument(name)
    parser.add_argument("seed", type=seed)
    args = parser.parse_args()
    run_key = f"{args.benchmark}/{args.student}/{args.method}/s{args.seed}"
    with process.running(f"distill {run_key}") as progress:
        distil_student(args.benchmark, args.student, args.method, args.seed, progress)


def seed(text: str) -> int:
    """A seed as ``dvc.yaml`` writes it: 0 of ``s0``."""
    found = re.fullmatch(r"s(\d+)", text, re.ASCII)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no seed; write s0, s1, ...")
    return int(found[1])


def distil_student(
    benchmark: str, student_name: str, method_name: str, seed: int, progress: process.Progress
) -> None:
    """Run the paper's loop; goes on where an interrupted attempt was."""
    everything = params.read()
    settings, method = everything.benchmark(benchmark), everything.method(method_name)
    device = device_with(settings.distillation.threads)
    teacher = checkpoints.load(benchmark, settings, paths.teacher(benchmark))
    given = given_images(benchmark, student_name, method, seed)
    settings_hash = hash_of_settings(benchmark, settings, student_name, method, seed, device, given)
    real = process.sha256(paths.images(benchmark, "train")) if isinstance(given, tuple) else None
    resume = progress.resume_folder(settings_hash, real)
    state = load_state(resume / "state.pt")
    if not state and (resume / "pool").exists():
        shutil.rmtree(resume / "pool")  # of a run that ended in its first round
    distillation = begin(settings, teacher, student_name, method, seed, resume / "pool", device, given)
    records: list[dict[str, Any]] = []
    if state:
        distillation.load_state_dict(state["distillation"])
        records = json.loads(state["records"])
    checkpoint = paths.student(benchmark, student_name, method_name, seed)
    parameters = tracking.student_parameters(
        student_name, method_name, seed, method, settings.distillation, settings.threat_model
    )
    run = tracking.resume_or_start(
        resume, benchmark, paths.run_key(checkpoint), settings_hash, progress.task, parameters
    )
    progress.start(distillation.round)
    for record in distillation.rounds():
        records.append(asdict(record))
        run.log(metrics_of(record), record.round)
        save_state(
            resume / "state.pt",
            {"distillation": distillation.state_dict(), "records": json.dumps(records)},
        )
        progress.advance(
            record.round,
            settings.distillation.rounds,
            unit="round",
            agreement=record.agreement,
            **record.student,
        )
    save_classifier(
        checkpoint,
        distillation.student,
        student_name,
        size=distillation.shape[1],
        benchmark=benchmark,
        run_key=paths.run_key(checkpoint),
        settings=settings_hash,
        threat_model=settings.threat_model.model_dump(),
    )
    result = paths.result_of(checkpoint)
    write_image_grid(result.with_suffix(".images.png"), distillation.pool, teacher.classes)
    process.move_folder(resume / "pool", checkpoint.with_suffix(".pool"))
    write_json_lines(result.with_suffix(".rounds.jsonl"), records)
    cost_record.write(paths.cost_of(result, "distill"), progress, device)
    run.finish()


def begin(
    benchmark: Benchmark,
    teacher: Classifier,
    student_name: str,
    method: Method,
    seed: int,
    pool_folder: Path,
    device: torch.device,
    given: Given,
) -> Distillation:
    """A benchmark's loop for a student of that seed, before its first round."""
    return Distillation(
        teacher,
        build(student_name, classes=teacher.classes, channels=teacher.channels, seed=seed),
        dataset(benchmark.data.dataset).shape,
        benchmark.distillation,
        benchmark.augmentation,
        method,
        benchmark.threat_model,
        seed,
        pool_folder,
        device,
        given,
    )


def hash_of_settings(
    name: str,
    benchmark: Benchmark,
    student_name: str,
    method: Method,
    seed: int,
    device: torch.device,
    given: Given,
) -> str:
    """What a student depends on, but for real images: settings, teacher, a pool that is replayed."""
    pool = [process.sha256(shard) for shard in sorted(given.iterdir())] if isinstance(given, Path) else None
    return fingerprint(
        benchmark.distillation,
        benchmark.augmentation,
        benchmark.threat_model,
        method,
        student_name,
        seed,
        device.type,
        *([pool] if pool else []),
        process.sha256(paths.teacher(name)),
    )


def write_image_grid(path: Path, pool: Pool, classes: int) -> None:
    """A row a class: its last images in the pool; black where there are too few."""
    grid = torch.zeros((classes, GRID_COLUMNS, *pool.images.shape[1:]), dtype=torch.uint8)
    for label in range(classes):
        images = pool.images[pool.labels == label][-GRID_COLUMNS:]
        grid[label, : len(images)] = images
    framed = F.pad(grid, (0, 1, 0, 1))  # a black line between two images
    rows = framed.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    with atomic_write(path) as part:
        Image.fromarray(rows.expand(-1, -1, 3).numpy()).save(part, format="png")


def metrics_of(record: RoundRecord) -> dict[str, float]:
    """A round's figures as MLflow metrics."""
    metrics = {
        "generator/agreement": record.agreement,
        "generator/largest_proportion": max(record.proportions),
        "student/learning_rate": record.learning_rate,
    }
    metrics |= {f"generator/{key}": value for key, value in record.generator.items()}
    return metrics | {f"student/{key}": value for key, value in record.student.items()}


def given_images(benchmark: str, student: str, method: Method, seed: int) -> Given:
    """What a method that does not make its own images is given: real ones, or a finished pool.

    Raises:
        FerdError: there are none.
    """
    if method.pool_of:
        folder = paths.pool(benchmark, student, method.pool_of, seed)
        if not folder.is_dir():
            made_by = f"python -m tasks.distill {benchmark} {student} {method.pool_of} s{seed}"
            raise FerdError(f"{folder}: missing; `{made_by}` makes it")
        return folder
    if method.images == "real-data":
        train = load_images(paths.images(benchmark, "train"))
        return train.images, train.labels
    return None


if __name__ == "__main__":
    main()
