"""The hot steps, larger on a GPU: for each the plain reference and the real one, on the same inputs."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from pyautoattack import AutoAttack
from torch import nn

from benchmarks import reference
from ferd.adversarial_training import AdversarialTraining
from ferd.bottleneck import robust_channels
from ferd.config import Attack, Benchmark, DistillationSettings, EvaluationSettings, NonRobust, Precision
from ferd.cuda_graphs import Recorded
from ferd.datasets import Images, dataset
from ferd.distillation import Distillation
from ferd.evaluation import Evaluation
from ferd.models.classifier import Classifier, fast_layout
from ferd.models.generator import Generator
from ferd.models.registry import build
from ferd.pixels import to_float, to_uint8
from tasks import params

SEED = 0
ROUND_SHARE = 20  # of a paper's round, one step in so many, evenly over its parts
PGD_AT_STEPS = 7
AUTOATTACK_SHARE = 50  # of the standard version's iterations, one in so many, evenly over its four parts
LOW_RATE = 1e-3  # of the student, so that an untrained network outlasts all repeats
LOGIT_SCALE = 8  # predictions far from uniform
TINY_EPSILON = 1e-4  # so that all images outlast AutoAttack's parts, and each part has all of them
LAST_BLOCK = NonRobust(layer=-1, threshold_over="sample")

Call = Callable[[], object]


@dataclass(frozen=True)
class Size:
    """Networks, image size (that of the benchmark) and batch; how much of each step a call does.

    ``steps``: those that are measured where none are named; all, where it is empty.
    """

    benchmark: str
    teacher: str
    student: str
    batch: int
    generator_steps: int = 2
    training_steps: int = 1
    pgd20_images: int = 8
    autoattack_images: int = 2
    steps: Sequence[str] = ()

    @property
    def name(self) -> str:
        """E.g. ``wrn-16-4 -> resnet18, 32 × 32×32``."""
        return f"{self.teacher} -> {self.student}, {self.batch} × {self.image}×{self.image}"

    @property
    def image(self) -> int:
        """Pixels a side."""
        return dataset(self._settings().data.dataset).size

    def settings(self, precision: Precision) -> Benchmark:
        """The paper's settings at this batch, for a few steps; mean threshold, so that masks are mixed."""
        paper = self._settings()
        synthesis = paper.distillation.synthesis
        bottleneck = synthesis.bottleneck.model_copy(update={"threshold": "mean"})
        synthesis = synthesis.model_copy(update={"steps": self.generator_steps, "bottleneck": bottleneck})
        distillation = paper.distillation.model_copy(
            update={
                "precision": precision,
                "batch_size": self.batch,
                "rounds": 2,
                "warmup_rounds": 0,
                "synthesis": synthesis,
                "student": paper.distillation.student.model_copy(update={"learning_rate": LOW_RATE}),
            }
        )
        assert paper.teacher.training is not None
        training = paper.teacher.training.model_copy(
            update={
                "method": "pgd-at",
                "attack_steps": PGD_AT_STEPS,
                "batch_size": self.batch,
                "weight_average": 0.0,
                "precision": precision,
            }
        )
        teacher = paper.teacher.model_copy(update={"training": training})
        return paper.model_copy(update={"distillation": distillation, "teacher": teacher})

    def _settings(self) -> Benchmark:
        return _params().benchmark(self.benchmark)


@cache
def _params() -> params.Params:
    return params.read()


SIZES = (
    Size("cifar10", "wrn-16-4", "resnet18", 32),
    Size("cifar10", "wrn-16-4", "mobilenet_v2", 32, steps=("student",)),
    Size("tiny-imagenet", "preact_resnet34", "preact_resnet18", 4),
)
GPU_SIZES = (  # the paper's networks and batch, and the larger images
    Size("cifar10", "wrn-34-10", "resnet18", 256, 20, 5, 256, 256),
    Size("tiny-imagenet", "preact_resnet34", "preact_resnet18", 128, 20, 5, 128, 128),
)


