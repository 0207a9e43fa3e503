"""WideResNets for 32×32 images (Zagoruyko and Komodakis 2016), with the field's usual key names.

``conv1``, ``block1.layer.0.bn1``, ..., ``block1.layer.0.convShortcut``, ..., ``bn1``,
``fc``.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ferd.models.classifier import Classifier


class WideBlock(nn.Module):
    """BatchNorm and ReLU before each 3×3 convolution; the shortcut branches off behind the first ReLU."""

    folds = (("conv1", "bn2"),)

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_width)
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        if in_width != width:
            self.convShortcut = nn.Conv2d(in_width, width, 1, stride, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, in_width, H, W) -> (B, width, H/stride, W/stride)."""
        active = F.relu(self.bn1(inputs))
        shortcut = self.convShortcut(active) if hasattr(self, "convShortcut") else inputs
        residual: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return residual + shortcut


class Group(nn.Module):
    """Blocks of one width, under the name ``layer``."""

    def __init__(self, in_width: int, width: int, stride: int, blocks: int) -> None:
        super().__init__()
        first = WideBlock(in_width, width, stride)
        self.layer = nn.Sequential(first, *(WideBlock(width, width, 1) for _ in range(blocks - 1)))


class WideResNet(Classifier):
    """Three groups of (depth − 4)/6 blocks, of 16, 32 and 64 times ``widen`` channels."""

    def __init__(self, depth: int, widen: int, *, classes: int, channels: int) -> None:
        super().__init__(classes, channels)
        blocks, widths = (depth - 4) // 6, [16 * widen, 32 * widen, 64 * widen]
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.block1 = Group(16, widths[0], 1, blocks)
        self.block2 = Group(widths[0], widths[1], 2, blocks)
        self.block3 = Group(widths[1], widths[2], 2, blocks)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.fc = nn.Linear(widths[2], classes)

    @property
    def linear(self) -> nn.Linear:  # type: ignore[override]
        """The last layer, ``fc`` among the weights."""
        return self.fc

    def stem(self, inputs: Tensor) -> Tensor:
        """First convolution."""
        features: Tensor = self.conv1(inputs)
        return features

    def blocks(self) -> Sequence[nn.Module]:
        """All residual blocks, group by group; the last ends with BatchNorm and ReLU."""
        *blocks, last = (block for group in (self.block1, self.block2, self.block3) for block in group.layer)
        return [*blocks, nn.Sequential(last, self.bn1, nn.ReLU())]
