"""Stage ``teacher``: a benchmark's robust teacher, trained, fine-tuned or given, and measured."""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ferd.adversarial_training import AdversarialTraining
from ferd.checkpoint import load_state, save_classifier, save_state
from ferd.config import Attack, Benchmark, EvaluationSettings, Teacher, fingerprint
from ferd.datasets import Images, dataset, load_images
from ferd.errors import FerdError
from ferd.evaluation import Evaluation
from ferd.files import write_json, write_json_lines
from ferd.foreign_checkpoint import load_foreign
from ferd.models.classifier import Classifier
from ferd.models.registry import build
from ferd.randomness import stream_seed
from tasks import cost_record, params, paths, process, tracking
from tasks.command import command_line
from tasks.device import device_with
from tasks.storage import fetch_weights

SEED = 0  # of teachers and judges, and of the attacks that measure them
MEASURED: tuple[Attack, ...] = ("clean", "pgd20")
LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Role:
    """Whom a classifier is made for: ``teacher`` or ``judge``, by which settings and their key."""

    name: str
    settings: Teacher
    key: str

    @property
    def seed(self) -> int:
        """Of its own: networks of one kind begin elsewhere for each role, and elsewhere than students."""
        return stream_seed(SEED, self.name)


def main() -> None:
    """``python -m tasks.teacher BENCHMARK``."""
    parser = command_line(__doc__)
    parser.add_argument("benchmark")
    args = parser.parse_args()
    with process.running(f"teacher {args.benchmark}") as progress:
        benchmark = params.read().benchmark(args.benchmark)
        acquire(args.benchmark, benchmark, Role("teacher", benchmark.teacher, "teacher"), progress)


def acquire(name: str, benchmark: Benchmark, role: Role, progress: process.Progress) -> None:
    """Load and train as the role's settings say, measure, save; goes on where an interrupted attempt was.

    Raises:
        FerdError: the weights cannot be had, or the classifier is not robust and that is not accepted.
    """
    settings, images = role.settings, paths.images(name, "train")
    device = device_with(settings.threads)
    measured_on = measuring_images(name, settings)
    network = initial_network(settings, benchmark, role.seed)
    what = [
        settings.model_dump(exclude={"measure"}),
        benchmark.threat_model,
        benchmark.augmentation,
        device.type,
    ]
    resume = progress.resume_folder(*what, process.sha256(images))
    run = tracking.resume_or_start(resume, name, role.name, fingerprint(*what), progress.task, settings)
    records: list[dict[str, Any]] = []
    if settings.training is None:
        progress.start()
    else:
        training = AdversarialTraining(
            network,
            load_images(images),
            settings.training,
            benchmark.threat_model,
            benchmark.augmentation,
            role.seed,
            device,
            warm_up=settings.weights is not None,
        )
        records = _train(training, role, resume, run, progress)
        network = training.network
    measured = _measure(network, measured_on, benchmark, settings, device)
    progress.event("measured", **measured)
    _refuse_what_is_not_robust(measured, role, network.classes)
    path = paths.CHECKPOINTS / name / f"{role.name}.safetensors"
    save_classifier(
        path,
        network,
        settings.network,
        size=dataset(benchmark.data.dataset).size,
        benchmark=name,
        run_key=role.name,
        settings=fingerprint(*what),
        threat_model=benchmark.threat_model.model_dump(),
    )
    result = paths.result_of(path)
    write_json_lines(result.with_suffix(".rounds.jsonl"), records)
    write_json(result.with_suffix(".measured.json"), measured)
    cost_record.write(paths.cost_of(result, "train"), progress, device)
    run.log({f"{role.name}/measured/{attack}": measured[attack] for attack in MEASURED})
    run.finish()


