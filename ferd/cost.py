"""What a method costs before it is run: FLOPs and bytes, counted on the real networks.

To count, networks are run on PyTorch's ``meta`` device: every operation is seen, none is computed. A
multiplication and an addition are two FLOPs. ``attack_rate`` alone computes: it measures a machine.
"""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ferd.adaptive_adversary import MOST_TARGETS
from ferd.config import (
    AnalysisSettings,
    DistillationSettings,
    EvaluationSettings,
    Method,
    Precision,
    Training,
)
from ferd.errors import FerdError
from ferd.evaluation_attacks import ATTACKS, ManySteps
from ferd.fairness import worst_count
from ferd.models.classifier import Classifier, frozen
from ferd.models.folding import Folded, attack_dtype
from ferd.models.generator import Generator
from ferd.tf32 import tf32_convolutions

Shape = tuple[int, int, int]
ROBUST_SHARE = 0.4  # of the images: AutoAttack's later parts run on those that its earlier parts left
AUTOATTACK_FIRST = 100  # APGD-CE: iterations on every image
AUTOATTACK_GRADIENTS = 9 * 100 + 9 * 100 * 2  # APGD-T, FAB-T (two passes an iteration), per image left
AUTOATTACK_FORWARDS = 5000  # Square, per image left
SLOWEST_STEP = 0.3  # seconds: a calibration's batch grows no further


@dataclass(frozen=True)
class Passes:
    """FLOPs an image: a forward pass, an attack iteration (with the input's gradient), a training step."""

    forward: float
    attack: float
    training: float


def passes(network: nn.Module, inputs: Tensor) -> Passes:
    """Count a network's passes on ``inputs`` (B, ...), of the ``meta`` device like the network.

    B is 2 or more: BatchNorm trains on no single value.
    """
    network = network.train()

    def attack() -> None:
        with frozen(network):
            network(inputs.clone().requires_grad_()).sum().backward()

    return Passes(
        forward=_flops(lambda: network(inputs)) / len(inputs),
        attack=_flops(attack) / len(inputs),
        training=_flops(lambda: network(inputs).sum().backward()) / len(inputs),
    )


def bottleneck_flops(teacher: Classifier, layer: int, inputs: Tensor) -> float:
    """FLOPs an image of one bottleneck step: from the features of ``layer`` to the logits and back."""
    with torch.no_grad(), frozen(teacher):
        features = teacher.features(inputs, layer)

    def step() -> None:
        with frozen(teacher):
            teacher.head(features.clone().requires_grad_(), layer).sum().backward()

    return _flops(step) / len(inputs)


