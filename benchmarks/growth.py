"""Costs as work grows: the pool at paper size, evaluation over images, and MLflow's share.

``python -m benchmarks.growth pool`` (or ``evaluation``, ``record``).
"""

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch

from benchmarks.measure import resident_mb, seconds_of
from ferd.config import EvaluationSettings, ThreatModel
from ferd.datasets import Images
from ferd.evaluation import Evaluation
from ferd.models.registry import build
from ferd.pool import Pool
from tasks import tracking
from tasks.command import command_line

CPU = torch.device("cpu")
ROUNDS, BATCH, SHAPE, SAMPLES = 220, 256, (3, 32, 32), 20
PART = 20  # rounds that a line is the median of


def pool() -> None:
    """Append 220 rounds of random images, and draw batches of the student after each."""
    rng = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        images = Pool(Path(folder), ROUNDS * BATCH, SHAPE, CPU)
        before = resident_mb("VmRSS")
        print("rounds | append ms | 20 batches ms | bytes written a round | resident MB in all")
        figures = []
        for number in range(1, ROUNDS + 1):
            batch = torch.randint(256, (BATCH, *SHAPE), dtype=torch.uint8, generator=rng)
            labels = torch.randint(10, (BATCH,), generator=rng)
            appended = seconds_of(partial(images.append, batch, labels), CPU)
            drawn = seconds_of(lambda: [images.sample(BATCH, rng) for _ in range(SAMPLES)], CPU)
            written = (Path(folder) / f"round-{number:04d}.safetensors").stat().st_size
            figures.append((1000 * appended, 1000 * drawn, written))
            if number % PART == 0:
                row = [median(column) for column in zip(*figures, strict=True)]
                held = resident_mb("VmRSS") - before
                rounds = f"{number - PART + 1}-{number}"
                print(f"{rounds} | {row[0]:.1f} | {row[1]:.0f} | {row[2]:.0f} | {held:.0f}", flush=True)
                figures = []


def evaluation() -> None:
    """Seconds of PGD-20 on 100, 200 and 400 images."""
    network = build("resnet8-w8", classes=10, channels=1).eval()
    threat = ThreatModel(norm="linf", epsilon=0.1, step_size=0.025, steps=20)
    settings = EvaluationSettings(batch_size=50, attacks={"pgd20": "all"}, other_balls=[], threads=1)
    for number in (100, 200, 400, 800):
        data = Images(torch.randint(256, (number, 1, 8, 8), dtype=torch.uint8), torch.arange(number) % 10)

        def judge(data: Images = data) -> None:
            for _ in Evaluation(network, data, settings, threat, 0, CPU).batches():
                pass

        judge()
        seconds = median(seconds_of(judge, CPU) for _ in range(3))
        print(f"{number} images: {seconds:.2f} s, {1000 * seconds / number:.2f} ms an image")


def record() -> None:
    """Seconds of logging a round's metrics to a fresh SQLite store, the first and the 200th round apart."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        run = tracking.start_run("growth", "growth", "none", "growth", {})
        metrics = {f"generator/{number}": float(number) for number in range(12)}
        taken = []
        for step in range(200):
            started = time.process_time()
            run.log(metrics, step)
            taken.append(time.process_time() - started)
        for name, part in (("first", taken[:20]), ("last", taken[-20:])):
            print(f"{name} 20 rounds: {1000 * median(part):.1f} ms a round of {len(metrics)} metrics")


PARTS: dict[str, Callable[[], None]] = {"pool": pool, "evaluation": evaluation, "record": record}


def main() -> None:
    """Measure the parts that are named, by default all."""
    parser = command_line(__doc__)
    parser.add_argument("parts", nargs="*", help=f"{', '.join(PARTS)}; by default all")
    parts = parser.parse_args().parts or PARTS
    if unknown := [name for name in parts if name not in PARTS]:
        parser.error(f"{', '.join(unknown)}: no such part; choose from {', '.join(PARTS)}")
    torch.set_num_threads(1)
    for name in parts:
        PARTS[name]()


if __name__ == "__main__":
    main()
