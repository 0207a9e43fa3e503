"""Stage ``analyse``: a checkpoint -> its weak classes under targeted attack, UTAE outcomes, image quality."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from ferd.adaptive_adversary import AdaptiveAdversary, weakest
from ferd.checkpoint import load_state, save_state
from ferd.config import Benchmark
from ferd.datasets import Images, dataset, first_per_class, load_images
from ferd.errors import FerdError
from ferd.fairness import worst_count
from ferd.files import write_json
from ferd.image_quality import Embedding, InceptionEmbedding, TeacherEmbedding, image_quality
from ferd.models.classifier import Classifier
from ferd.pool import Pool
from ferd.utae_outcomes import UtaeOutcomes
from tasks import checkpoints, cost_record, params, paths, process
from tasks.device import device_with
from tasks.storage import fetch_weights

SEED = 0  # of the attacks; the student's own seed is part of its name


def main() -> None:
    """``python -m tasks.analyse checkpoints/<benchmark>/....safetensors``."""
    checkpoints.look_at("analyse", __doc__, analyse_checkpoint)


def analyse_checkpoint(benchmark: str, checkpoint: Path, progress: process.Progress) -> None:
    """Analyse a student, or a teacher by the adaptive adversary alone; goes on where it was interrupted."""
    settings = params.read().benchmark(benchmark)
    refuse_missing(benchmark, checkpoint)
    analysis = Analysis(benchmark, checkpoint, settings, progress)
    with checkpoints.recorded(benchmark, checkpoint, progress.task) as metrics:
        figures = analysis.of_student() if paths.identity(checkpoint)[0] else analysis.of_teacher()
        write_outputs(benchmark, checkpoint, settings, figures)
        cost = paths.cost_of(paths.result_of(checkpoint), "analyse")
        cost_record.write(cost, progress, analysis.device)
        metrics |= metrics_of(figures)


class Resumable(Protocol):
    """A part of an analysis that can be interrupted between two batches."""

    def batches(self) -> Iterator[tuple[int, int]]:
        """Do what is left; after each batch (done, total)."""

    def state_dict(self) -> Any:
        """What the remaining batches are added to."""

    def load_state_dict(self, state: Any) -> None:
        """Go on where ``state_dict`` was taken."""


class Analysis:
    """The parts of one checkpoint's analysis, over one state on disk.

    Attributes:
        resume: the folder of that state.
    """

    def __init__(
        self, benchmark: str, checkpoint: Path, settings: Benchmark, progress: process.Progress
    ) -> None:
        self.benchmark, self.checkpoint, self.settings = benchmark, checkpoint, settings
        self.progress = progress
        self.device = device_with(settings.analysis.threads)
        test, teacher = paths.images(benchmark, "test"), paths.teacher(benchmark)
        self.network = self.load(checkpoint)
        self.attacked = first_images(load_images(test), settings.analysis.images_per_class)
        self.resume = progress.resume_folder(
            settings.analysis,
            settings.threat_model,
            settings.distillation.utae_steps,
            [process.sha256(path) for path in (test, checkpoint, teacher)],
        )
        self._state = load_state(self.resume / "outcomes.pt") or {"done": {}}

    def of_teacher(self) -> dict[str, Any]:
        """The adaptive adversary against a teacher."""
        self._begin(len(self.attacked.labels))
        return {"adaptive_adversary": self._adversary("teacher", self.network, self.attacked).figures()}

    def of_student(self) -> dict[str, Any]:
        """The adaptive adversary against student and teacher, the student's UTAEs, its pool's images."""
        teacher = self.load(paths.teacher(self.benchmark))
        judge = self.load(judge_of(self.benchmark))
        pool = self._pool_images()
        real = validation_images(self.benchmark)
        number, gammas = len(self.attacked.labels), self.settings.analysis.gammas
        weak_classes = worst_count(teacher.classes)
        self._begin(number * (1 + len(gammas)) + number // teacher.classes * weak_classes)
        adversary = self._adversary("student", self.network, self.attacked)
        figures = adversary.figures()
        return {
            "adaptive_adversary": figures,
            "weakest_classes": self._beside_teacher(adversary, figures, teacher),
            "utae_outcomes": self._utae_outcomes(teacher),
            "images": image_quality(
                pool,
                real,
                teacher,
                judge,
                self._embedding(teacher),
                self.settings.analysis.batch_size,
                self.device,
            ),
        }

    def load(self, checkpoint: Path) -> Classifier:
        """A network of this benchmark."""
        return checkpoints.load(self.benchmark, self.settings, checkpoint)

    def _begin(self, total: int) -> None:
        self._total = total
        self.progress.start(self._attacked_so_far())

    def _attacked_so_far(self) -> int:
        """Images attacked so far, over all parts."""
        return sum(self._state["done"].values())

    def _run(self, name: str, part: Resumable) -> None:
        """Do what is left of a part, and keep its state."""
        if name in self._state:
            part.load_state_dict(self._state[name])
        for done, _ in part.batches():
            self._state[name] = part.state_dict()
            self._state["done"][name] = done
            save_state(self.resume / "outcomes.pt", self._state)
            self.progress.advance(self._attacked_so_far(), self._total, unit="image", part=name)

    def _adversary(self, name: str, network: Classifier, data: Images) -> AdaptiveAdversary:
        settings = self.settings.analysis
        threat = self.settings.threat_model.with_steps(settings.targeted_steps)
        adversary = AdaptiveAdversary(network, data, threat, settings.batch_size, SEED, self.device)
        self._run(name, adversary)
        return adversary

    def _beside_teacher(
        self, student: AdaptiveAdversary, figures: dict[str, Any], teacher: Classifier
    ) -> list[dict[str, Any]]:
        """The student's weakest classes, and how the teacher fares on the same images of them."""
        weak = weakest(figures["union"]["per_class"], figures["clean"]["per_class"])
        rows = torch.isin(self.attacked.labels, torch.tensor(weak))
        data = Images(self.attacked.images[rows], self.attacked.labels[rows])
        against_teacher = self._adversary("teacher", teacher, data)
        return [
            {"class": label, "student": student.source(label), "teacher": against_teacher.source(label)}
            for label in weak
        ]

    def _utae_outcomes(self, teacher: Classifier) -> list[dict[str, Any]]:
        settings = self.settings.analysis
        threat = self.settings.threat_model.with_steps(self.settings.distillation.utae_steps)
        outcomes = UtaeOutcomes(
            self.network,
            teacher,
            self.attacked,
            settings.gammas,
            threat,
            settings.batch_size,
            SEED,
            self.device,
        )
        self._run("utae", outcomes)
        return outcomes.figures()

    def _pool_images(self) -> Images:
        """The last images that the student was trained on, with the labels asked for."""
        shape, folder = dataset(self.settings.data.dataset).shape, self.checkpoint.with_suffix(".pool")
        pool = Pool(folder, pool_size(folder), shape, torch.device("cpu"), grows=False)
        last = self.settings.analysis.pool_images
        return Images(pool.images[-last:], pool.labels[-last:])

    def _embedding(self, teacher: Classifier) -> Embedding:
        inception = self.settings.analysis.inception
        if inception is None:
            return TeacherEmbedding(teacher, self.device)
        return InceptionEmbedding(fetch_weights(inception), self.device)


