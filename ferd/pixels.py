"""Images as bytes and as numbers."""

import torch
from torch import Tensor


def to_uint8(images: Tensor) -> Tensor:
    """[0, 1] float -> 0 ... 255, rounded; any shape. Outside [0, 1] undefined."""
    return (images * 255).round().to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """0 ... 255 uint8 -> [0, 1] float32."""
    return images.to(torch.float32) / 255


def kind_of(found: object) -> str:
    """Of images their shape and type, for a message; of anything else what it is."""
    if isinstance(found, Tensor):
        return f"{tuple(found.shape)} {found.dtype}"
    return f"a {type(found).__name__}"
