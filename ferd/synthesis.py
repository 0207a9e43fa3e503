"""One round of synthesis, Eq. 7-8: a generator is fitted to a loss, its best batch kept."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ferd.augmentation import augment
from ferd.bottleneck import nonrobust_features, robust_channels
from ferd.config import Augmentation, NonRobust, Synthesis
from ferd.cuda_graphs import Recorded
from ferd.errors import FerdError
from ferd.losses import BatchNormStatistics, ikl, kl_from_uniform
from ferd.models.classifier import LAST_BLOCK, Classifier, frozen
from ferd.models.generator import Generator

PRIOR_TEMPERATURE = 100.0  # w = σ(o_T/100) in L_adv, nearly uniform
DIVERSITY_WEIGHT = 3.0  # of DFHL-RS
SMOOTHING = 2.0  # of DFHL-RS, over the number of classes, shared by the wrong ones: 0.2 for 10, 0.02 for 100

Terms = dict[str, Tensor]
SynthesisLoss = Callable[[Tensor], Terms]  # inputs (B, channels, H, W) -> terms, their weighted sum "loss"


@dataclass(frozen=True)
class SynthesisResult:
    """The batch of the step of lowest loss, and that step's figures (() tensors)."""

    images: Tensor  # (B, channels, size, size) in [0, 1]
    figures: dict[str, Tensor]


