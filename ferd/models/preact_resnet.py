"""Pre-activation ResNets for small images (He et al. 2016b), with the field's usual key names.

``conv1``, ``layer1.0.bn1``, ``layer1.0.conv1``, ..., ``layer2.0.shortcut.0``, ``bn``, ``linear``.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ferd.models.classifier import Classifier


class PreActBlock(nn.Module):
    """BatchNorm and ReLU before each 3×3 convolution; the shortcut branches off behind the first ReLU."""

    folds = (("conv1", "bn2"),)

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_width)
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        if stride != 1 or in_width != width:
            self.shortcut = nn.Sequential(nn.Conv2d(in_width, width, 1, stride, bias=False))

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, in_width, H, W) -> (B, width, H/stride, W/stride)."""
        active = F.relu(self.bn1(inputs))
        shortcut = self.shortcut(active) if hasattr(self, "shortcut") else inputs
        residual: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return residual + shortcut


class PreActResNet(Classifier):
    """Four groups of 64, 128, 256 and 512 channels; each after the first halves the image."""

    def __init__(self, blocks: Sequence[int], *, classes: int, channels: int) -> None:
        super().__init__(classes, channels)
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        in_width = 64
        for number, (width, count) in enumerate(zip((64, 128, 256, 512), blocks, strict=True)):
            first = PreActBlock(in_width, width, 2 if number else 1)
            rest = [PreActBlock(width, width, 1) for _ in range(count - 1)]
            self.add_module(f"layer{number + 1}", nn.Sequential(first, *rest))
            in_width = width
        self.bn = nn.BatchNorm2d(in_width)
        self.linear = nn.Linear(in_width, classes)

    def stem(self, inputs: Tensor) -> Tensor:
        """First convolution."""
        features: Tensor = self.conv1(inputs)
        return features

    def blocks(self) -> Sequence[nn.Module]:
        """All residual blocks, group by group; the last ends with BatchNorm and ReLU."""
        groups = (self.get_submodule(f"layer{number}") for number in range(1, 5))
        *blocks, last = (block for group in groups for block in group.children())
        return [*blocks, nn.Sequential(last, self.bn, nn.ReLU())]
