"""Random crops, flips and rotations, one draw a sample; crops and flips are differentiable."""

import math

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


@torch.no_grad()
def augment_strongly(images: Tensor, rng: torch.Generator) -> Tensor:
    """DFHL-RS's strong augmentation (Yuan et al. 2024): a crop stretched back, flips, a small rotation.

    Each image keeps 95 to 100 % of either side around its centre, is mirrored half of the time in either
    direction, and turned by −15, 0 or 15 degrees over zeros; bilinear.

    Args:
        images: (B, channels, H, W).
        rng: a generator on the device of ``images``.
    """
    batch, device = len(images), images.device
    kept = 1 - 0.05 * torch.rand(batch, 2, generator=rng, device=device)
    mirrored = torch.rand(batch, 2, generator=rng, device=device) < 0.5
    scale = torch.where(mirrored, -kept, kept)
    angle = math.radians(15) * torch.randint(-1, 2, (batch,), generator=rng, device=device)
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    maps = F.pad(scale.unsqueeze(2) * turn, (0, 1))  # output -> input coordinates, (x, y), no shift
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
