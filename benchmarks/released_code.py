"""Our formulas beside those of the authors' code, on the same numbers, in float64 on the CPU.

    git clone https://github.com/mayaobuduyao/FERD
    python -m benchmarks.released_code --clone FERD

Functions of that clone are called as they are; nothing of it is in here. A row is a part of the method: by
how much the two differ, as a fraction of the largest number. Ends with 1 where one is beyond rounding.
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from ferd.assets import cifar10_teacher
from ferd.attacks import cross_entropy, margins, pgd, random_start, uniform_target
from ferd.bottleneck import information, noise_scales, spatial_noise_gradient, threshold
from ferd.config import Bottleneck, NonRobust
from ferd.errors import FerdError
from ferd.losses import BatchNormStatistics, ikl, kl_from_uniform
from ferd.models.classifier import Classifier, frozen
from ferd.models.generator import Generator
from ferd.models.registry import build
from ferd.models.wide_resnet import WideResNet
from ferd.paper import SCHEDULE, THREAT_MODEL
from ferd.reweighting import update_difficulty
from ferd.student_losses import Batch, SoftCrossEntropy
from ferd.synthesis import adversarial_loss
from tasks.command import as_command, command_line
from tasks.git import git_if_there

ROUNDING = 1e-9
RNG = torch.Generator().manual_seed(0)
CLASSES, SAMPLES, SIZE = 10, 24, 32
BEFORE_RELU = -2  # of ``BeforeRelu``
NOT_NEEDED = ("torchmetrics", "torchmetrics.functional", "torchattacks", "kornia")  # of what is called here


@dataclass(frozen=True)
class Row:
    """A part of the method, what of it was compared, and the largest difference, as a fraction."""

    part: str
    compared: str
    difference: float


@dataclass(frozen=True)
class Authors:
    """The modules of a clone."""

    losses: ModuleType
    attacks: ModuleType
    hooks: ModuleType
    bottleneck: ModuleType
    teachers: ModuleType
    networks: ModuleType
    generator: ModuleType


class BeforeRelu(WideResNet):
    """A WideResNet whose last BatchNorm and ReLU are blocks: the authors mask the features between them."""

    def blocks(self) -> Sequence[nn.Module]:
        """Two more than ours."""
        *blocks, end = super().blocks()
        return [*blocks, *end.children()]


def main() -> None:
    """Parse the command line, compare, print a table."""
    parser = command_line(__doc__)
    parser.add_argument("--clone", type=Path, required=True, metavar="FOLDER", help="of the authors' code")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with as_command("released_code"):
        authors = of_clone(args.clone)
        print(f"commit {commit(args.clone)}, torch {torch.__version__}\n")
        print("| part | compared | largest difference |\n| --- | --- | --- |")
        beyond = []
        for row in rows(authors):
            print(f"| {row.part} | {row.compared} | {row.difference:.1g} |", flush=True)
            beyond += [row.part] if not row.difference <= ROUNDING else []
        if beyond:
            print(f"released_code: beyond {ROUNDING:g}: {', '.join(beyond)}", file=sys.stderr)
            sys.exit(1)


def of_clone(folder: Path) -> Authors:
    """Import what is compared.

    Raises:
        FerdError: the folder is no clone of the authors' code.
    """
    if not (folder / "IBD_module_cmi.py").exists():
        raise FerdError(f"{folder}: no clone of https://github.com/mayaobuduyao/FERD; name its folder")
    sys.path.insert(0, os.fspath(folder))
    with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in NOT_NEEDED}):
        names = ("losses", "query_sample", "hooks", "models.IFP", "models.wideresnet_ifd", "models")
        modules = [importlib.import_module(name) for name in (*names, "models.generator")]
    return Authors(*modules)


def commit(folder: Path) -> str:
    """Of a clone."""
    return git_if_there(folder, "rev-parse", "--short", "HEAD") or "unknown"


def rows(authors: Authors) -> Iterator[Row]:
    """Each part in turn."""
    teacher = cifar10_teacher().double()
    theirs = _authors_teacher(authors, teacher)
    inputs, labels = 0.05 + 0.9 * numbers(SAMPLES, 3, SIZE, SIZE).sigmoid(), classes()
    yield from of_losses(authors)
    yield from of_batch_norm(authors, teacher, theirs, inputs)
    yield from of_bottleneck(authors, teacher, theirs, inputs, labels)
    yield from of_attacks(authors, teacher, theirs, inputs, labels)
    yield from of_networks(authors)
    yield of_generator(authors)


def of_losses(authors: Authors) -> Iterator[Row]:
    """L_adv, the student's loss and L_uni: values, and gradients by the logits."""
    teacher, student, third = (3 * numbers(SAMPLES, CLASSES) for _ in range(3))
    prior = numbers(SAMPLES, CLASSES).softmax(1)
    one_hot = nn.functional.one_hot(classes(), CLASSES).double()
    imported, both = authors.losses, "value, gradients by both networks' logits"
    yield Row(
        "L_adv, its weights constant",
        both,
        apart(
            adversarial_loss,
            lambda one, other: (
                -imported.dkl_loss(other, one, CLASS_PRIOR=(one.detach() / 100).softmax(1), GI=True)
            ),
            teacher,
            student,
        ),
    )
    yield Row(
        "IKL, weights that are given",
        both,
        apart(
            lambda one, other: ikl(one, other, prior).mean(),
            lambda one, other: imported.dkl_loss(other, one, CLASS_PRIOR=prior, GI=True),
            teacher,
            student,
        ),
    )

    def ours(clean: Tensor, attacked: Tensor) -> Tensor:
        batch = Batch(clean, attacked, classes(), lambda _inputs: teacher, lambda inputs: inputs, None)
        parts, share = SoftCrossEntropy().losses(batch), SCHEDULE.student.adversarial_weight
        return (1 - share) * parts[0] + share * parts[1]

    def as_trained(clean: Tensor, attacked: Tensor) -> Tensor:
        parts = [imported.dkl_loss(one, teacher, CLASS_PRIOR=one_hot, GI=True) for one in (clean, attacked)]
        loss: Tensor = 5 / 6 * parts[0] + 1 / 6 * parts[1]
        return loss

    yield Row(
        "student's loss of `ferd-released`",
        "value, gradients by clean and attacked logits",
        apart(ours, as_trained, student, third),
    )
    yield Row(
        "L_uni",
        "value, gradient by the logits",
        apart(
            lambda logits: kl_from_uniform(logits).mean(),
            lambda logits: imported.KT_loss_student(logits, torch.full_like(logits, 0.1)),
            student,
        ),
    )


