"""A twin of a network for attacks: BatchNorm folded into the convolutions, weights in float32 or bfloat16.

In eval mode BatchNorm is an affine map: y = (x − μ)·s + b with s = w/√(v + ϵ). Behind a convolution
it is the same function to scale the convolution's weights, and a bias of its own, by s and to add b − μ·s.
Which pairs stand so is said by each block's ``folds``, of which plain layers are folded, and ``attackable``
looks whether the twin is the same function. Reported verdicts are never taken from a twin.
"""

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ferd.config import Precision
from ferd.errors import FerdError
from ferd.models.classifier import (
    Classifier,
    fast_layout,
    refuse_other_modes,
    require_classifier,
    same_logits,
    usable,
)
from ferd.tf32 import tf32_convolutions


class Folded:
    """A frozen, folded copy of a network, which follows its weights when told to.

    Args:
        source: stays as it is.
        dtype: of the twin's weights and features; its logits are float32 always.

    Attributes:
        network: the twin, a classifier with the same seam.
    """

    def __init__(self, source: Classifier, dtype: torch.dtype = torch.float32) -> None:
        self.source = source
        device = next(source.parameters()).device
        twin = copy.deepcopy(source).eval().requires_grad_(False)
        self._pairs = _pairs(source)
        for conv, norm in self._pairs:
            layer = cast(nn.Conv2d, twin.get_submodule(conv))
            # of its own: another convolution may share the source's, but not its BatchNorm
            layer.weight = nn.Parameter(layer.weight.clone(), requires_grad=False)
            layer.bias = nn.Parameter(torch.zeros(layer.out_channels, device=device), requires_grad=False)
            parent, _, child = norm.rpartition(".")
            setattr(twin.get_submodule(parent), child, nn.Identity())
        self.network = fast_layout(twin, device).to(dtype)
        if dtype is not torch.float32:
            self.network.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(dtype),))
            self.network.register_forward_hook(lambda _, __, logits: logits.float())
        folded = {name for pair in self._pairs for name in pair}
        kept = [name for name, _ in self.network.named_modules() if name not in folded]
        layers = [(source.get_submodule(name), self.network.get_submodule(name)) for name in kept]
        self._kept = [(whose, layer) for whose, layer in layers if _own_tensors(layer)]
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the source's present weights and running statistics."""
        for conv, norm in self._pairs:
            source = cast(nn.Conv2d, self.source.get_submodule(conv))
            layer = cast(nn.Conv2d, self.network.get_submodule(conv))
            scale, shift = _affine(cast(nn.BatchNorm2d, self.source.get_submodule(norm)))
            layer.weight.copy_(source.weight * scale[:, None, None, None])
            assert layer.bias is not None
            layer.bias.copy_(shift if source.bias is None else shift + source.bias * scale)
        for whose, kept in self._kept:
            for name, value in _own_tensors(kept):
                value.copy_(getattr(whose, name))

    @torch.no_grad()
    @tf32_convolutions(False)
    def require_following(self, role: str, inputs: Tensor) -> None:
        """Refuse a source that became another function than the twin: not by its weights' numbers alone.

        Of a bfloat16 twin only that it takes the images (B, channels, H, W); how near it comes is not asked.

        Raises:
            FerdError: it was given a normalisation, another layer or another constant since, or does not run
                in bfloat16; or as ``refuse_other_modes``.
        """
        refuse_other_modes(inputs.device)
        if next(self.network.parameters()).dtype is not torch.float32:
            _require_running(role, self.network, inputs)
        elif apart := _apart(self.source, self.network, inputs):
            raise FerdError(
                f"{role}: was changed after its twin for attacks had been made, which gives other logits now "
                f"({apart}); change a network first, then build what attacks it"
            )


def _own_tensors(layer: nn.Module) -> list[tuple[str, Tensor]]:
    """A layer's own weights and buffers, such as are no part of its state dict, too.

    By name: a layer may put another tensor in a buffer's place, as a running mean is often written.
    """
    return [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]


def attackable(
    network: Classifier, role: str, shape: tuple[int, int, int], device: torch.device | str
) -> Folded:
    """A network to be attacked, moved to the device, laid out for speed and in eval mode, with its twin.

    Args:
        role: what it is called in messages.
        shape: (channels, H, W) of the images.

    Raises:
        FerdError: it is no ``Classifier``, takes other images, or its twin is another function.
    """
    require_classifier(network, role)
    if network.channels != shape[0]:
        raise FerdError(
            f"the {role} takes {network.channels} channels, not the {shape[0]} of the images "
            "(N, channels, H, W)"
        )
    fast_layout(network, usable(device)).eval()
    require_foldable(network, role, shape)
    return Folded(network)