def adversarial_loss(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """L_adv = −IKL(f^T(x), f^S(x)), the mean over the batch; (B, C), (B, C) -> ().

    The teacher keeps its gradient in wMSE.
    """
    weights = (teacher_logits.detach() / PRIOR_TEMPERATURE).softmax(1)
    return -ikl(teacher_logits, student_logits, weights).mean()


def uniformity_loss(
    teacher: Classifier,
    features: Tensor,
    labels: Tensor,
    choice: NonRobust,
    settings: Synthesis,
    rng: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """L_uni = KL(U ‖ σ(head(Z_nr))), Eq. 7, and the fraction of robust channels.

    Features (B, K, H, W), labels (B,) -> (), (). The mask is a constant; the gradient reaches the
    generator through Z_nr.
    """
    robust = robust_channels(teacher, features, labels, choice, settings.bottleneck, rng)
    logits = teacher.head(nonrobust_features(features, robust), choice.layer)
    return kl_from_uniform(logits).mean(), robust.float().mean()


@contextmanager
def ferd_loss(
    teacher: Classifier,
    student: Classifier | None,
    labels: Tensor,
    nonrobust: NonRobust | None,
    settings: Synthesis,
    rng: torch.Generator,
    bf16: bool = False,
) -> Iterator[SynthesisLoss]:
    """L = adv·L_adv + bn·L_bn + oh·L_oh + uni·L_uni, Eq. 8, while the networks are frozen.

    Args:
        student: the network to disagree with; None while it is still untrained (no L_adv).
        nonrobust: the features of L_uni, which makes the images fairness-aware; None leaves it out.
        bf16: whether the networks run under autocast; the losses are float32 always.

    Raises:
        FerdError: L_bn has a weight, and the teacher no BatchNorm, or one without running statistics.
    """
    weights = settings.weights
    layer = nonrobust.layer if nonrobust else LAST_BLOCK
    networks = [teacher] if student is None else [teacher, student]
    statistics = BatchNormStatistics(teacher) if weights.bn else None
    with frozen(*networks), statistics or nullcontext():

        def terms(inputs: Tensor) -> Terms:
            with torch.autocast(inputs.device.type, torch.bfloat16, enabled=bf16):
                features = teacher.features(inputs, layer)
                seen = features.clone() if nonrobust else features  # a block may begin by changing its input
                logits = teacher.head(features, layer).float()
                student_logits = None if student is None else student(inputs).float()
            found = {"bn": statistics.loss()} if statistics else {}
            found["oh"] = F.cross_entropy(logits, labels)
            if statistics:
                loss = weights.bn * found["bn"] + weights.oh * found["oh"]
            else:
                loss = weights.oh * found["oh"]
            if student_logits is not None:
                found["adv"] = adversarial_loss(logits, student_logits)
                loss = loss + weights.adv * found["adv"]
            if nonrobust:
                with statistics.paused() if statistics else nullcontext():
                    found["uni"], found["robust_fraction"] = uniformity_loss(
                        teacher, seen.float(), labels, nonrobust, settings, rng
                    )
                loss = loss + weights.uni * found["uni"]
            return {"loss": loss, **found}

        yield terms


def diversity_loss(logits: Tensor) -> Tensor:
    """Σ_c q_c log10 q_c of the batch's mean softmax q, least where classes are even; (B, C) -> ()."""
    mean = logits.softmax(1).mean(0)
    return torch.xlogy(mean, mean).sum() / math.log(10)


@contextmanager
def dfhl_rs_loss(student: Classifier, labels: Tensor) -> Iterator[SynthesisLoss]:
    """DFHL-RS (Yuan et al. 2024): CE(f^S(x), smoothed y) + 3·Σ q log10 q, the student frozen.

    Raises:
        FerdError: there are fewer than four classes, over which its smoothing leaves the label no weight.
    """
    if student.classes < 4:
        raise FerdError(f"synthesis dfhl-rs needs 4 classes, not {student.classes}; take plain or fae")
    smoothing = SMOOTHING / (student.classes - 1)  # torch gives the true class its share of it back
    with frozen(student):

        def terms(inputs: Tensor) -> Terms:
            logits = student(inputs)
            oh = F.cross_entropy(logits, labels, label_smoothing=smoothing)
            diversity = diversity_loss(logits)
            return {"loss": oh + DIVERSITY_WEIGHT * diversity, "oh": oh, "diversity": diversity}

        yield terms


def synthesise(
    loss: SynthesisLoss,
    generator: Generator,
    labels: Tensor,
    settings: Synthesis,
    augmentation: Augmentation,
    rng: torch.Generator,
    *,
    anew: bool = True,
    recordable: bool = True,
) -> SynthesisResult:
    """Fit a generator and fresh latent codes to a loss of their augmented images.

    Args:
        loss: terms of a batch of images; "loss" is what is minimised.
        labels: (B,) requested classes, one image each.
        anew: first draw the generator's weights anew; else they go on from what they are.
        recordable: False for a loss that branches on a tensor's value or copies it to the host.

    Raises:
        FerdError: no step had a finite loss.
    """
    if anew:
        generator.reinitialise(rng)
    generator.train()
    latents = torch.empty(len(labels), settings.latent_dim, device=labels.device)
    latents.normal_(generator=rng).requires_grad_()
    on_gpu = labels.is_cuda
    optimiser = torch.optim.Adam(
        [
            {"params": generator.parameters(), "lr": settings.generator_learning_rate},
            {"params": [latents], "lr": settings.latent_learning_rate},
        ],
        betas=(0.5, 0.999),
        fused=on_gpu,
        capturable=on_gpu,
    )

    def step() -> Terms:
        images = generator(latents)
        terms = loss(augment(images, augmentation, rng))
        optimiser.zero_grad()
        terms["loss"].backward()
        optimiser.step()
        return {key: value.detach() for key, value in {"images": images, **terms}.items()}

    fit = Recorded(step, labels.device) if recordable else step
    best: Terms = {}
    for _ in range(settings.steps):
        best = _keep_lower(best, fit())
    if not torch.isfinite(best["loss"]):
        raise FerdError("synthesis: the generator's loss is not finite; lower its learning rates or weights")
    kept = best.pop("images")
    optimiser.zero_grad()  # or the gradients keep a recorded step's memory
    return SynthesisResult(kept, best)


def _keep_lower(best: dict[str, Tensor], current: dict[str, Tensor]) -> dict[str, Tensor]:
    """Entry by entry those of the lower loss, without a host synchronisation."""
    if not best:
        return current
    lower = (current["loss"] < best["loss"]) | ~best["loss"].isfinite()
    return {key: torch.where(lower, current[key], best[key]) for key in current}