def of_batch_norm(authors: Authors, teacher: Classifier, theirs: nn.Module, inputs: Tensor) -> Iterator[Row]:
    """L_bn of the packaged WRN-16-4, and its logits."""

    def ours(images: Tensor) -> Tensor:
        with BatchNormStatistics(teacher) as statistics:
            teacher(images)
        return statistics.loss()

    def authors_own(images: Tensor) -> Tensor:
        layers = [layer for layer in theirs.modules() if isinstance(layer, nn.BatchNorm2d)]
        hooks = [authors.hooks.DeepInversionHook(layer, 0) for layer in layers]
        theirs(images)
        for hook in hooks:
            hook.remove()
        return torch.stack([hook.r_feature for hook in hooks]).sum()

    yield Row("teacher WRN", "logits, the same weights", difference(teacher(inputs), theirs(inputs)))
    yield Row("L_bn", "value, gradient by the images", apart(ours, authors_own, inputs))


def of_bottleneck(
    authors: Authors, teacher: Classifier, theirs: nn.Module, inputs: Tensor, labels: Tensor
) -> Iterator[Row]:
    """Eq. 3-6 on the authors' features and with their variance (unbiased), threshold over the batch."""
    ours = BeforeRelu(16, 4, classes=CLASSES, channels=3).double()
    ours.load_state_dict(teacher.state_dict())
    ours.eval().requires_grad_(False)
    features = ours.features(inputs, BEFORE_RELU)
    variance = features.var((2, 3))
    package = authors.bottleneck.InformativeFeaturePackage(theirs, eps=0.03, attack_iter=10)
    scales = numbers(*variance.shape).exp()
    yield Row(
        "information, Eq. 4",
        "value, gradient by λ",
        apart(
            lambda scale: information(scale, variance),
            lambda scale: package.kl_div(features, scale[:, :, None, None]),
            scales,
        ),
    )
    settings = Bottleneck(threshold="max", steps=50, learning_rate=0.1, beta=0.3)
    with on_the_cpu(), in_double():
        torch.manual_seed(0)
        latent, _, nonrobust, *_, logits = package.find_features(inputs, labels, pop_number=3)
    found = noise_scales(
        spatial_noise_gradient(ours, features, labels, BEFORE_RELU),
        variance,
        settings,
        torch.Generator().manual_seed(0),
    )
    over_batch = NonRobust(layer=BEFORE_RELU, threshold_over="batch")
    mask = found.square() > threshold(variance, over_batch, settings)
    yield Row("features", "before the last ReLU", difference(features, latent))
    masked = features * ~mask[:, :, None, None]
    compared = f"after {settings.steps} steps, the same noise; {mask.float().mean():.0%} of channels robust"
    yield Row("non-robust features, Eq. 5-6", compared, difference(masked, nonrobust))
    yield Row("their logits", "same", difference(ours.head(masked, BEFORE_RELU), logits))