def initial_network(settings: Teacher, benchmark: Benchmark, seed: int) -> Classifier:
    """What training begins with, if there is any: given weights, or fresh ones by the seed."""
    kind = dataset(benchmark.data.dataset)
    classes, channels = len(kind.class_names), kind.channels
    if settings.weights is None:
        return build(settings.network, classes=classes, channels=channels, seed=seed)
    network = load_foreign(
        fetch_weights(settings.weights),
        settings.network,
        classes=classes,
        channels=channels,
        normalisation=settings.weights.normalisation,
    )
    return network.requires_grad_()


def _train(
    training: AdversarialTraining,
    role: Role,
    resume: Path,
    run: tracking.Run,
    progress: process.Progress,
) -> list[dict[str, Any]]:
    """All remaining epochs; -> a record of each epoch."""
    records: list[dict[str, Any]] = []
    if state := load_state(resume / "state.pt"):
        training.load_state_dict(state["training"])
        records = json.loads(state["records"])
    progress.start(training.epoch)
    for record in training.epochs():
        records.append(asdict(record))
        run.log(
            {f"{role.name}/{key}": value for key, value in records[-1].items() if key != "epoch"},
            record.epoch,
        )
        save_state(resume / "state.pt", {"training": training.state_dict(), "records": json.dumps(records)})
        progress.advance(record.epoch, training.settings.epochs, unit="epoch", loss=record.loss)
    return records


def measuring_images(name: str, settings: Teacher) -> Images:
    """The validation images that a classifier is measured on, as evenly of all classes as they can be.

    Raises:
        FerdError: the benchmark has none.
    """
    validation = load_images(paths.images(name, "validation"))
    if not len(validation.labels):
        raise FerdError(
            f"benchmarks.{name}.data.validation_per_class: is 0, but a teacher is measured on validation "
            "images before it is used; set it to 10 or more"
        )
    rows = first_evenly(validation.labels, settings.measure.images)
    return Images(validation.images[rows], validation.labels[rows])


def first_evenly(labels: Tensor, number: int) -> Tensor:
    """Indices, in order, of ``number`` examples: the first of every class, then the second, and so on."""
    ranks = F.one_hot(labels).cumsum(0).gather(1, labels.unsqueeze(1)).squeeze(1)
    return ranks.argsort(stable=True)[:number].sort().values


def _measure(
    network: Classifier, images: Images, benchmark: Benchmark, settings: Teacher, device: torch.device
) -> dict[str, Any]:
    """Clean and PGD-20 accuracy, with what the weights were made from."""
    evaluation = EvaluationSettings(
        batch_size=benchmark.evaluation.batch_size,
        attacks=dict.fromkeys(MEASURED, "all"),
        other_balls=[],
        threads=settings.threads,
    )
    evaluator = Evaluation(network, images, evaluation, benchmark.threat_model, SEED, device)
    for _ in evaluator.batches():
        pass
    return {
        "n": len(images.labels),
        **{attack: evaluator.verdicts[attack].double().mean().item() for attack in MEASURED},
        "weights": settings.weights.model_dump() if settings.weights else None,
    }


def _refuse_what_is_not_robust(measured: dict[str, Any], role: Role, classes: int) -> None:
    measure = role.settings.measure
    above_chance = measured["pgd20"] > 1 / classes or measure.accept_not_robust
    if measured["pgd20"] >= measure.least_robust and above_chance:
        return
    asked = max(measure.least_robust, 1 / classes)
    fault = (
        f"the {role.name} is not robust: {_percent(measured['clean'])} clean but "
        f"{_percent(measured['pgd20'])} under PGD-20 of {measured['n']} validation images, where "
        f"{_percent(asked)} is {'asked for' if asked == measure.least_robust else 'what guessing gives'}"
    )
    if not measure.accept_not_robust:
        better = "train it longer or on more images" if role.settings.training else "give another one"
        raise FerdError(
            f"{fault}; {better}, or set {role.key}.measure.accept_not_robust: true to use it all the same"
        )
    LOGGER.warning("%s; it is used all the same", fault)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


if __name__ == "__main__":
    main()
