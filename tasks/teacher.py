"""Stage ``teacher``: train a benchmark's robust teacher."""

import argparse
import json
from dataclasses import asdict

from ferd.adversarial_training import AdversarialTraining
from ferd.checkpoint import load_state, save_classifier, save_state
from ferd.config import fingerprint
from ferd.datasets import dataset
from ferd.files import write_json_lines
from ferd.models.registry import build
from tasks import params, paths, process, tracking
from tasks.data import load_images

SEED = 0


def main() -> None:
    """``python -m tasks.teacher BENCHMARK``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmark")
    args = parser.parse_args()
    with process.running(f"teacher {args.benchmark}") as progress:
        train_teacher(args.benchmark, progress)


def train_teacher(benchmark: str, progress: process.Progress) -> None:
    """Train on the benchmark's training images; goes on where an interrupted attempt was."""
    settings = params.read().benchmark(benchmark)
    images = paths.images(benchmark, "train")
    device = process.device_with(settings.teacher.threads)
    kind = dataset(settings.data.dataset)
    network = build(
        settings.teacher.network, classes=len(kind.class_names), channels=kind.channels, seed=SEED
    )
    training = AdversarialTraining(
        network,
        load_images(images),
        settings.teacher,
        settings.threat_model,
        settings.augmentation,
        SEED,
        device,
    )
    what = [settings.teacher, settings.threat_model, settings.augmentation, device.type]
    resume = process.resume_folder(progress.task, *what, process.sha256(images))
    state = load_state(resume / "state.pt")
    records = []
    if state:
        training.load_state_dict(state["training"])
        records = json.loads(state["records"])
    run = tracking.resume_or_start(
        resume, benchmark, "teacher", fingerprint(*what), progress.task, settings.teacher
    )
    progress.start(training.epoch)
    for record in training.epochs():
        records.append(asdict(record))
        run.log(
            {f"teacher/{key}": value for key, value in records[-1].items() if key != "epoch"},
            record.epoch,
        )
        save_state(resume / "state.pt", {"training": training.state_dict(), "records": json.dumps(records)})
        progress.advance(record.epoch, settings.teacher.epochs, unit="epoch", loss=record.loss)
    path = paths.teacher(benchmark)
    save_classifier(
        path,
        network,
        settings.teacher.network,
        size=kind.size,
        benchmark=benchmark,
        run_key="teacher",
        settings=fingerprint(*what),
        threat_model=settings.threat_model.model_dump(),
    )
    write_json_lines(paths.result_of(path).with_suffix(".rounds.jsonl"), records)
    process.write_cost(paths.result_of(path).with_suffix(".train-cost.json"), progress, device)
    run.finish()
    process.discard(resume)


if __name__ == "__main__":
    main()
