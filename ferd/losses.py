"""Losses as pure functions of tensors, and the BatchNorm statistics of a frozen network."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ferd.errors import FerdError


def kl_divergence(target_probs: Tensor, logits: Tensor) -> Tensor:
    """KL(q ‖ σ(o)) a sample; q (B, C) and o (B, C) -> (B,)."""
    return F.kl_div(F.log_softmax(logits, 1), target_probs, reduction="none").sum(1)


def kl_from_uniform(logits: Tensor) -> Tensor:
    """KL(U ‖ σ(o)) = −log C − mean_c log σ(o)_c a sample; (B, C) -> (B,)."""
    return -math.log(logits.shape[1]) - F.log_softmax(logits, 1).mean(1)


def soft_cross_entropy(target_probs: Tensor, logits: Tensor) -> Tensor:
    """−Σ_c q_c log σ(o)_c a sample; (B, C), (B, C) -> (B,)."""
    return -(target_probs * F.log_softmax(logits, 1)).sum(1)


def weighted_mse(teacher_logits: Tensor, student_logits: Tensor, weights: Tensor) -> Tensor:
    """¼ Σ_jk w_j w_k (d_j − d_k)² = ½ Var_{c~w}(d_c), d = o_T − o_S; (B, C) -> (B,).

    ``weights`` (B, C) sum to 1 a sample. O(C) work: no (B, C, C) tensor is made.
    """
    difference = teacher_logits - student_logits
    mean = (weights * difference).sum(1, keepdim=True)
    return 0.5 * (weights * (difference - mean).square()).sum(1)


def ikl(teacher_logits: Tensor, student_logits: Tensor, weights: Tensor) -> Tensor:
    """Improved KL, Eq. 11 (after Cui et al. 2024): weighted MSE + soft cross-entropy; -> (B,).

    The soft target σ(o_T) is a constant; o_T itself keeps its gradient in the first part.
    """
    soft_targets = teacher_logits.detach().softmax(1)
    return weighted_mse(teacher_logits, student_logits, weights) + soft_cross_entropy(
        soft_targets, student_logits
    )


class ClassPrior:
    """The weights w of Eq. 11: each class's mean teacher softmax over all training batches so far.

    The current batch is included, and an image counts each time that it is drawn.

    Attributes:
        sums: (C, C), row c sums the teacher's softmax over samples labelled c; float64, since a paper's run
            adds millions.
        counts: (C,), samples labelled c.
    """

    def __init__(self, classes: int, device: torch.device) -> None:
        self.sums = torch.zeros(classes, classes, dtype=torch.float64, device=device)
        self.counts = torch.zeros(classes, dtype=torch.float64, device=device)

    def update(self, teacher_probs: Tensor, labels: Tensor) -> None:
        """Take in a batch; teacher_probs (B, C), labels (B,)."""
        self.sums.index_add_(0, labels, teacher_probs.detach().double())
        self.counts.index_add_(0, labels, torch.ones_like(labels, dtype=self.counts.dtype))

    def weights(self, labels: Tensor) -> Tensor:
        """The weights w (B, C), float32, of samples whose classes have been seen."""
        return (self.sums[labels] / self.counts[labels].unsqueeze(1)).float()


VARIANCE_GUARD = 1e-12  # PyTorch's kernel gives 1/√(v + this)


class _ChannelMoments(torch.autograd.Function):
    """(mean, biased variance) of each channel (K,), float32, of (B, K, H, W) on a GPU.

    ``torch.var_mean`` wants bfloat16 copied to float32, and its backward makes a handful of passes; here both
    directions are one pass: ∂/∂x = ∂mean/N + 2(x − mean)·∂var/N.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
        mean, inverse = torch.batch_norm_stats(inputs, VARIANCE_GUARD)
        ctx.save_for_backward(inputs, mean)
        return mean, inverse.pow(-2) - VARIANCE_GUARD

    @staticmethod
    def backward(ctx: Any, mean_gradient: Tensor, var_gradient: Tensor) -> Tensor:
        inputs, mean = ctx.saved_tensors
        count = inputs.numel() / inputs.shape[1]
        slope = 2 / count * var_gradient
        constant = mean_gradient / count - slope * mean
        constant, slope = (value.to(inputs.dtype)[:, None, None] for value in (constant, slope))
        return torch.addcmul(constant, inputs, slope)


def channel_moments(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, at least in float32: (B, K, H, W) -> (K,), (K,)."""
    if inputs.is_cuda:
        mean, var = _ChannelMoments.apply(inputs)
    else:
        precise = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        var, mean = torch.var_mean(precise, (0, 2, 3), correction=0)
    return mean, var


class BatchNormStatistics:
    """L_bn = Σ over BatchNorm layers of ‖μ − μ_running‖₂ + ‖v − v_running‖₂ (Yin et al. 2020).

    μ and v are the batch's mean and biased variance of each layer's input. A context manager: its
    hooks live as long as the ``with`` block.

    Raises:
        FerdError: the network has no BatchNorm layer, or one without running statistics.
    """

    def __init__(self, network: nn.Module) -> None:
        self._layers = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d | nn.SyncBatchNorm)]
        if any(layer.running_mean is None for layer in self._layers):
            raise FerdError("the teacher has a BatchNorm without running statistics, which L_bn needs")
        if not self._layers:
            raise FerdError(
                "the teacher has no BatchNorm layer, whose statistics L_bn needs; take one that has"
            )
        self._terms: list[Tensor] = []
        self._recording = True

    def __enter__(self) -> Self:
        self._handles = [layer.register_forward_pre_hook(self._record) for layer in self._layers]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Forward passes inside do not count."""
        self._recording = False
        try:
            yield
        finally:
            self._recording = True

    def _record(self, layer: nn.Module, inputs: tuple[Tensor]) -> None:
        if not self._recording:
            return
        assert isinstance(layer, nn.BatchNorm2d | nn.SyncBatchNorm)
        assert layer.running_mean is not None and layer.running_var is not None
        mean, var = channel_moments(inputs[0])
        self._terms.append((mean - layer.running_mean).norm() + (var - layer.running_var).norm())

    def loss(self) -> Tensor:
        """L_bn of the forward pass since the last call.

        Raises:
            FerdError: no BatchNorm layer took part in it.
        """
        terms, self._terms = self._terms, []
        if not terms:
            raise FerdError(
                "the teacher's forward uses none of its BatchNorm layers, whose statistics L_bn needs"
            )
        return torch.stack(terms).sum()
