"""One projected gradient ascent; the objective is an argument.

An objective maps logits (B, C) to a value a sample (B,), which the attack raises. Networks are
attacked frozen: eval mode, running statistics untouched, no weight gradients.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ferd.config import ThreatModel
from ferd.errors import FerdError
from ferd.losses import kl_divergence, kl_from_uniform
from ferd.models.classifier import frozen, refuse_inference_mode

Objective = Callable[[Tensor], Tensor]


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """f(x)_y − max_{j≠y} f(x)_j, Eq. 1; logits (B, C), labels (B,) -> (B,)."""
    true = logits.gather(1, labels.unsqueeze(1))
    others = logits.scatter(1, labels.unsqueeze(1), -torch.inf)
    return true.squeeze(1) - others.amax(1)


def cross_entropy(labels: Tensor) -> Objective:
    """CE(f(x), y); labels (B,)."""
    return lambda logits: F.cross_entropy(logits, labels, reduction="none")


def negative_margin(labels: Tensor) -> Objective:
    """max_{j≠y} f(x)_j − f(x)_y, the loss of CW∞ (Carlini and Wagner 2017); labels (B,)."""
    return lambda logits: -margins(logits, labels)


def toward(targets: Tensor) -> Objective:
    """−CE(f(x), t): a targeted attack, toward the classes t (B,)."""
    return lambda logits: -F.cross_entropy(logits, targets, reduction="none")


def entropy(logits: Tensor) -> Tensor:
    """H(σ(o)) = −Σ σ(o) log σ(o) a sample; (B, C) -> (B,)."""
    log_probs = F.log_softmax(logits, 1)
    return -(log_probs.exp() * log_probs).sum(1)


def uniform_target(clean_probs: Tensor, gamma: float | Tensor) -> Objective:
    """KL(q ‖ f(x)) − γ·KL(U ‖ f(x)), Eq. 10; γ = 0 is plain KL, the attack of TRADES.

    q is ``clean_probs`` (B, C); γ is one for all, or (B,).
    """

    def objective(logits: Tensor) -> Tensor:
        away = kl_divergence(clean_probs, logits)
        if isinstance(gamma, float) and gamma == 0:
            return away
        return away - gamma * kl_from_uniform(logits)

    return objective


def project(adv_inputs: Tensor, inputs: Tensor, epsilon: float) -> Tensor:
    """The nearest point of the ε-ball (L∞) around ``inputs`` and of [0, 1]; both (B, channels, H, W)."""
    return adv_inputs.clamp(inputs - epsilon, inputs + epsilon).clamp(0, 1)


def random_start(inputs: Tensor, epsilon: float, rng: torch.Generator) -> Tensor:
    """A uniform point of the ε-ball, in [0, 1]; (B, channels, H, W), like ``inputs``."""
    noise = torch.empty_like(inputs).uniform_(-epsilon, epsilon, generator=rng)
    return project(inputs + noise, inputs, epsilon)


def gaussian_start(inputs: Tensor, epsilon: float, rng: torch.Generator) -> Tensor:
    """Start at x + 0.001·N(0, 1), where a KL objective has no gradient at x itself.

    Within ε and [0, 1]; (B, channels, H, W), like ``inputs``.
    """
    noise = torch.empty_like(inputs).normal_(0.0, 0.001, generator=rng)
    return project(inputs + noise, inputs, epsilon)


def pgd(
    network: nn.Module, inputs: Tensor, objective: Objective, threat: ThreatModel, start: Tensor
) -> Tensor:
    """x_{t+1} = Π(x_t + α·sign ∇ objective(f(x_t))), from ``start`` (Madry et al. 2018).

    Args:
        inputs: images (B, channels, H, W) in [0, 1], the centre of the ball. Others are clamped, and leave
            it: normalisation belongs into the network.
        threat: ε and α in [0, 1] pixels, and the number of steps.
        start: x_0, of the shape of ``inputs``.

    Returns:
        Adversarial images (B, channels, H, W), within ε of ``inputs`` and in [0, 1].

    Raises:
        FerdError: inference mode is on.
    """
    refuse_inference_mode()
    adv_inputs = start.detach()
    with frozen(network), torch.enable_grad():
        for _ in range(threat.steps):
            adv_inputs.requires_grad_()
            value = objective(network(adv_inputs)).sum()
            (gradient,) = torch.autograd.grad(value, adv_inputs)
            step = adv_inputs.detach() + threat.step_size * gradient.sign()
            adv_inputs = project(step, inputs, threat.epsilon)
    return adv_inputs.detach()


def fgsm(network: nn.Module, inputs: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """One step of ε on the cross-entropy, without a random start (Goodfellow et al. 2015).

    Inputs (B, channels, H, W) in [0, 1], labels (B,), ε in the same unit -> adversarial images like them.
    """
    one_step = ThreatModel(norm="linf", epsilon=epsilon, step_size=epsilon, steps=1)
    return pgd(network, inputs, cross_entropy(labels), one_step, start=inputs.clone())


def utae(
    network: nn.Module,
    inputs: Tensor,
    clean_probs: Tensor,
    gamma: float | Tensor,
    threat: ThreatModel,
    rng: torch.Generator,
) -> Tensor:
    """Uniform-target adversarial examples, Eq. 10: PGD that raises KL(q ‖ σ(f(x'))) − γ·KL(U ‖ σ(f(x'))).

    Args:
        network: f; the released code attacks the student, the paper writes the teacher.
        inputs: x (B, channels, H, W) in [0, 1].
        clean_probs: q (B, C), the teacher's softmax on x, a constant.
        gamma: γ, a number or one a sample (B,).
        threat: ε and the step size in [0, 1] pixels, and the number of steps.

    Returns:
        x', shaped as x: from x + 0.001·N(0, 1), within ε of x and in [0, 1].

    Raises:
        FerdError: γ, where it is a number, is not 0 or more.
    """
    if not isinstance(gamma, Tensor) and not gamma >= 0:
        raise FerdError(f"gamma {gamma}: must be 0 or more")
    start = gaussian_start(inputs, threat.epsilon, rng)
    return pgd(network, inputs, uniform_target(clean_probs, gamma), threat, start)


@contextmanager
def points_right(network: nn.Module, labels: Tensor) -> Iterator[Tensor]:
    """Counts how often the network takes images for y while they are attacked: of x_0 ... x_{T−1} in a PGD.

    Gives the counts (B,) int64; 0 where no point is right, T where all are. Labels (B,).

    Raises:
        FerdError: the network is given a part of the images.
    """
    counts = torch.zeros_like(labels)

    def count(_network: nn.Module, _inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        if len(logits) != len(labels):
            raise FerdError(
                f"the attack took {len(logits)} of {len(labels)} images; it must take all at once"
            )
        counts.add_(logits.argmax(1) == labels)

    hook = network.register_forward_hook(count)
    try:
        yield counts
    finally:
        hook.remove()
