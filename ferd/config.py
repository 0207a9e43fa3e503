"""Frozen, validated settings. Unknown keys, wrong types and values out of range are refused."""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from ferd.errors import FerdError

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Attack = Literal["clean", "fgsm", "pgd20", "cw30", "autoattack"]
Quantity = Annotated[int, Field(ge=0)]
Precision = Literal["float32", "bf16-attacks", "bf16", "auto"]
AUTOATTACK_CLASSES = 4  # at least: its targeted loss ranks four logits


class Settings(BaseModel):
    """Base of every settings block: its fields cannot be set anew, are strictly typed, and all there are."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:  # noqa: ARG002
        """A copy with some values changed, validated like any block; pydantic's own takes whatever comes.

        ``deep`` makes no difference: the copy is built anew.

        Raises:
            FerdError: a key is unknown, or a value is not accepted.
        """
        return parse(type(self), {**dict(self), **(update or {})}, type(self).__name__)


class ThreatModel(Settings):
    """What the adversary may do: ‖x' − x‖ <= ε in [0, 1] pixels, by steps of ``step_size``.

    ``steps`` are those of the margins by which classes are reweighted (Eq. 1). Every other attack has its
    own number: in its name (PGD-20, CW-30), ``utae_steps``, ``attack_steps``, ``targeted_steps``.
    """

    norm: Literal["linf"]
    epsilon: Annotated[float, Field(gt=0, le=1)]
    step_size: Annotated[float, Field(gt=0, le=1)]
    steps: Count

    def reached_by(self, steps: int) -> bool:
        """Whether so many steps lead to the edge of the ball; 20 of ε/20 do, though rounding says less."""
        return steps * self.step_size >= self.epsilon * (1 - 1e-9)

    def with_steps(self, steps: int) -> "ThreatModel":
        """The same ball and step size, another number of steps."""
        return self.model_copy(update={"steps": steps})


class ImageFolder(Settings):
    """One's own PNG or JPEG images in a folder below ``FERD_DATA``: ``train/CLASS/*`` and ``test/CLASS/*``.

    ``classes`` names the folders in the order of the labels. An image has image_size×image_size pixels and
    so many channels: 1 (grey) or 3 (RGB).
    """

    folder: str
    classes: Annotated[list[str], Field(min_length=2)]
    channels: Literal[1, 3]
    image_size: Annotated[int, Field(ge=4, multiple_of=4)]

    @model_validator(mode="after")
    def _each_class_once(self) -> Self:
        twice = [name for name in self.classes if self.classes.count(name) > 1]
        if twice:
            raise ValueError(f"class {twice[0]!r} stands there twice; remove one of them")
        return self


def _which_dataset(value: Any) -> str:
    return "[folder]" if isinstance(value, Mapping | ImageFolder) else "[name]"


class Data(Settings):
    """Which images a benchmark uses; validation images are taken from the training images.

    ``dataset`` is one of ``ferd.datasets.DATASETS`` by name, or a folder of one's own. Each number is an
    equal count a class; ``test_per_class: 0`` means the whole test set.
    """

    dataset: Annotated[
        Annotated[str, Tag("[name]")] | Annotated[ImageFolder, Tag("[folder]")], Discriminator(_which_dataset)
    ]
    train_per_class: Count
    validation_per_class: Quantity
    test_per_class: Quantity

    @property
    def name(self) -> str:
        """The dataset's; of a folder of one's own another than any dataset's."""
        return self.dataset if isinstance(self.dataset, str) else f"folder {self.dataset.folder}"


class Augmentation(Settings):
    """Random crop after zero padding by ``padding`` pixels, and a horizontal flip half of the time."""

    padding: Quantity
    flip: bool


