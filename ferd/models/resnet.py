"""ResNets for small images (He et al. 2016), with the field's usual key names.

``conv1``, ``bn1``, ``layer1.0.conv1``, ..., ``layer2.0.shortcut.0``, ``linear``.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ferd.models.classifier import Classifier, in_order_of


class Shortcut(nn.Conv2d):
    """1×1 convolution; of large maps it takes every stride-th pixel first, which is the same function.

    With channels last and fewer than 16 of them, oneDNN's gradient of the weights of a strided one writes
    beyond its memory for maps of 48×48 or more (torch 2.14.1 on a CPU with AVX-512).
    """

    FEWEST_CHANNELS, LARGEST_MAP = 16, 32

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, K, H, W) -> (B, K', H/stride, W/stride)."""
        if self.in_channels >= self.FEWEST_CHANNELS or max(inputs.shape[-2:]) <= self.LARGEST_MAP:
            return super().forward(inputs)
        down, across = self.stride
        return F.conv2d(inputs[:, :, ::down, ::across], self.weight, self.bias)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut; ReLU after the sum.

    Args:
        small_maps: whether its maps have so few pixels that ``fast_layout`` treats it apart.
    """

    def __init__(self, in_width: int, width: int, stride: int, small_maps: bool = False) -> None:
        super().__init__()
        self.small_maps = small_maps
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_width != width:
            self.shortcut = nn.Sequential(
                Shortcut(in_width, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )
        self.folds = [("conv1", "bn1"), ("conv2", "bn2")]
        if len(self.shortcut):
            self.folds.append(("shortcut.0", "shortcut.1"))

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, in_width, H, W) -> (B, width, H/stride, W/stride)."""
        if self.small_maps:
            inputs = in_order_of(self.conv1.weight, inputs)
        hidden = F.relu(self.bn1(self.conv1(inputs)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.shortcut(inputs))


class ResNet(Classifier):
    """One group of blocks a width; each group after the first halves the image.

    Args:
        widths: channels of each group; ``layer1``, ``layer2``, ... in the weights.
        blocks_per_group: 1 gives ResNet-8 over three groups, 2 gives ResNet-18 over four.
    """

    def __init__(self, widths: Sequence[int], blocks_per_group: int, *, classes: int, channels: int) -> None:
        super().__init__(classes, channels)
        self.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.folds = [("conv1", "bn1")]
        self._groups = [f"layer{number}" for number in range(1, len(widths) + 1)]
        in_width = widths[0]
        for name, width in zip(self._groups, widths, strict=True):
            stride = 1 if name == "layer1" else 2
            small = name == "layer4"  # 4×4 where images are 32×32
            group = [BasicBlock(in_width, width, stride, small)]
            group += [BasicBlock(width, width, 1, small) for _ in range(blocks_per_group - 1)]
            self.add_module(name, nn.Sequential(*group))
            in_width = width
        self.linear = nn.Linear(in_width, classes)

    def stem(self, inputs: Tensor) -> Tensor:
        """First convolution, BatchNorm and ReLU."""
        return F.relu(self.bn1(self.conv1(inputs)))

    def blocks(self) -> Sequence[nn.Module]:
        """All residual blocks, group by group."""
        return [block for name in self._groups for block in self.get_submodule(name).children()]