def judge_of(benchmark: str) -> Path:
    """The weights of the classifier that judges synthetic images."""
    return paths.teacher(benchmark).with_name("judge.safetensors")


def refuse_missing(benchmark: str, checkpoint: Path) -> None:
    """Name the first input that is missing, and the stage that makes it.

    Raises:
        FerdError: there is one.
    """
    made_by = {
        paths.images(benchmark, "test"): f"tasks.data {benchmark}",
        paths.teacher(benchmark): f"tasks.teacher {benchmark}",
    }
    if paths.identity(checkpoint)[0]:
        distill = paths.made_by(benchmark, checkpoint)
        made_by |= {
            paths.images(benchmark, "validation"): f"tasks.data {benchmark}",
            judge_of(benchmark): f"tasks.judge {benchmark}",
            checkpoint: distill,
            checkpoint.with_suffix(".pool"): distill,
        }
    for path, command in made_by.items():
        if not path.exists():
            raise FerdError(f"{path}: missing; `python -m {command}` makes it")


def first_images(data: Images, count: int) -> Images:
    """The first ``count`` images of each class.

    Raises:
        FerdError: a class has fewer.
    """
    rows = first_per_class(data.labels, 0, count, "analysis.images_per_class")
    return Images(data.images[rows], data.labels[rows])


def pool_size(folder: Path) -> int:
    """The number of images in a student's pool.

    Raises:
        FerdError: it is damaged, or holds none.
    """
    size = 0
    try:
        for shard in folder.glob("*.safetensors"):
            with safe_open(shard, framework="pt") as file:
                size += len(file.get_tensor("labels"))
    except SafetensorError as error:
        raise FerdError(f"{folder}: damaged ({error}); run stage `distill` again") from None
    if not size:
        raise FerdError(f"{folder}: holds no images; run stage `distill` again")
    return size


def validation_images(benchmark: str) -> Images:
    """The real images that synthetic ones are compared with.

    Raises:
        FerdError: there are none.
    """
    real = load_images(paths.images(benchmark, "validation"))
    if not len(real.labels):
        raise FerdError(
            f"benchmarks.{benchmark}.data.validation_per_class is 0: nothing to compare the pool's images "
            "with; raise it"
        )
    return real


def write_outputs(benchmark: str, checkpoint: Path, settings: Benchmark, figures: dict[str, Any]) -> None:
    """The analysis as JSON."""
    write_json(
        paths.result_of(checkpoint).with_suffix(".analysis.json"),
        {
            **checkpoints.heading(paths.ANALYSIS_SCHEMA, benchmark, checkpoint),
            "threat_model": settings.threat_model.model_dump(),
            **figures,
        },
    )


def metrics_of(figures: dict[str, Any]) -> dict[str, float]:
    """An analysis's figures as MLflow metrics."""
    union = figures["adaptive_adversary"]["union"]
    metrics = {f"analysis/targeted/{key}": union[key] for key in ("average", "worst", "nsd")}
    for outcome in figures.get("utae_outcomes", []):
        for key in ("entropy", "same_end", "kl_from_uniform", "correct"):
            if outcome[key] is not None:
                metrics[f"analysis/utae-{outcome['gamma']}/{key}"] = outcome[key]
    if images := figures.get("images"):
        for key in ("inception_score", "frechet_distance", "judge_on_real"):
            metrics[f"analysis/images/{key}"] = images[key]
        for network, share in images["agreement"].items():
            metrics[f"analysis/images/agreement_{network}"] = share
        metrics["analysis/images/class_entropy"] = images["balance"]["entropy"]
    return metrics


if __name__ == "__main__":
    main()
