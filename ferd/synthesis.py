"""One round of synthesis, Eq. 7-8: a fresh generator is fitted to the teacher, its best batch kept."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ferd.augmentation import augment
from ferd.bottleneck import nonrobust_features, robust_channels
from ferd.config import Augmentation, Synthesis
from ferd.errors import FerdError
from ferd.losses import BatchNormStatistics, ikl, kl_from_uniform
from ferd.models.classifier import Classifier, frozen
from ferd.models.generator import Generator

PRIOR_TEMPERATURE = 100.0  # w = σ(o_T/100) in L_adv, nearly uniform


@dataclass(frozen=True)
class SynthesisResult:
    """The batch of the step of lowest loss, and that step's figures (() tensors)."""

    images: Tensor  # (B, channels, size, size) in [0, 1]
    figures: dict[str, Tensor]


def adversarial_loss(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """L_adv = −IKL(f^T(x), f^S(x)), the mean over the batch; the teacher keeps its gradient in wMSE."""
    weights = (teacher_logits.detach() / PRIOR_TEMPERATURE).softmax(1)
    return -ikl(teacher_logits, student_logits, weights).mean()


def uniformity_loss(
    teacher: Classifier,
    features: Tensor,
    labels: Tensor,
    settings: Synthesis,
    rng: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """L_uni = KL(U ‖ σ(head(Z_nr))), Eq. 7, and the fraction of robust channels.

    The mask is a constant; the gradient reaches the generator through Z_nr.
    """
    bottleneck = settings.bottleneck
    robust = robust_channels(teacher, features, labels, bottleneck, rng)
    logits = teacher.head(nonrobust_features(features, robust), bottleneck.layer)
    return kl_from_uniform(logits).mean(), robust.float().mean()


def synthesise(
    teacher: Classifier,
    student: Classifier | None,
    generator: Generator,
    labels: Tensor,
    settings: Synthesis,
    augmentation: Augmentation,
    rng: torch.Generator,
    *,
    fae: bool,
) -> SynthesisResult:
    """Fit a re-initialised generator and fresh latent codes to L = Σ weights · terms.

    Args:
        student: the network to disagree with; None while it is still untrained (no L_adv).
        labels: (B,) requested classes.
        fae: add L_uni, so that the images are fairness-aware examples.

    Raises:
        FerdError: no step had a finite loss.
    """
    generator.reinitialise(rng)
    generator.train()
    latents = torch.empty(len(labels), settings.latent_dim, device=labels.device)
    latents.normal_(generator=rng).requires_grad_()
    optimiser = torch.optim.Adam(
        [
            {"params": generator.parameters(), "lr": settings.generator_learning_rate},
            {"params": [latents], "lr": settings.latent_learning_rate},
        ],
        betas=(0.5, 0.999),
    )
    weights = settings.weights
    networks = [teacher] if student is None else [teacher, student]
    best: dict[str, Tensor] = {}
    with frozen(*networks), BatchNormStatistics(teacher) as statistics:
        for _ in range(settings.steps):
            images = generator(latents)
            inputs = augment(images, augmentation, rng)
            features = teacher.features(inputs, settings.bottleneck.layer)
            logits = teacher.head(features, settings.bottleneck.layer)
            bn = statistics.loss()
            oh = F.cross_entropy(logits, labels)
            loss = weights.bn * bn + weights.oh * oh
            figures = {"bn": bn, "oh": oh}
            if student is not None:
                figures["adv"] = adversarial_loss(logits, student(inputs))
                loss = loss + weights.adv * figures["adv"]
            if fae:
                with statistics.paused():
                    figures["uni"], figures["robust_fraction"] = uniformity_loss(
                        teacher, features, labels, settings, rng
                    )
                loss = loss + weights.uni * figures["uni"]
            best = _keep_lower(best, {"loss": loss, "images": images, **figures})
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    if not torch.isfinite(best["loss"]):
        raise FerdError("synthesis: the generator's loss is not finite; lower its learning rates or weights")
    kept = best.pop("images")
    return SynthesisResult(kept, best)


def _keep_lower(best: dict[str, Tensor], current: dict[str, Tensor]) -> dict[str, Tensor]:
    """Element by element the entries of the lower loss, without a host synchronisation."""
    current = {key: value.detach() for key, value in current.items()}
    if not best:
        return current
    lower = (current["loss"] < best["loss"]) | ~best["loss"].isfinite()
    return {key: torch.where(lower, current[key], best[key]) for key in current}
