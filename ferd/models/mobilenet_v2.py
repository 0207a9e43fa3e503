"""MobileNet-V2 for 32×32 images (Sandler et al. 2018), with the field's usual key names.

``conv1``, ``bn1``, ``layers.0.conv1``, ..., ``layers.0.shortcut.0``, ``conv2``, ``bn2``, ``linear``.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ferd.models.classifier import Classifier

# (expansion, width, blocks, stride): the strides of the stem and of the second group are 1 at 32×32
GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class Depthwise(nn.Conv2d):
    """A 3×3 a channel; at stride 2 in float32 on a CPU, whose bfloat16 is slow backwards (speed.md)."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__(width, width, 3, stride, padding=1, groups=width, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, width, H, W) -> (B, width, H/stride, W/stride), in the type of the inputs."""
        low = inputs.dtype is torch.bfloat16 or torch.is_autocast_enabled("cpu")
        if self.stride == (1, 1) or inputs.device.type != "cpu" or not low:
            return super().forward(inputs)
        bias = None if self.bias is None else self.bias.float()
        with torch.autocast("cpu", enabled=False):
            out: Tensor = self._conv_forward(inputs.float(), self.weight.float(), bias)
        return out.to(inputs.dtype)


class InvertedResidual(nn.Module):
    """Expand by a 1×1, a 3×3 a channel, project by a 1×1 without activation; shortcut at stride 1."""

    def __init__(self, in_width: int, width: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = expansion * in_width
        self.stride = stride
        self.conv1 = nn.Conv2d(in_width, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = Depthwise(hidden, stride)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        self.folds = [("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")]
        if stride == 1 and in_width != width:
            self.shortcut = nn.Sequential(nn.Conv2d(in_width, width, 1, bias=False), nn.BatchNorm2d(width))
            self.folds.append(("shortcut.0", "shortcut.1"))

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, in_width, H, W) -> (B, width, H/stride, W/stride)."""
        hidden = F.relu(self.bn1(self.conv1(inputs)))
        hidden = F.relu(self.bn2(self.conv2(hidden)))
        out: Tensor = self.bn3(self.conv3(hidden))
        return out + self.shortcut(inputs) if self.stride == 1 else out


class MobileNetV2(Classifier):
    """17 inverted residuals, then a 1×1 convolution to 1,280 channels, which ends the last block."""

    folds = (("conv1", "bn1"), ("conv2", "bn2"))

    def __init__(self, *, classes: int, channels: int) -> None:
        super().__init__(classes, channels)
        self.conv1 = nn.Conv2d(channels, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        layers, in_width = [], 32
        for expansion, width, count, stride in GROUPS:
            for number in range(count):
                layers.append(InvertedResidual(in_width, width, expansion, 1 if number else stride))
                in_width = width
        self.layers = nn.Sequential(*layers)
        self.conv2 = nn.Conv2d(in_width, 1280, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1280)
        self.linear = nn.Linear(1280, classes)

    def stem(self, inputs: Tensor) -> Tensor:
        """First convolution, BatchNorm and ReLU."""
        return F.relu(self.bn1(self.conv1(inputs)))

    def blocks(self) -> Sequence[nn.Module]:
        """The inverted residuals, in order; the last ends with the 1×1 convolution, BatchNorm and ReLU."""
        *blocks, last = self.layers
        return [*blocks, nn.Sequential(last, self.conv2, self.bn2, nn.ReLU())]