class Normalisation(Settings):
    """Of images in [0, 1], a number a channel: (x − mean)/std."""

    mean: list[float]
    std: list[Positive]

    @model_validator(mode="after")
    def _of_the_same_channels(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(f"{len(self.mean)} means and {len(self.std)} stds; give one of each a channel")
        return self


class Weights(Settings):
    """Weights that were made elsewhere: where they are, and the SHA-256 (hex) of the file.

    ``location``: a file of the package ``ferd.assets``; a path, a relative one below ``FERD_DATA``; an
    ``https://`` or ``s3://`` address; the name of a model of RobustBench's zoo (``cifar100/NAME``).
    ``normalisation``: what the images were normalised by when the network was trained, if they were.
    """

    source: Literal["package", "file", "https", "s3", "robustbench"]
    location: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    normalisation: Normalisation | None = Field(default=None, exclude_if=lambda value: value is None)


class Training(Settings):
    """Training on labelled images: standard, PGD-AT (Madry et al. 2018) or TRADES (Zhang et al. 2019)."""

    method: Literal["standard", "pgd-at", "trades"]
    beta: NonNegative  # TRADES only: weight of the robust term
    attack_steps: Count
    attack_step_size: Positive
    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    learning_rate: Positive
    weight_decay: NonNegative
    weight_average: Annotated[float, Field(ge=0, lt=1)]  # decay a step of the average that is kept; 0: none
    precision: Precision  # see ferd.models.folding


class Measure(Settings):
    """How a teacher is measured before it is used: clean and PGD-20, on so many validation images.

    One whose PGD-20 accuracy is below ``least_robust``, or no more than 1/C, what guessing gives, is
    refused, unless ``accept_not_robust``.
    """

    images: Count
    least_robust: Fraction
    accept_not_robust: bool


class Teacher(Settings):
    """A teacher: weights that were made elsewhere, or trained from scratch, or the first then the second."""

    network: str
    weights: Weights | None
    training: Training | None
    measure: Measure
    threads: Count  # of the pipeline's process; the library itself sets none

    @model_validator(mode="after")
    def _comes_from_somewhere(self) -> Self:
        if self.weights is None and self.training is None:
            raise ValueError("weights and training are both null; give one of them, or both to fine-tune")
        return self


class Bottleneck(Settings):
    """Eq. 3-6: the noise each channel bears. ``threshold`` reduces v over the channels."""

    threshold: Literal["max", "mean"]
    steps: Count
    learning_rate: Positive
    beta: NonNegative


class SynthesisWeights(Settings):
    """Weights of L_adv, L_bn, L_oh and L_uni in Eq. 8."""

    adv: NonNegative
    bn: NonNegative
    oh: NonNegative
    uni: NonNegative


class Synthesis(Settings):
    """How one round's batch of images is made."""

    steps: Count
    latent_dim: Count
    generator_learning_rate: Positive
    latent_learning_rate: Positive
    weights: SynthesisWeights
    bottleneck: Bottleneck


class Student(Settings):
    """How the student is trained on the pool, Eq. 12; the clean term weighs 1 − adversarial_weight."""

    steps: Count
    learning_rate: Positive
    weight_decay: NonNegative
    adversarial_weight: Fraction


class DistillationSettings(Settings):
    """The schedule that all methods of a benchmark share."""

    precision: Precision  # see ferd.models.folding
    rounds: Count
    warmup_rounds: Quantity
    batch_size: Annotated[int, Field(ge=2)]
    proportion_floor: NonNegative  # smallest share of a class in a round's labels
    utae_steps: Count
    synthesis: Synthesis
    student: Student
    threads: Count  # of the pipeline's process; the library itself sets none

    @model_validator(mode="after")
    def _some_round_trains(self) -> Self:
        if self.warmup_rounds >= self.rounds:
            raise ValueError(
                f"warmup_rounds {self.warmup_rounds} leaves none of {self.rounds} rounds to train in"
            )
        return self

    def require_fitting(self, classes: int) -> None:
        """Refuse a floor of the proportions that leaves no class more than an equal share.

        Raises:
            FerdError: it is 1/C or more.
        """
        if self.proportion_floor * classes >= 1:
            raise FerdError(
                f"distillation.proportion_floor: {self.proportion_floor} is not below 1/{classes}, the equal "
                f"share of each of {classes} classes, and leaves nothing to reweight; lower it"
            )


class NonRobust(Settings):
    """Which features L_uni looks at: block ``layer`` from the end, v reduced a sample or a batch."""

    layer: Annotated[int, Field(le=-1)]
    threshold_over: Literal["sample", "batch"]


class Utae(Settings):
    """Eq. 10: weight γ of the uniform target, and the network under attack."""

    gamma: NonNegative
    model: Literal["student", "teacher"]


class Method(Settings):
    """A method is a choice of images and of four pieces of the paper's loop.

    Attributes:
        images: where a round's images come from; ``pool-of-M`` replays the finished pool of method M.
        sampler: which classes a round asks for (``ferd.samplers``).
        synthesis: what a generator is fitted to (``ferd.synthesis``).
        nonrobust: read by the synthesis ``fae`` alone.
        adversary: the examples that the student is attacked with (``ferd.adversaries``).
        utae: γ is read by the UTAE adversaries alone.
        student_loss: what the student is trained on (``ferd.student_losses``).
    """

    images: Literal[
        "generator",
        "untrained-generator",
        "uniform-noise",
        "real-data",
        "pool-of-ferd",
        "pool-of-no-reweighting",
    ]
    sampler: Literal["uniform", "margin", "mixed", "released"]
    synthesis: Literal["plain", "fae", "dfhl-rs"]
    nonrobust: NonRobust
    adversary: Literal["utae", "adaptive-utae", "high-entropy"]
    utae: Utae
    student_loss: Literal["ikl", "soft-cross-entropy", "rslad", "fair-rslad", "absld", "hard-label"]

    @property
    def pool_of(self) -> str | None:
        """The method whose pool is replayed, if any."""
        return self.images.removeprefix("pool-of-") if self.images.startswith("pool-of-") else None


def require_even(number: Literal["all"] | int, classes: int, where: str) -> None:
    """Refuse a number of images that is not as many of each class.

    Raises:
        FerdError: it is no multiple of C.
    """
    if number != "all" and (number < 1 or number % classes):
        raise FerdError(
            f"{where}: {number} images cannot be split evenly over {classes} classes; use a multiple of "
            f"{classes}, or all"
        )


class OtherBall(Settings):
    """A further threat model of the same norm, and how many test images each attack is given in it."""

    epsilon: Annotated[float, Field(gt=0, le=1)]
    step_size: Annotated[float, Field(gt=0, le=1)]
    attacks: dict[Attack, Literal["all"] | Count]


class EvaluationSettings(Settings):
    """How many test images each attack is given; ``all`` or a stratified number."""

    batch_size: Count
    attacks: Annotated[dict[Attack, Literal["all"] | Count], Field(min_length=1)]
    other_balls: list[OtherBall]
    threads: Count  # of the pipeline's process; the library itself sets none

    def require_fitting(self, classes: int) -> None:
        """Refuse what so many classes cannot be evaluated by.

        Raises:
            FerdError: a number of images cannot be split over them, or they are too few for AutoAttack.
        """
        given = {"attacks": self.attacks}
        given |= {f"other_balls.{place}.attacks": ball.attacks for place, ball in enumerate(self.other_balls)}
        for key, attacks in given.items():
            for attack, number in attacks.items():
                require_even(number, classes, f"evaluation.{key}")
                if attack == "autoattack" and classes < AUTOATTACK_CLASSES:
                    raise FerdError(
                        f"evaluation.{key}: autoattack needs {AUTOATTACK_CLASSES} classes, not {classes}; "
                        "drop it"
                    )


class AnalysisSettings(Settings):
    """What is looked at beside accuracy: the adaptive adversary, where UTAEs end up, the pool's images.

    Attributes:
        images_per_class: test images of each class that are attacked.
        targeted_steps: of the PGD toward each other class.
        gammas: γ of the UTAEs whose outcomes are counted.
        pool_images: synthetic images that are judged.
        judge: an independent classifier, trained on real images, that judges them.
        inception: weights for Inception Score and Fréchet distance; without, the teacher's features serve.
    """

    images_per_class: Count
    targeted_steps: Count
    gammas: list[NonNegative]
    pool_images: Annotated[int, Field(ge=2)]  # two have a covariance
    judge: Teacher
    inception: Weights | None
    batch_size: Count
    threads: Count  # of the pipeline's process; the library itself sets none


class Benchmark(Settings):
    """Everything about a benchmark that is not the method."""

    data: Data
    threat_model: ThreatModel
    augmentation: Augmentation
    students: Annotated[list[str], Field(min_length=1)]
    teacher: Teacher
    distillation: DistillationSettings
    evaluation: EvaluationSettings
    analysis: AnalysisSettings

    def require_fitting(self, classes: int) -> None:
        """Refuse settings that so many classes do not allow, before anything is computed.

        Raises:
            FerdError: says which key.
        """
        self.distillation.require_fitting(classes)
        self.evaluation.require_fitting(classes)


PIXELS = "in [0, 1] pixels 8/255 is 0.03137"
PYDANTIC_TAGS = ("literal[", "constrained-", "[")  # in its paths: which alternative it tried
S = TypeVar("S", bound=Settings)


def parse(kind: type[S], block: Mapping[str, Any], where: str) -> S:
    """Validate ``block`` as ``kind``; ``where`` is the key path named in the error.

    Raises:
        FerdError: the first fault, with its key path, the value found and what is accepted.
    """
    try:
        return kind.model_validate(block)
    except ValidationError as error:
        raise FerdError(_in_one_line(error, where)) from None


def require_settings(*wanted: tuple[object, type[Settings]]) -> None:
    """Refuse what is not settings of its kind.

    Raises:
        FerdError: says of which kind.
    """
    for value, kind in wanted:
        if not isinstance(value, kind):
            raise FerdError(f"wanted is a ferd.config.{kind.__name__}, found {value!r}")


def _in_one_line(error: ValidationError, where: str) -> str:
    """The first fault, as ``parse`` tells it."""
    faults = error.errors()  # a misspelt key is also a missing one: its own name first
    fault = next((each for each in faults if each["type"] == "extra_forbidden"), faults[0])
    keys = [str(part) for part in fault["loc"] if not str(part).startswith(PYDANTIC_TAGS)]
    path = ".".join([where, *keys])
    if fault["type"] == "extra_forbidden":
        absent = [
            str(each["loc"][-1])
            for each in faults
            if each["type"] == "missing" and each["loc"][:-1] == fault["loc"][:-1]
        ]
        hint = f" (missing here: {', '.join(absent)})" if absent else ""
        return f"{path}: unknown key; remove it or correct its spelling{hint}"
    if fault["type"] == "missing":
        return f"{path}: missing; every key of a block must be written"
    if fault["type"] in ("model_type", "dict_type"):
        return f"{path}: must be a block of keys{_keys_of(fault)} (found {fault['input']!r})"
    unit = f"; {PIXELS}" if keys and keys[-1] in ("epsilon", "step_size") else ""
    found = "" if fault["type"] == "value_error" else f" (found {fault['input']!r}{unit})"
    return f"{path}: {fault['msg'].removeprefix('Value error, ')}{found}"


def _keys_of(fault: Mapping[str, Any]) -> str:
    """The keys of the block that a fault asks for, where they are known."""
    name = fault.get("ctx", {}).get("class_name")
    keys = [", ".join(kind.model_fields) for kind in Settings.__subclasses__() if kind.__name__ == name]
    return f": {keys[0]}" if keys else ""


def fingerprint(*parts: Any) -> str:
    """SHA-256 (hex) of settings and plain values, independent of key order."""
    plain = [part.model_dump() if isinstance(part, BaseModel) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()
