"""A twin of a network for attacks: BatchNorm folded into the convolutions, weights in float32 or bfloat16.

In eval mode BatchNorm is an affine map: y = (x − μ)·s + b with s = w/√(v + ϵ). Behind a convolution
it is the same function to scale the convolution's weights, and a bias of its own, by s and to add b − μ·s.
Which pairs stand so is said by each block's ``folds``. Reported verdicts are never taken from a twin.
"""

import copy
from typing import cast

import torch
from torch import Tensor, nn

from ferd.config import Precision
from ferd.errors import FerdError
from ferd.models.classifier import Classifier, fast_layout


class Folded:
    """A frozen, folded copy of a network, which follows its weights when told to.

    Args:
        network: stays as it is.
        dtype: of the twin's weights and features; its logits are float32 always.

    Attributes:
        network: the twin, a classifier with the same seam.
    """

    def __init__(self, network: Classifier, dtype: torch.dtype = torch.float32) -> None:
        self._source = network
        device = next(network.parameters()).device
        twin = copy.deepcopy(network).eval().requires_grad_(False)
        self._pairs = [
            (f"{prefix}{conv}", f"{prefix}{norm}")
            for name, module in network.named_modules()
            for conv, norm in getattr(module, "folds", ())
            for prefix in [f"{name}." if name else ""]
        ]
        for conv, norm in self._pairs:
            layer = cast(nn.Conv2d, twin.get_submodule(conv))
            layer.bias = nn.Parameter(torch.zeros(layer.out_channels, device=device), requires_grad=False)
            parent, _, child = norm.rpartition(".")
            setattr(twin.get_submodule(parent), child, nn.Identity())
        self.network = fast_layout(twin, device).to(dtype)
        if dtype is not torch.float32:
            self.network.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(dtype),))
            self.network.register_forward_hook(lambda _, __, logits: logits.float())
        self._copied = self._values_to_copy()
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the source's present weights and running statistics."""
        for conv, norm in self._pairs:
            source = cast(nn.Conv2d, self._source.get_submodule(conv))
            layer = cast(nn.Conv2d, self.network.get_submodule(conv))
            scale, shift = _affine(cast(nn.BatchNorm2d, self._source.get_submodule(norm)))
            layer.weight.copy_(source.weight * scale[:, None, None, None])
            assert layer.bias is not None
            layer.bias.copy_(shift if source.bias is None else shift + source.bias * scale)
        for source_value, value in self._copied:
            value.copy_(source_value)

    def _values_to_copy(self) -> list[tuple[Tensor, Tensor]]:
        """What is the same in both: all weights and buffers of layers that were not folded."""
        folded = {name for pair in self._pairs for name in pair}
        source = self._source.state_dict(keep_vars=True)
        return [
            (source[key], value)
            for key, value in self.network.state_dict(keep_vars=True).items()
            if key.rpartition(".")[0] not in folded
        ]


def settled(precision: Precision, device: torch.device) -> Precision:
    """What ``auto`` is: with native bfloat16 ``bf16`` on a GPU, ``bf16-attacks`` on a CPU; else float32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bf16-attacks" if torch.cpu._is_avx512_bf16_supported() else "float32"


def attack_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The type that attacks run in."""
    return torch.float32 if settled(precision, device) == "float32" else torch.bfloat16


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """(s, b − μ·s) of a BatchNorm in eval mode, each (K,)."""
    if norm.running_mean is None or norm.running_var is None:
        raise FerdError("a BatchNorm without running statistics cannot be folded; track_running_stats=True")
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale
