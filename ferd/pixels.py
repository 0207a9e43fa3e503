"""Images as bytes and as numbers."""

import torch
from torch import Tensor

from ferd.errors import FerdError


def to_uint8(images: Tensor) -> Tensor:
    """[0, 1] float -> 0 ... 255, rounded; any shape.

    Raises:
        FerdError: some are outside [0, 1], or no numbers.
    """
    rounded = (images * 255).round()
    if not ((rounded >= 0) & (rounded <= 255)).all():
        raise FerdError(
            f"images from {images.min():.3g} to {images.max():.3g}, where they must be in [0, 1]; divide "
            "bytes by 255, undo a normalisation"
        )
    return rounded.to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """0 ... 255 uint8 -> [0, 1] float32."""
    return images.to(torch.float32) / 255


def kind_of(found: object) -> str:
    """Of images their shape, type and device, for a message; of anything else what it is."""
    if isinstance(found, Tensor):
        place = "" if found.device.type == "cpu" else f" on {found.device}"
        return f"{tuple(found.shape)} {found.dtype}{place}"
    return f"a {type(found).__name__}"