@torch.no_grad()
@tf32_convolutions(False)
def require_foldable(network: Classifier, role: str, shape: tuple[int, int, int]) -> None:
    """Refuse a network whose twin gives other logits: attacks would be blind to it.

    Its BatchNorms are moved for that, since to leave out a fresh one makes no difference.

    Raises:
        FerdError: ``folds`` names layers that do not follow each other, there are not C logits, or others
            each time.
    """
    try:
        moved = copy.deepcopy(network).eval()
    except RuntimeError as error:
        raise FerdError(
            f"{role}: cannot be copied, which attacks need ({error}); weights that are computed from others, "
            "such as by torch's pruning or its older weight_norm, are to be made plain first "
            "(prune.remove, remove_weight_norm)"
        ) from None
    rng = torch.Generator().manual_seed(0)

    def between(low: float, high: float, like: Tensor) -> Tensor:
        return torch.empty(like.shape).uniform_(low, high, generator=rng).to(like)

    for norm in moved.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.affine and norm.running_mean is not None:
            assert norm.running_var is not None
            norm.running_mean.add_(between(-1, 1, norm.running_mean) * norm.running_var.sqrt())
            norm.running_var.mul_(between(0.5, 2, norm.running_var))
            norm.weight.mul_(between(0.5, 1.5, norm.weight))
            norm.bias.add_(between(-1, 1, norm.bias))
    inputs = between(0, 1, torch.empty(2, *shape, device=next(network.parameters()).device))
    logits = moved(inputs)
    if logits.shape != (2, network.classes):
        raise FerdError(
            f"{role}: gives logits {tuple(logits.shape)} of two images where it has {network.classes} "
            "classes; give `linear` as many outputs"
        )
    if logits.isfinite().all() and not same_logits(logits, moved(inputs)):
        raise FerdError(
            f"{role}: gives other logits each time, in eval mode, too; have its dropout, or what else is "
            "random in it, end with training (self.training)"
        )
    if apart := _apart(moved, Folded(moved).network, inputs):
        raise FerdError(
            f"{role}: its twin for attacks, with BatchNorm folded into convolutions, gives other logits "
            f"({apart}); take out of `folds` what is not a convolution and the BatchNorm that its output "
            "goes to"
        )


def _require_running(role: str, twin: nn.Module, inputs: Tensor) -> None:
    try:
        twin(inputs)
    except RuntimeError as error:
        raise FerdError(
            f"{role}: does not run in bfloat16 ({error}); have tensors that its forward makes take the type "
            "of its input, or set precision to float32"
        ) from None


def _apart(network: nn.Module, twin: nn.Module, inputs: Tensor) -> str:
    """How far a twin's logits are from the network's: nothing where they are the same, or not finite."""
    logits, others = network(inputs), twin(inputs)
    if not logits.isfinite().all() or same_logits(logits, others):
        return ""
    apart, largest = float((others - logits).abs().max()), float(logits.abs().max())
    return f"off by {apart:.2g}, the largest is {largest:.2g}"


def settled(precision: Precision, device: torch.device) -> Precision:
    """What ``auto`` is: with native bfloat16 ``bf16`` on a GPU, ``bf16-attacks`` on a CPU; else float32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        with torch.cuda.device(device):
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bf16-attacks" if torch.cpu._is_avx512_bf16_supported() else "float32"


def attack_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The type that attacks run in."""
    return torch.float32 if settled(precision, device) == "float32" else torch.bfloat16


def _pairs(network: nn.Module) -> list[tuple[str, str]]:
    """Names of the convolutions and BatchNorms that are folded: those of ``folds`` that are plain layers."""
    named = [
        (f"{prefix}{conv}", f"{prefix}{norm}")
        for name, module in network.named_modules()
        for conv, norm in getattr(module, "folds", ())
        for prefix in [f"{name}." if name else ""]
    ]
    return [pair for pair in named if _is_plain(*(network.get_submodule(name) for name in pair))]


def _is_plain(conv: nn.Module, norm: nn.Module) -> bool:
    """Whether their weights are numbers, not computed from others such as by ``weight_norm``."""
    if not (isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and norm.affine):
        return False
    own = isinstance(conv.weight, nn.Parameter) and isinstance(norm.weight, nn.Parameter)
    return own and not is_parametrized(conv) and not is_parametrized(norm)


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """(s, b − μ·s) of a BatchNorm in eval mode, each (K,)."""
    if norm.running_mean is None or norm.running_var is None:
        raise FerdError("a BatchNorm without running statistics cannot be folded; track_running_stats=True")
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale
