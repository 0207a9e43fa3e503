"""How hard synthetic images are for teacher and student, by the weights of the generator's loss; no data.

``python -m benchmarks.difficulty STUDENT``: of a checkpoint of CIFAR-10, beside the packaged teacher.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ferd.assets import cifar10_teacher
from ferd.attacks import cross_entropy, pgd, random_start, utae
from ferd.checkpoint import load_classifier
from ferd.config import Benchmark, NonRobust, SynthesisWeights
from ferd.losses import soft_cross_entropy
from ferd.models.classifier import Classifier, fast_layout
from ferd.models.folding import Folded
from ferd.models.generator import Generator
from ferd.synthesis import ferd_loss, synthesise
from tasks import params
from tasks.command import as_command, command_line
from tasks.device import device_with

IMAGES, ATTACK_STEPS, GAMMA, SHAPE = 64, 10, 0.5, (3, 32)
WEIGHTS = ((0.1, 1, 10, 1), (1, 1, 10, 1), (5, 1, 10, 1), (1, 5, 1, 5))  # adv, bn, oh, uni; the paper's last
THRESHOLDS = ("mean", "max")  # the second for the paper's weights alone


def main() -> None:
    """Print a row a setting."""
    parser = command_line(__doc__)
    parser.add_argument("student", type=Path)
    parser.add_argument("--steps", type=int, default=60, help="of the generator")
    args = parser.parse_args()
    logging.getLogger("ferd").setLevel(logging.ERROR)
    device = device_with(1)
    with as_command("difficulty"):
        benchmark = params.read().benchmark("cifar10-medium")
        given = load_classifier(args.student, classes=10, channels=3)
    teacher = fast_layout(cifar10_teacher(), device)
    twin, student = (Folded(network).network for network in (teacher, fast_layout(given, device)))
    print("adv, bn, oh, uni; threshold | right, under PGD-10: teacher | student | H(T) | CE: clean | UTAE")
    for weights in WEIGHTS:
        for threshold in THRESHOLDS if weights == WEIGHTS[-1] else THRESHOLDS[:1]:
            images, labels = synthetic(teacher, student, benchmark, weights, threshold, args.steps, device)
            figures = difficulty(twin, student, benchmark, images, labels)
            print(f"{', '.join(map(str, weights))}; {threshold} | {figures}", flush=True)


def synthetic(
    teacher: Classifier,
    student: Classifier,
    benchmark: Benchmark,
    weights: Sequence[float],
    threshold: str,
    steps: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """A batch of images as the first round would make it for this student, networks in bfloat16."""
    paper = benchmark.distillation.synthesis
    adv, bn, oh, uni = map(float, weights)
    settings = paper.model_copy(
        update={
            "steps": steps,
            "weights": SynthesisWeights(adv=adv, bn=bn, oh=oh, uni=uni),
            "bottleneck": paper.bottleneck.model_copy(update={"threshold": threshold}),
        }
    )
    rng = torch.Generator(device).manual_seed(0)
    labels = torch.arange(IMAGES, device=device) % teacher.classes
    generator = fast_layout(Generator(settings.latent_dim, *SHAPE), device)
    last_block = NonRobust(layer=-1, threshold_over="sample")
    with ferd_loss(teacher, student, labels, last_block, settings, rng, bf16=True) as loss:
        result = synthesise(loss, generator, labels, settings, benchmark.augmentation, rng)
    return result.images.detach(), labels


def difficulty(
    teacher: Classifier, student: Classifier, benchmark: Benchmark, images: Tensor, labels: Tensor
) -> str:
    """Shares of images that each network has right, attacked or not, and cross-entropies with the teacher."""
    threat = benchmark.threat_model.with_steps(ATTACK_STEPS)
    rng = torch.Generator(images.device)

    def shares(network: Classifier) -> str:
        start = random_start(images, threat.epsilon, rng.manual_seed(1))
        attacked = pgd(network, images, cross_entropy(labels), threat, start)
        right = [(network(inputs).argmax(1) == labels).float().mean() for inputs in (images, attacked)]
        return ", ".join(f"{100 * share:.0f} %" for share in right)

    with torch.no_grad():
        targets = teacher(images).softmax(1)
        utaes = utae(student, images, targets, GAMMA, threat, rng.manual_seed(2))
        losses = [
            torch.special.entr(targets).sum(1).mean(),
            *(soft_cross_entropy(targets, student(inputs)).mean() for inputs in (images, utaes)),
        ]
        return " | ".join([shares(teacher), shares(student), *(f"{loss:.3f}" for loss in losses)])


if __name__ == "__main__":
    main()
