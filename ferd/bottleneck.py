"""Robust and non-robust channels, Eq. 3-6: how much noise a channel bears before the label is lost."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ferd.config import Bottleneck, NonRobust
from ferd.models.classifier import LAST_BLOCK, Classifier

NoiseGradient = Callable[[Tensor], Tensor]
DELTA = 1e-10  # keeps the logarithm finite where a channel is constant after its ReLU
LARGEST = 80.0  # λ_r is held at it or below: the exponential stays finite in float32


def channel_variance(features: Tensor) -> Tensor:
    """v: variance over space; Z (B, K, H, W) -> (B, K).

    Written out: over space, where channels come last, ``torch.var`` takes more than 20 times as long.
    """
    return (features - features.mean((2, 3), keepdim=True)).square_().mean((2, 3))


def information(noise_scales: Tensor, variance: Tensor) -> Tensor:
    """mean_{B,K} ½(v/(λ² + δ) + log((λ² + δ)/(v + δ)) − 1), Eq. 4; λ and v (B, K) -> (), in nats."""
    noise = noise_scales.square() + DELTA
    return 0.5 * (variance / noise + (noise / (variance + DELTA)).log() - 1).mean()


def information_gradient(noise_scales: Tensor, variance: Tensor) -> Tensor:
    """∂ information / ∂λ = λ(1/(λ² + δ) − v/(λ² + δ)²)/(B·K), in closed form; (B, K) -> (B, K)."""
    noise = noise_scales.square() + DELTA
    return noise_scales * (noise - variance) / noise.square() / variance.numel()


def pooled_noise_gradient(network: Classifier, features: Tensor, labels: Tensor) -> NoiseGradient:
    """∂ CE(head(Z + n), y) / ∂n for noise n (B, K) at the last block, in closed form.

    The head is mean over space, then linear, and n is constant over space: adding n after the mean
    is the same function at (B, K) instead of (B, K, H, W), and its gradient is (σ(o) − 1_y)·A/B, A (C, K)
    the weight of the linear layer.
    """
    pooled, weight = features.mean((2, 3)), network.linear.weight
    one_hot = F.one_hot(labels, network.classes).to(pooled.dtype)
    return lambda noise: (network.classify(pooled + noise).softmax(1) - one_hot) @ weight / len(labels)


def pools_and_is_linear(network: Classifier) -> bool:
    """Whether the head is the one that ``Classifier`` has: of another, there is no closed form."""
    kind, linear = type(network), type(network.linear) is nn.Linear  # no kind of it, such as a cosine's
    return linear and kind.head is Classifier.head and kind.classify is Classifier.classify


def spatial_noise_gradient(
    network: Classifier, features: Tensor, labels: Tensor, layer: int
) -> NoiseGradient:
    """∂ CE(head(Z + n), y) / ∂n for noise n (B, K), constant over space, by backpropagation."""

    def gradient(noise: Tensor) -> Tensor:
        with torch.enable_grad():
            noise = noise.detach().requires_grad_()
            logits = network.head(features + noise[:, :, None, None], layer)
            return torch.autograd.grad(F.cross_entropy(logits, labels), noise)[0]

    return gradient


class Adam:
    """``torch.optim.Adam`` on one tensor: its operations alone, in its order and to the bit.

    Of a step on (32, 256) numbers torch's own bookkeeping takes two thirds.
    """

    BETAS, EPSILON = (0.9, 0.999), 1e-8

    def __init__(self, values: Tensor, learning_rate: float) -> None:
        self.values, self.learning_rate, self.steps = values, learning_rate, 0
        self.mean, self.mean_square = torch.zeros_like(values), torch.zeros_like(values)

    def step(self, gradient: Tensor) -> None:
        """Change the values in place."""
        self.steps += 1
        first, second = self.BETAS
        self.mean.lerp_(gradient, 1 - first)
        self.mean_square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        rate = self.learning_rate / (1 - first**self.steps)
        scale = self.mean_square.sqrt().div_((1 - second**self.steps) ** 0.5).add_(self.EPSILON)
        self.values.addcdiv_(self.mean, scale, value=-rate)


def softplus_and_slope(raw: Tensor) -> tuple[Tensor, Tensor]:
    """log(1 + e^r) and its derivative e^r/(1 + e^r), from one exponential; r is held at 80 at most."""
    total = raw.clamp(max=LARGEST).exp_().add_(1)
    return total.log(), (total - 1).div_(total)


@torch.no_grad()
def noise_scales(
    noise_gradient: NoiseGradient, variance: Tensor, settings: Bottleneck, rng: torch.Generator
) -> Tensor:
    """λ (B, K) after Adam steps on CE(head(Z + λ·e), y) + β·information, Eq. 3-4.

    λ = softplus(λ_r) with λ_r from 0; e ~ N(0, 1), one number a sample and channel, fresh a step.

    Args:
        noise_gradient: noise (B, K) -> gradient of the cross-entropy by it (B, K).
        variance: v (B, K), a constant.
    """
    raw = torch.zeros_like(variance)
    optimiser = Adam(raw, settings.learning_rate)
    for _ in range(settings.steps):
        scales, slope = softplus_and_slope(raw)
        unit_noise = torch.empty_like(scales).normal_(generator=rng)
        gradient = noise_gradient(scales * unit_noise) * unit_noise
        gradient += settings.beta * information_gradient(scales, variance)
        optimiser.step(gradient.mul_(slope))
    return softplus_and_slope(raw)[0]


def robust_channels(
    network: Classifier,
    features: Tensor,
    labels: Tensor,
    choice: NonRobust,
    settings: Bottleneck,
    rng: torch.Generator,
) -> Tensor:
    """Mask (B, K): true where λ² exceeds the largest (or mean) v of the sample (or batch), Eq. 5.

    The network must be frozen. Z is a constant in here, and so is the mask outside.
    """
    features = features.detach()
    variance = channel_variance(features)
    if choice.layer == LAST_BLOCK and pools_and_is_linear(network):
        gradient = pooled_noise_gradient(network, features, labels)
    else:
        gradient = spatial_noise_gradient(network, features, labels, choice.layer)
    scales = noise_scales(gradient, variance, settings, rng)
    return scales.square() > threshold(variance, choice, settings)


def threshold(variance: Tensor, choice: NonRobust, settings: Bottleneck) -> Tensor:
    """v (B, K) reduced over the channels of each sample, (B, 1), or of the whole batch, (1, 1)."""
    rows = variance if choice.threshold_over == "sample" else variance.reshape(1, -1)
    return rows.amax(1, keepdim=True) if settings.threshold == "max" else rows.mean(1, keepdim=True)


def nonrobust_features(features: Tensor, robust: Tensor) -> Tensor:
    """Z_nr, Eq. 6: Z (B, K, H, W) with the robust channels (B, K) set to 0."""
    return features * (~robust)[:, :, None, None]
