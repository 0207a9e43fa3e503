"""The hot steps as one first writes them from the formulas: what the real ones are measured against.

Everything by autograd and ``backward()``, weights never frozen, statistics hooks on every BatchNorm of
teacher and student, the bottleneck's noise added to whole feature maps, IKL as its double sum, crops image
by image; float32, NCHW, no BatchNorm folded. Draws come in the same order as in ``ferd``, so that both
compute on the same random numbers.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ferd.config import Augmentation, Bottleneck, Synthesis, ThreatModel
from ferd.models.classifier import Classifier
from ferd.models.generator import Generator

PRIOR_TEMPERATURE = 100.0
DELTA = 1e-10
Loss = Callable[[Tensor], Tensor]  # logits (B, C) -> ()


def plain(network: Classifier) -> Classifier:
    """A copy as it comes: contiguous, in eval mode, every weight with a gradient."""
    network = copy.deepcopy(network).eval().requires_grad_()
    return network.to(memory_format=torch.contiguous_format)


def kl(target_probs: Tensor, logits: Tensor) -> Tensor:
    """Σ KL(q ‖ σ(o)); (B, C), (B, C) -> ()."""
    return F.kl_div(F.log_softmax(logits, 1), target_probs, reduction="sum")


def improved_kl(teacher_logits: Tensor, student_logits: Tensor, weights: Tensor) -> Tensor:
    """IKL, Eq. 11, with ¼ Σ_jk w_j w_k (Δ^T_jk − Δ^S_jk)² as it stands; the mean over the batch."""
    teacher_gaps = teacher_logits.unsqueeze(2) - teacher_logits.unsqueeze(1)
    student_gaps = student_logits.unsqueeze(2) - student_logits.unsqueeze(1)
    pairs = weights.unsqueeze(2) * weights.unsqueeze(1)
    weighted_mse = 0.25 * (pairs * (teacher_gaps - student_gaps) ** 2).sum((1, 2))
    targets = teacher_logits.detach().softmax(1)
    return (weighted_mse - (targets * student_logits.log_softmax(1)).sum(1)).mean()


def augment(images: Tensor, settings: Augmentation, rng: torch.Generator) -> Tensor:
    """Crop each padded image, and mirror half of them, one after the other."""
    batch, _, height, width = images.shape
    pad, device = settings.padding, images.device
    offsets = torch.randint(0, 2 * pad + 1, (2, batch, 1), generator=rng, device=device)
    mirrored = torch.rand(batch, 1, generator=rng, device=device) < 0.5 if settings.flip else None
    padded = F.pad(images, (pad, pad, pad, pad))
    crops = []
    for number in range(batch):
        row, column = int(offsets[0, number]), int(offsets[1, number])
        crop = padded[number, :, row : row + height, column : column + width]
        crops.append(crop.flip(2) if mirrored is not None and mirrored[number] else crop)
    return torch.stack(crops)


def pgd(network: Classifier, inputs: Tensor, loss: Loss, threat: ThreatModel, start: Tensor) -> Tensor:
    """Projected gradient ascent by ``backward()``, which fills the weights' gradients too."""
    adv_inputs = start.detach()
    for _ in range(threat.steps):
        adv_inputs.requires_grad_()
        loss(network(adv_inputs)).backward()
        assert adv_inputs.grad is not None
        step = adv_inputs.detach() + threat.step_size * adv_inputs.grad.sign()
        step = torch.min(torch.max(step, inputs - threat.epsilon), inputs + threat.epsilon)
        adv_inputs = step.clamp(0, 1)
    return adv_inputs


