"""Random crops and flips, one draw a sample, differentiable."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ferd.config import Augmentation


def augment(images: Tensor, settings: Augmentation, rng: torch.Generator) -> Tensor:
    """Shift each image by up to ``padding`` pixels over zeros, and mirror half of them.

    Args:
        images: (B, channels, H, W).
        rng: a generator on the device of ``images``.

    Returns:
        Images of the same shape; gradients flow back to ``images``.
    """
    batch, _, height, width = images.shape
    pad, device = settings.padding, images.device
    offsets = torch.randint(0, 2 * pad + 1, (2, batch, 1), generator=rng, device=device)
    rows = offsets[0] + torch.arange(height, device=device)
    columns = offsets[1] + torch.arange(width, device=device)
    if settings.flip:
        mirrored = torch.rand(batch, 1, generator=rng, device=device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = F.pad(images, (pad, pad, pad, pad))
    samples = torch.arange(batch, device=device).view(-1, 1, 1)
    return padded.movedim(1, -1)[samples, rows.unsqueeze(2), columns.unsqueeze(1)].movedim(-1, 1)
