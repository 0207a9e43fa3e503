"""The seam that every classifier offers, and the frozen state in which networks are attacked."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from ferd.errors import FerdError

LAST_BLOCK = -1
SAME = 1e-3  # of the largest logit: two ways to compute it may differ by rounding
N = TypeVar("N", bound=nn.Module)


class Classifier(nn.Module, ABC):
    """Convolutional blocks, global average pooling, one linear layer.

    ``layer`` counts blocks from the end: −1 is the last block's output after its activation, −2 what the
    one before hands to it: in pre-activation networks and MobileNet-V2 a sum that no ReLU has passed.
    For every layer ``head(features(x, layer), layer)`` equals ``forward(x)``.

    Args:
        classes: number of classes C.
        channels: input channels, 1 or 3.

    Attributes:
        linear: the last layer, K -> C; a subclass sets it.
        input_mean, input_std: of each channel (channels, 1, 1), by which images are normalised before the
            stem; None where they are not. They are saved with the weights.
    """

    linear: nn.Linear
    input_mean: Tensor | None
    input_std: Tensor | None

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.classes = classes
        self.channels = channels
        self.register_buffer("input_mean", None)
        self.register_buffer("input_std", None)

    def normalise_by(self, mean: Tensor, std: Tensor) -> None:
        """From now on, the stem sees (x − mean)/std; both (channels,).

        Raises:
            FerdError: they are of another number of channels, or a deviation is not positive.
        """
        if len(mean) != self.channels or len(std) != self.channels or not (std > 0).all():
            raise FerdError(
                f"normalisation by mean {mean.tolist()} and deviation {std.tolist()}: each is of "
                f"{self.channels} channels, and a deviation is positive"
            )
        device = next(self.parameters(), mean).device
        self.input_mean, self.input_std = (
            values.detach().clone().reshape(-1, 1, 1).to(device) for values in (mean, std)
        )

    @abstractmethod
    def stem(self, inputs: Tensor) -> Tensor:
        """Images (B, channels, H, W), normalised where the network wants that -> input of the first block."""

    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The convolutional blocks, in order."""

    def classify(self, pooled: Tensor) -> Tensor:
        """The linear layer: pooled features (B, K) -> logits (B, C)."""
        logits: Tensor = self.linear(pooled)
        return logits

    def features(self, inputs: Tensor, layer: int = LAST_BLOCK) -> Tensor:
        """Z (B, K, H', W'): the output of block ``layer``."""
        features = self.stem(self._normalised(inputs))
        for block in self.blocks()[: self._end(layer)]:
            features = block(features)
        return features

    def head(self, features: Tensor, layer: int = LAST_BLOCK) -> Tensor:
        """Z (B, K, H', W') at block ``layer`` -> logits (B, C)."""
        for block in self.blocks()[self._end(layer) :]:
            features = block(features)
        return self.classify(features.mean((2, 3)))

    def forward(self, inputs: Tensor) -> Tensor:
        """Images (B, channels, H, W) in [0, 1] -> logits (B, C)."""
        return self.head(self.features(inputs))

    def _normalised(self, inputs: Tensor) -> Tensor:
        if self.input_mean is None or self.input_std is None:
            return inputs
        return (inputs - self.input_mean) / self.input_std

    def _end(self, layer: int) -> int:
        blocks = len(self.blocks())
        if not -blocks <= layer <= -1:
            raise FerdError(f"layer {layer}: the network has {blocks} blocks; choose from -{blocks} to -1")
        return blocks + 1 + layer


def refuse_inference_mode() -> None:
    """Before attacks, or anything that would leave a network's weights unable to be trained.

    Raises:
        FerdError: inference mode is on; ``torch.no_grad()`` does no harm.
    """
    if torch.is_inference_mode_enabled():
        raise FerdError("inference mode records no gradients, which attacks follow; take torch.no_grad()")