class Bench:
    """Networks and images of one size, and each hot step as a call: plain, and the real one in a precision.

    Both begin with the same weights and images.

    Args:
        folder: for the pool that a distillation keeps; nothing else is written.
    """

    def __init__(self, size: Size, precision: Precision, folder: Path, device: torch.device) -> None:
        self.size, self.precision, self.device = size, precision, device
        self.settings = size.settings(precision)
        kind = dataset(self.settings.data.dataset)
        self.classes, self.shape = len(kind.class_names), kind.shape
        source = torch.Generator().manual_seed(SEED)
        images = to_uint8(torch.rand(size.batch, *self.shape, generator=source))
        labels = torch.randint(self.classes, (size.batch,), generator=source)
        self.data = Images(images, labels)
        self.inputs, self.labels = to_float(images).to(device), labels.to(device)
        self.folder = folder

    def network(self, name: str) -> Classifier:
        """A seeded network whose running statistics are those of some images, with clear predictions."""
        network = build(name, classes=self.classes, channels=self.shape[0], seed=SEED)
        source = torch.Generator().manual_seed(SEED)
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        with torch.no_grad():
            for momentum in (1.0, norms[0].momentum):  # at once all of the first batch's statistics
                for norm in norms:
                    norm.momentum = momentum
                network.train()(torch.rand(16, *self.shape, generator=source))
            network.linear.weight.mul_(LOGIT_SCALE)
        return network.eval().to(self.device)

    def rng(self) -> torch.Generator:
        """The same numbers each time."""
        return torch.Generator(self.device).manual_seed(SEED)

    def distillation(self) -> Distillation:
        """The real loop, ready for its first round."""
        return Distillation(
            self.network(self.size.teacher).requires_grad_(False),
            self.network(self.size.student),
            self.shape,
            self.settings.distillation,
            self.settings.augmentation,
            params.read().method("ferd"),
            self.settings.threat_model,
            SEED,
            self.folder,
            self.device,
        )

    def reference_student(self) -> reference.StudentTraining:
        """The plain student training, ready for its first step."""
        schedule = self.settings.distillation
        student = reference.plain(self.network(self.size.student))
        return reference.StudentTraining(
            teacher=reference.plain(self.network(self.size.teacher)),
            student=student,
            optimiser=torch.optim.SGD(
                student.parameters(),
                schedule.student.learning_rate,
                momentum=0.9,
                weight_decay=schedule.student.weight_decay,
            ),
            threat=self.settings.threat_model.with_steps(schedule.utae_steps),
            gamma=params.read().method("ferd").utae.gamma,
            adversarial_weight=schedule.student.adversarial_weight,
            prior_sums=torch.zeros(self.classes, self.classes, device=self.device),
            prior_counts=torch.zeros(self.classes, device=self.device),
        )

    def training(self) -> AdversarialTraining:
        """The real teacher training, ready for its first step."""
        training = self.settings.teacher.training
        assert training is not None
        return AdversarialTraining(
            self.network(self.size.teacher),
            self.data,
            training,
            self.settings.threat_model,
            self.settings.augmentation,
            SEED,
            self.device,
        )

    def reference_training(self) -> tuple[Classifier, Call]:
        """The plain teacher training: its network, and one step of it."""
        training = self.settings.teacher.training
        assert training is not None
        network, rng = reference.plain(self.network(self.size.teacher)), self.rng()
        optimiser = torch.optim.SGD(
            network.parameters(),
            training.learning_rate,
            momentum=0.9,
            weight_decay=training.weight_decay,
        )
        threat = self.settings.threat_model.model_copy(
            update={"step_size": training.attack_step_size, "steps": training.attack_steps}
        )
        data, crops = (self.inputs, self.labels), self.settings.augmentation
        return network, lambda: reference.teacher_step(network, optimiser, *data, threat, crops, rng)

    def reference_generator(self) -> Call:
        """Steps of a round of synthesis, bottleneck included."""
        teacher = reference.plain(self.network(self.size.teacher))
        student = reference.plain(self.network(self.size.student))
        synthesis, crops = self.settings.distillation.synthesis, self.settings.augmentation
        generator = Generator(synthesis.latent_dim, self.shape[0], self.shape[1]).to(self.device)
        return lambda: reference.synthesise(
            teacher, student, generator, self.labels, synthesis, crops, self.rng()
        )

    def our_generator(self) -> Call:
        """A round of ``ferd.synthesis``, as a distillation draws it."""
        source = self.distillation().source
        shares = torch.full((self.classes,), 1 / self.classes, device=self.device)
        return lambda: source.draw(shares, 1, self.rng())

    def reference_round(self) -> Call:
        """A share of the paper's steps of a round: of synthesis, of the margins of Eq. 1, of the student."""
        schedule, threat, rng = self.short_round(), self.settings.threat_model, self.rng()
        student = self.reference_student()
        teacher, crops = student.teacher, self.settings.augmentation
        generator = Generator(schedule.synthesis.latent_dim, self.shape[0], self.shape[1]).to(self.device)

        def draw() -> None:
            student.student.eval()
            images = reference.synthesise(
                teacher, student.student, generator, self.labels, schedule.synthesis, crops, rng
            )
            start = reference.random_start(images, threat.epsilon, rng)
            margin_threat = threat.with_steps(threat.steps // ROUND_SHARE)
            reference.attack_cross_entropy(teacher, images, self.labels, margin_threat, start)
            for _ in range(schedule.student.steps):
                rows = torch.randint(len(images), (len(images),), generator=rng, device=self.device)
                inputs = reference.augment(images[rows], crops, rng)
                student.step(inputs, self.labels[rows], rng)

        return draw

    def our_round(self) -> Call:
        """The same of ``ferd.distillation``, its pool and records included."""
        threat = self.settings.threat_model
        short = copy.copy(self)
        short.settings = self.settings.model_copy(
            update={
                "distillation": self.short_round(),
                "threat_model": threat.with_steps(threat.steps // ROUND_SHARE),
            }
        )
        distillation = short.distillation()
        distillation.round = 1  # L_adv has a student

        def draw() -> None:
            distillation.pool.keep_rounds(0)
            distillation._run_round()

        return draw

    def short_round(self) -> DistillationSettings:
        """The paper's numbers of steps, one in ``ROUND_SHARE`` of them."""
        schedule = self.settings.distillation
        paper = params.read().benchmark(self.size.benchmark).distillation
        synthesis = schedule.synthesis.model_copy(update={"steps": paper.synthesis.steps // ROUND_SHARE})
        student = schedule.student.model_copy(update={"steps": paper.student.steps // ROUND_SHARE})
        return schedule.model_copy(update={"synthesis": synthesis, "student": student})

    def reference_bottleneck(self) -> Call:
        """The robust channels of a batch of features."""
        settings = self.settings.distillation.synthesis.bottleneck
        teacher = reference.plain(self.network(self.size.teacher))
        features = teacher.features(self.inputs).detach()
        return lambda: reference.robust_channels(teacher, features, self.labels, settings, self.rng())

    def our_bottleneck(self) -> Call:
        """``ferd.bottleneck`` on the same features, in the layout in which they come."""
        settings = self.settings.distillation.synthesis.bottleneck
        teacher = fast_layout(self.network(self.size.teacher), self.device).requires_grad_(False)
        features, rng = teacher.features(self.inputs).detach(), self.rng()
        find = Recorded(
            lambda: robust_channels(teacher, features, self.labels, LAST_BLOCK, settings, rng), self.device
        )
        for _ in range(Recorded.WARM_UP + 1):  # what is measured is a replay, as in a generator step
            find()
        return find

    def reference_student_step(self) -> Call:
        """A student step: teacher's targets, UTAE, IKL, SGD."""
        student, rng = self.reference_student(), self.rng()
        return self._training_steps(lambda: student.step(self.inputs, self.labels, rng))

    def our_student_step(self) -> Call:
        """The same of ``ferd.distillation``."""
        distillation = self.distillation()
        train_batch = Recorded(distillation._train_batch, self.device)
        return self._training_steps(lambda: train_batch(self.inputs, self.labels))

    def reference_teacher_step(self) -> Call:
        """A PGD-7 training step of the teacher."""
        return self._training_steps(self.reference_training()[1])

    def our_teacher_step(self) -> Call:
        """The same of ``ferd.adversarial_training``."""
        training = self.training()
        attack = Recorded(training._attacked, self.device)
        return self._training_steps(lambda: training._train_batch(self.inputs, self.labels, attack))

    def reference_pgd20(self) -> Call:
        """PGD-20 on the student, and the verdicts."""
        network = reference.plain(self.network(self.size.student))
        threat = self.settings.threat_model.with_steps(20)
        inputs, labels = (rows[: self.size.pgd20_images] for rows in (self.inputs, self.labels))

        def judge() -> None:
            start = reference.random_start(inputs, threat.epsilon, self.rng())
            adv = reference.attack_cross_entropy(network, inputs, labels, threat, start)
            network(adv).argmax(1).eq(labels)

        return judge

    def our_pgd20(self) -> Call:
        """The same of ``ferd.evaluation``."""
        evaluator = self.evaluator("pgd20")
        return lambda: _evaluate(evaluator)

    def reference_autoattack(self) -> Call:
        """AutoAttack on the student, shortened evenly in all its parts."""
        network = reference.plain(self.network(self.size.student))
        return lambda: self._short_autoattack(network)

    def our_autoattack(self) -> Call:
        """The same on the network that ``ferd.evaluation`` attacks."""
        attacked = self.evaluator("autoattack").attacked
        return lambda: self._short_autoattack(attacked)

    def evaluator(self, attack: Attack) -> Evaluation:
        """An evaluation of the student under one attack."""
        settings = EvaluationSettings(
            batch_size=self.size.batch, attacks={attack: "all"}, other_balls=[], threads=1
        )
        network = self.network(self.size.student).requires_grad_(False)
        first = slice(self.size.pgd20_images)
        data = Images(self.data.images[first], self.data.labels[first])
        return Evaluation(network, data, settings, self.settings.threat_model, SEED, self.device)

    def _training_steps(self, step: Call) -> Call:
        """As many of them as a call makes."""
        return lambda: [step() for _ in range(self.size.training_steps)]

    def _short_autoattack(self, network: Classifier) -> None:
        """The standard version's four parts with 1/50 of its iterations: 2 of APGD and FAB, 100 of Square."""
        inputs = self.inputs[: self.size.autoattack_images]
        with torch.no_grad():
            labels = network(inputs).argmax(1)
        attack = AutoAttack(network, norm="Linf", eps=TINY_EPSILON, seed=SEED, device=self.device)
        for part in (attack.apgd, attack.apgd_targeted, attack.fab):
            part.n_iter //= AUTOATTACK_SHARE
        attack.square.n_queries //= AUTOATTACK_SHARE
        with torch.random.fork_rng(devices=[]):
            attack.run_standard_evaluation(inputs, labels, batch_size=len(inputs))


@dataclass(frozen=True)
class Step:
    """A hot step: how each side is built, the precisions that it has, how many steps a call makes."""

    reference: Callable[[Bench], Call]
    ours: Callable[[Bench], Call]
    precisions: Sequence[Precision]
    count: Callable[[Size], float] = lambda _: 1


ATTACKS_IN_BF16: Sequence[Precision] = ("float32", "bf16-attacks", "bf16")
STEPS = {
    "generator": Step(
        Bench.reference_generator, Bench.our_generator, ("float32", "bf16"), lambda size: size.generator_steps
    ),
    "bottleneck": Step(Bench.reference_bottleneck, Bench.our_bottleneck, ("float32",)),
    "student": Step(
        Bench.reference_student_step,
        Bench.our_student_step,
        ATTACKS_IN_BF16,
        lambda size: size.training_steps,
    ),
    "teacher": Step(
        Bench.reference_teacher_step,
        Bench.our_teacher_step,
        ATTACKS_IN_BF16,
        lambda size: size.training_steps,
    ),
    "pgd20": Step(Bench.reference_pgd20, Bench.our_pgd20, ("float32",)),
    "autoattack": Step(Bench.reference_autoattack, Bench.our_autoattack, ("float32",)),
}
GPU_STEPS = STEPS | {  # on a CPU it takes hours
    "round": Step(Bench.reference_round, Bench.our_round, ("float32", "bf16"), lambda _: 1 / ROUND_SHARE)
}


def _evaluate(evaluator: Evaluation) -> None:
    """Judge all images anew."""
    evaluator.verdicts = {name: torch.empty(0, dtype=torch.bool) for name in evaluator.trials}
    for _ in evaluator.batches():
        pass