@contextmanager
def statistics_hooks(*networks: Classifier) -> Iterator[dict[nn.Module, Tensor]]:
    """For each BatchNorm of all networks, ‖μ − μ_running‖₂ + ‖v − v_running‖₂ of its last input."""
    terms: dict[nn.Module, Tensor] = {}

    def record(layer: nn.BatchNorm2d, inputs: tuple[Tensor], _: Tensor) -> None:
        assert layer.running_mean is not None and layer.running_var is not None
        mean = inputs[0].mean((0, 2, 3))
        variance = inputs[0].permute(1, 0, 2, 3).flatten(1).var(1, correction=0)
        terms[layer] = (layer.running_mean - mean).norm() + (layer.running_var - variance).norm()

    layers = [m for net in networks for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    handles = [layer.register_forward_hook(record) for layer in layers]
    try:
        yield terms
    finally:
        for handle in handles:
            handle.remove()


def robust_channels(
    network: Classifier, features: Tensor, labels: Tensor, settings: Bottleneck, rng: torch.Generator
) -> Tensor:
    """Mask (B, K), Eq. 3-6: noise on the whole feature maps, both parts of the loss by autograd."""
    features = features.detach()
    variance = features.var((2, 3), correction=0)
    raw = torch.zeros_like(variance, requires_grad=True)
    optimiser = torch.optim.Adam([raw], settings.learning_rate)
    for _ in range(settings.steps):
        scales = F.softplus(raw)
        noise = scales * torch.empty_like(scales).normal_(generator=rng)
        logits = network.head(features + noise[:, :, None, None])
        squared = scales**2 + DELTA
        information = 0.5 * (variance / squared + torch.log(squared / (variance + DELTA)) - 1).mean()
        optimiser.zero_grad()
        (F.cross_entropy(logits, labels) + settings.beta * information).backward()
        optimiser.step()
    reduced = variance.amax(1) if settings.threshold == "max" else variance.mean(1)
    return F.softplus(raw.detach()) ** 2 > reduced.unsqueeze(1)


def generator_loss(
    teacher: Classifier,
    student: Classifier,
    inputs: Tensor,
    labels: Tensor,
    settings: Synthesis,
    rng: torch.Generator,
) -> Tensor:
    """L of Eq. 8, on images (B, channels, H, W)."""
    with statistics_hooks(teacher, student) as terms:
        features = teacher.features(inputs)
        logits = teacher.head(features)
        student_logits = student(inputs)
        bn = torch.stack([terms[m] for m in teacher.modules() if isinstance(m, nn.BatchNorm2d)]).sum()
    robust = robust_channels(teacher, features, labels, settings.bottleneck, rng)
    nonrobust_logits = teacher.head(features * (~robust)[:, :, None, None])
    uniform = torch.full_like(logits, 1 / logits.shape[1])
    prior = (logits.detach() / PRIOR_TEMPERATURE).softmax(1)
    weights = settings.weights
    return (
        -weights.adv * improved_kl(logits, student_logits, prior)
        + weights.bn * bn
        + weights.oh * F.cross_entropy(logits, labels)
        + weights.uni * kl(uniform, nonrobust_logits) / len(labels)
    )


def synthesise(
    teacher: Classifier,
    student: Classifier,
    generator: Generator,
    labels: Tensor,
    settings: Synthesis,
    augmentation: Augmentation,
    rng: torch.Generator,
) -> Tensor:
    """Fit a fresh generator and latent codes for ``settings.steps``; -> the images of least loss."""
    generator.reinitialise(rng)
    generator.train()
    latents = torch.empty(len(labels), settings.latent_dim, device=labels.device).normal_(generator=rng)
    latents.requires_grad_()
    optimiser = torch.optim.Adam(
        [
            {"params": generator.parameters(), "lr": settings.generator_learning_rate},
            {"params": [latents], "lr": settings.latent_learning_rate},
        ],
        betas=(0.5, 0.999),
    )
    least, kept = float("inf"), torch.empty(0)
    for _ in range(settings.steps):
        images = generator(latents)
        loss = generator_loss(teacher, student, augment(images, augmentation, rng), labels, settings, rng)
        if loss.item() < least:
            least, kept = loss.item(), images.detach()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return kept


@dataclass(frozen=True)
class StudentTraining:
    """Eq. 10-12 on batches of images, with the class prior of Eq. 11."""

    teacher: Classifier
    student: Classifier
    optimiser: torch.optim.Optimizer
    threat: ThreatModel
    gamma: float
    adversarial_weight: float
    prior_sums: Tensor  # (C, C)
    prior_counts: Tensor  # (C,)

    def step(self, inputs: Tensor, labels: Tensor, rng: torch.Generator) -> None:
        """One step of SGD."""
        teacher_logits = self.teacher(inputs).detach()
        adv_inputs = self._attack(inputs, teacher_logits.softmax(1), rng)
        for label, probs in zip(labels, teacher_logits.softmax(1), strict=True):
            self.prior_sums[label] += probs
            self.prior_counts[label] += 1
        weights = self.prior_sums[labels] / self.prior_counts[labels].unsqueeze(1)
        self.student.train()
        clean = improved_kl(teacher_logits, self.student(inputs), weights)
        adversarial = improved_kl(teacher_logits, self.student(adv_inputs), weights)
        self.optimiser.zero_grad()
        ((1 - self.adversarial_weight) * clean + self.adversarial_weight * adversarial).backward()
        self.optimiser.step()

    def _attack(self, inputs: Tensor, clean_probs: Tensor, rng: torch.Generator) -> Tensor:
        """UTAE, Eq. 10, from x + 0.001·N(0, 1)."""
        self.student.eval()
        start = (inputs + torch.empty_like(inputs).normal_(0, 0.001, generator=rng)).clamp(0, 1)
        uniform = torch.full_like(clean_probs, 1 / clean_probs.shape[1])

        def loss(logits: Tensor) -> Tensor:
            return kl(clean_probs, logits) - self.gamma * kl(uniform, logits)

        return pgd(self.student, inputs, loss, self.threat, start)


def teacher_step(
    network: Classifier,
    optimiser: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    augmentation: Augmentation,
    rng: torch.Generator,
) -> None:
    """One step of PGD-AT (Madry et al. 2018)."""
    inputs = augment(images, augmentation, rng)
    network.eval()
    # numbers lie as in ``ferd``, whose augmented images have their channels last
    noise = torch.empty_like(inputs, memory_format=torch.channels_last)
    start = inputs + noise.uniform_(-threat.epsilon, threat.epsilon, generator=rng).contiguous()
    adv_inputs = attack_cross_entropy(network, inputs, labels, threat, start.clamp(0, 1))
    network.train()
    optimiser.zero_grad()
    F.cross_entropy(network(adv_inputs), labels).backward()
    optimiser.step()


def attack_cross_entropy(
    network: Classifier, inputs: Tensor, labels: Tensor, threat: ThreatModel, start: Tensor
) -> Tensor:
    """PGD on the cross-entropy."""
    return pgd(
        network, inputs, lambda logits: F.cross_entropy(logits, labels, reduction="sum"), threat, start
    )


def random_start(inputs: Tensor, epsilon: float, rng: torch.Generator) -> Tensor:
    """A uniform point of the ε-ball, in [0, 1]."""
    return (inputs + torch.empty_like(inputs).uniform_(-epsilon, epsilon, generator=rng)).clamp(0, 1)