def refuse_other_modes(device: torch.device) -> None:
    """Before anything whose precision and device are arguments, which torch's modes would override.

    Raises:
        FerdError: inference mode or autocast is on, or torch's default type is not float32, or its default
            device not the CPU.
    """
    refuse_inference_mode()
    if torch.is_autocast_enabled(device.type):
        raise FerdError(
            "autocast is on, under which the precision would not be that of the settings; leave its block"
        )
    if (default := torch.get_default_dtype()) is not torch.float32:
        raise FerdError(f"torch's default type is {default}; torch.set_default_dtype(torch.float32)")
    if (place := torch.get_default_device()).type != "cpu":
        raise FerdError(
            f"torch's default device is {place}; torch.set_default_device('cpu'), and name yours as `device`"
        )


def usable(device: torch.device | str) -> torch.device:
    """A device, by its name.

    Raises:
        FerdError: torch knows none of that name, or cannot use it on this machine.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise FerdError(f"device {str(device)!r}: cannot be used here: {reason}; cpu always can") from None
    return found


def fast_layout(network: N, device: torch.device) -> N:
    """The network on a device, its weights in the order in which convolutions run fastest.

    Channels last, but on a CPU for blocks that say ``small_maps`` (docs/evidence/speed.md).

    Raises:
        FerdError: as ``refuse_other_modes``.
    """
    refuse_other_modes(device)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device.type == "cpu":
        for module in network.modules():
            if getattr(module, "small_maps", False):
                module.to(memory_format=torch.contiguous_format)
    return network


def in_order_of(weight: Tensor, inputs: Tensor) -> Tensor:
    """The inputs (B, K, H, W) in the memory order of a convolution's weight."""
    last = weight.is_contiguous(memory_format=torch.channels_last)
    return inputs.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """The shape of each weight, by name: those of two networks of one kind are the same."""
    return {name: value.shape for name, value in weights.items()}


def require_classifier(network: nn.Module, role: str) -> None:
    """Refuse another kind of network.

    Raises:
        FerdError: it is no ``Classifier``, or has weights or buffers of another type than float32.
    """
    if not isinstance(network, Classifier):
        raise FerdError(
            f"{role}: a {type(network).__name__} is no ferd.models.classifier.Classifier; derive it from "
            "that: stem, blocks and linear are what it needs"
        )
    tensors = [*network.parameters(), *network.buffers()]
    if other := {str(tensor.dtype) for tensor in tensors if tensor.is_floating_point()} - {"torch.float32"}:
        raise FerdError(
            f"{role}: its weights or buffers are {min(other)}; call .float() on it (what is computed in "
            "bfloat16, the settings' precision says)"
        )


def same_logits(logits: Tensor, others: Tensor) -> bool:
    """Whether two ways to compute logits (B, C) differ by no more than rounding."""
    return torch.allclose(others, logits, rtol=SAME, atol=SAME * float(logits.abs().max()))


def require_sound(
    network: Classifier, role: str, shape: tuple[int, int, int], layer: int = LAST_BLOCK
) -> None:
    """Refuse a network that would be attacked or distilled wrongly; images are (channels, H, W).

    Raises:
        FerdError: it has one class or no such layer, or its ``forward`` is not ``head(features(x))`` there,
            of which losses take the parts.
    """
    if network.classes < 2:
        raise FerdError(f"{role}: has {network.classes} class; give a network of two or more")
    device = next(network.parameters()).device
    inputs = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad(), frozen(network):
        logits, parts = network(inputs), network.head(network.features(inputs, layer), layer)
    if logits.isfinite().all() and not same_logits(logits, parts):
        raise FerdError(
            f"{role}: its forward is not head(features(x)) at layer {layer}, of which losses take the parts; "
            "put what it does beside these into stem or classify, a normalisation into normalise_by"
        )


@torch.no_grad()
def diverged(network: Classifier, inputs: Tensor) -> bool:
    """Whether the network, in eval mode, gives logits that are not finite."""
    with frozen(network):
        return not bool(network(inputs).isfinite().all())


@contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
    """Hold networks in eval mode without weight gradients, then put everything back.

    Running statistics stay untouched, and a backward pass costs the input gradient only.
    """
    modes = [(module, module.training) for net in networks for module in net.modules()]
    grads = [(weight, weight.requires_grad) for net in networks for weight in net.parameters()]
    for network in networks:
        network.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for weight, requires_grad in grads:
            weight.requires_grad_(requires_grad)