def of_attacks(
    authors: Authors, teacher: Classifier, theirs: nn.Module, inputs: Tensor, labels: Tensor
) -> Iterator[Row]:
    """The attack on the student (γ = 0), the one of the reweighting, and D."""
    target = 3 * numbers(SAMPLES, CLASSES)
    with in_double():
        torch.manual_seed(0)
        start = inputs + 0.001 * torch.randn(inputs.shape)
        torch.manual_seed(0)
        attacked = authors.attacks.generate_adv(theirs, inputs, target, labels)
    threat = THREAT_MODEL.with_steps(SCHEDULE.utae_steps)
    own = pgd(teacher, inputs, uniform_target(target.softmax(1), 0.0), threat, start)
    yield Row("UTAE, γ = 0", "images after 10 steps, the same start", difference(own, attacked))
    torch.manual_seed(0)
    with mock.patch("torch.cuda.is_available", return_value=False):
        attacked = authors.attacks.pgd_attack(theirs, inputs, labels)
    theirs.eval()  # which it leaves in train mode
    start = random_start(inputs, THREAT_MODEL.epsilon, torch.Generator().manual_seed(0))
    own = pgd(teacher, inputs, cross_entropy(labels), THREAT_MODEL, start)
    yield Row(
        "PGD-20 of the reweighting", "images, the same start, its call mended", difference(own, attacked)
    )
    with torch.no_grad(), frozen(teacher):
        found = update_difficulty(torch.zeros(CLASSES).double(), margins(teacher(own), labels), labels)
        logits = theirs(attacked)
    yield Row("D, Eq. 1", "by class, written out", difference(found, _difficulty(logits, labels)))


def of_networks(authors: Authors) -> Iterator[Row]:
    """Students and teachers: logits with the same weights, running statistics of no round number."""
    pairs: dict[str, tuple[Callable[[], Any], int]] = {
        "resnet18": (lambda: authors.networks.ResNet18(CLASSES), 32),
        "mobilenet_v2": (lambda: authors.networks.MobileNet(CLASSES), 32),
        "preact_resnet18": (lambda: authors.networks.PreActResNet18(CLASSES), 64),
    }
    for name, (make, size) in pairs.items():
        ours, theirs = build(name, classes=CLASSES, channels=3).double(), make().double()
        copy_by_order(ours, theirs)
        images = numbers(4, 3, size, size).sigmoid()
        compared = f"logits in train mode, the same weights, {size}×{size}"
        yield Row(f"`{name}`", compared, difference(ours.train()(images), theirs.train()(images)))


def of_generator(authors: Authors) -> Row:
    """Images with the same weights."""
    ours, theirs = Generator(100, 3, SIZE).double(), authors.generator.Generator().double()
    ours.reinitialise(torch.Generator().manual_seed(0))
    own = ours.state_dict()
    for convolution in ("convolutions.3", "convolutions.7"):
        del own[f"{convolution}.bias"]  # theirs have none there, where a BatchNorm follows; ours begin at 0
    theirs.load_state_dict(dict(zip(theirs.state_dict(), own.values(), strict=True)))
    latents = numbers(SAMPLES, 100)
    return Row(
        "generator", "images in train mode", difference(ours.train()(latents), theirs.train()(latents))
    )


def numbers(*shape: int) -> Tensor:
    """Standard normal, others each time."""
    return torch.randn(*shape, dtype=torch.float64, generator=RNG)


def classes() -> Tensor:
    """Labels (SAMPLES,), every class among them."""
    return torch.arange(SAMPLES) % CLASSES


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest |ours − theirs| over largest |theirs|."""
    return float(((ours - theirs).abs().max() / theirs.abs().max()).detach())


def apart(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *at: Tensor) -> float:
    """The largest difference of two functions' values and gradients at a point."""
    found = []
    for function in (ours, theirs):
        point = [value.clone().requires_grad_() for value in at]
        value = function(*point)
        found.append([value.detach(), *torch.autograd.grad(value, point)])
    return max(difference(one, other) for one, other in zip(*found, strict=True))


def copy_by_order(ours: nn.Module, theirs: nn.Module) -> None:
    """Give theirs the weights of ours; names may differ, order and shapes may not."""
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))


@contextmanager
def on_the_cpu() -> Iterator[None]:
    """``.cuda()`` leaves a tensor where it is."""
    with mock.patch.object(Tensor, "cuda", lambda self: self):
        yield


@contextmanager
def in_double() -> Iterator[None]:
    """Tensors are made in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _authors_teacher(authors: Authors, teacher: Classifier) -> nn.Module:
    theirs: nn.Module = authors.teachers.WideResNet_IFD(
        depth=16, in_channels=3, num_classes=CLASSES, widen_factor=4, dropRate=0.3, mean=0.0, std=1.0
    ).double()
    theirs.load_state_dict(teacher.state_dict())
    return theirs.eval().requires_grad_(False)


def _difficulty(logits: Tensor, labels: Tensor) -> Tensor:
    """−m by class, a sample at a time."""
    rows: list[list[float]] = [[] for _ in range(CLASSES)]
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        rows[label].append(max(row[:label] + row[label + 1 :]) - row[label])
    return torch.tensor([sum(found) / len(found) for found in rows], dtype=torch.float64)


if __name__ == "__main__":
    main()