def saved_bytes(run: Callable[[], Tensor], *networks: nn.Module) -> int:
    """Bytes that autograd keeps to differentiate what ``run`` computes, each storage once.

    The weights of ``networks`` are there anyway and do not count.
    """
    kept: dict[int, Tensor] = {}
    weights = {_storage(weight) for network in networks for weight in network.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in weights:
            kept[_storage(tensor)] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    del result
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@dataclass(frozen=True)
class Work:
    """FLOPs on the teacher, on the student and on the generator."""

    teacher: float = 0.0
    student: float = 0.0
    generator: float = 0.0

    @property
    def total(self) -> float:
        """FLOPs in all."""
        return self.teacher + self.student + self.generator


def training_work(settings: Training, images: int, network: Passes) -> Work:
    """Adversarial training of a teacher on so many images."""
    if settings.method == "standard":
        step = network.training
    elif settings.method == "pgd-at":
        step = settings.attack_steps * network.attack + network.training
    else:  # clean predictions, the attack, a clean and an adversarial pass that are trained
        step = network.forward + settings.attack_steps * network.attack + 2 * network.training
    return Work(teacher=settings.epochs * images * step)


def distillation_work(
    schedule: DistillationSettings,
    method: Method,
    teacher: Passes,
    student: Passes,
    generator: Passes,
    bottleneck_step: float,
    margin_steps: int,
) -> Work:
    """All rounds of a method.

    Args:
        bottleneck_step: FLOPs an image (``bottleneck_flops``).
        margin_steps: of the attack that classes are reweighted by.
    """
    batch, rounds = schedule.batch_size, schedule.rounds
    trained = rounds - schedule.warmup_rounds
    on_teacher = rounds * batch * teacher.forward
    on_student = on_generator = 0.0
    if method.sampler != "uniform":
        on_teacher += rounds * batch * (margin_steps * teacher.attack + teacher.forward)
    if method.images == "generator":
        images = schedule.synthesis.steps * batch
        on_generator = rounds * images * generator.training
        if method.synthesis == "dfhl-rs":
            on_student += rounds * images * student.attack
        else:
            on_teacher += rounds * images * teacher.attack
            on_student += max(0, trained - 1) * images * student.attack  # from when it has been trained
        if method.synthesis == "fae":
            on_teacher += rounds * images * schedule.synthesis.bottleneck.steps * bottleneck_step
    attacked = trained * schedule.student.steps * batch
    attacks = attacked * schedule.utae_steps
    if method.utae.model == "teacher":
        on_teacher += attacks * teacher.attack
    else:
        on_student += attacks * student.attack
    on_adversarial_alone = method.student_loss == "hard-label"
    if method.adversary != "high-entropy" or not on_adversarial_alone:
        on_teacher += attacked * teacher.forward  # on clean images
    if on_adversarial_alone:
        on_teacher += attacked * teacher.forward
    on_student += attacked * student.training * (1 if on_adversarial_alone else 2)
    return Work(on_teacher, on_student, on_generator)


def evaluation_work(settings: EvaluationSettings, test_images: int, network: Passes) -> Work:
    """All attacks; how many images AutoAttack leaves is not known before: ``ROBUST_SHARE`` is assumed."""
    left = ROBUST_SHARE * (AUTOATTACK_GRADIENTS * network.attack + AUTOATTACK_FORWARDS * network.forward)
    an_image = {
        "clean": 0.0,
        "fgsm": network.attack,
        "autoattack": AUTOATTACK_FIRST * network.attack + left,
    } | {name: of.steps * network.attack for name, of in ATTACKS.items() if isinstance(of, ManySteps)}
    balls = [settings.attacks, *(ball.attacks for ball in settings.other_balls)]
    return Work(
        student=sum(
            (test_images if number == "all" else number) * (_known(an_image, attack) + network.forward)
            for attacks in balls
            for attack, number in attacks.items()
        )
    )


def _known(an_image: Mapping[str, float], attack: str) -> float:
    if attack not in an_image:
        raise FerdError(f"{attack}: evaluation_work in ferd/cost.py does not know its passes; add them there")
    return an_image[attack]


def analysis_work(
    settings: AnalysisSettings, utae_steps: int, classes: int, teacher: Passes, student: Passes | None
) -> Work:
    """The adaptive adversary, where UTAEs end up, and the images; of a teacher, the adversary alone.

    Not counted: the judge's passes, and Inception's where it is given.
    """
    images = settings.images_per_class * classes
    targets = min(classes - 1, MOST_TARGETS)

    def adversary(network: Passes) -> float:
        return network.forward + targets * (settings.targeted_steps * network.attack + network.forward)

    if student is None:
        return Work(teacher=images * adversary(teacher))
    weak_images = settings.images_per_class * worst_count(classes)
    ends = len(settings.gammas) * images
    return Work(
        teacher=weak_images * adversary(teacher) + (ends + 2 * settings.pool_images) * teacher.forward,
        student=images * (adversary(student) + student.forward)
        + ends * (utae_steps * student.attack + student.forward),
    )


def training_memory(network: Classifier, batch: int, shape: Shape, forwards: int = 1) -> int:
    """Bytes of a training step of SGD with momentum: weights, gradients, momentum, what autograd keeps."""
    images = torch.empty(batch, *shape, device="meta")
    network = network.train()
    return 3 * weights_bytes(network) + forwards * saved_bytes(lambda: network(images), network)


def teacher_memory(settings: Training, images: int, network: Classifier, shape: Shape) -> int:
    """Bytes of adversarial training: its step, the twin, the average, and so many images as uint8."""
    forwards = 2 if settings.method == "trades" else 1  # kept for one backward pass
    copies = 2 if settings.weight_average else 1
    step = training_memory(network, settings.batch_size, shape, forwards)
    return step + copies * weights_bytes(network) + images * math.prod(shape)


def distillation_memory(
    schedule: DistillationSettings, teacher: Classifier, student: Classifier, shape: Shape
) -> int:
    """Bytes at the larger of a generator step and a student step, with a twin a network and the pool."""
    latent_dim = schedule.synthesis.latent_dim
    with torch.device("meta"):
        generator = Generator(latent_dim, shape[0], shape[1])
        latents = torch.empty(schedule.batch_size, latent_dim)
    images = torch.empty(schedule.batch_size, *shape, device="meta", requires_grad=True)
    with frozen(teacher, student):
        generator_step = saved_bytes(lambda: teacher(images) + student(images), teacher, student)
    generator_step += saved_bytes(lambda: generator(latents), generator) + 4 * weights_bytes(generator)
    student_step = training_memory(student, schedule.batch_size, shape, forwards=2)
    pool = schedule.rounds * images.numel()
    return pool + 2 * weights_bytes(teacher) + weights_bytes(student) + max(generator_step, student_step)


def weights_bytes(network: nn.Module) -> int:
    """Bytes of weights and running statistics."""
    return sum(value.numel() * value.element_size() for value in network.state_dict().values())


@tf32_convolutions(False)
def attack_rate(
    network: Classifier, shape: Shape, largest_batch: int, precision: Precision, device: torch.device
) -> float:
    """FLOP/s of attack iterations on the network's twin, at the largest batch that stays quick and fits."""
    counted = passes(_like(network), torch.empty(2, *shape, device="meta")).attack
    twin = Folded(network.to(device), attack_dtype(precision, device)).network
    batch, rate = 1, 0.0
    while True:
        try:
            seconds = min(_attack_seconds(twin, torch.rand(batch, *shape, device=device)) for _ in range(2))
        except torch.OutOfMemoryError:
            if rate:
                return rate
            raise
        rate = counted * batch / seconds
        if batch >= largest_batch or seconds > SLOWEST_STEP:
            return rate
        batch = min(2 * batch, largest_batch)


def _attack_seconds(network: Classifier, images: Tensor) -> float:
    images = images.to(memory_format=torch.channels_last).requires_grad_()
    _synchronise(images.device)
    started = time.perf_counter()
    torch.autograd.grad(network(images).sum(), images)
    _synchronise(images.device)
    return time.perf_counter() - started


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _flops(run: Callable[[], object]) -> int:
    counted_anew = {torch.ops.aten.convolution_backward: _convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=counted_anew) as counter:
        run()
    return int(counter.get_total_flops())


def _convolution_backward(  # as PyTorch's counter calls it, shapes in place of tensors
    outputs: Sequence[int], inputs: Sequence[int], weight: Sequence[int], *arguments: Any, **_: Any
) -> int:
    """FLOPs of a convolution's gradients: each, by inputs and by weights, those of its forward pass.

    PyTorch's own formula multiplies the second by the number of groups: a depthwise convolution of K channels
    would count K times.
    """
    transposed, by = arguments[4], arguments[-1]
    forward = 2 * math.prod(inputs if transposed else outputs) * math.prod(weight[1:])
    return forward * (bool(by[0]) + bool(by[1]))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _like(network: Classifier) -> Classifier:
    """The same architecture on the ``meta`` device."""
    return copy.deepcopy(network).to("meta")
