"""Networks by name."""

from collections.abc import Callable
from functools import partial

from ferd.errors import FerdError
from ferd.models.classifier import Classifier
from ferd.models.mobilenet_v2 import MobileNetV2
from ferd.models.preact_resnet import PreActResNet
from ferd.models.resnet import ResNet
from ferd.models.wide_resnet import WideResNet
from ferd.randomness import with_weights_of

NETWORKS: dict[str, Callable[..., Classifier]] = {
    "resnet8-w8": partial(ResNet, (8, 16, 32), 1),
    "resnet8-w16": partial(ResNet, (16, 32, 64), 1),
    "resnet8-w32": partial(ResNet, (32, 64, 128), 1),
    "resnet20-w16": partial(ResNet, (16, 32, 64), 3),
    "resnet18": partial(ResNet, (64, 128, 256, 512), 2),
    "preact_resnet18": partial(PreActResNet, (2, 2, 2, 2)),
    "preact_resnet34": partial(PreActResNet, (3, 4, 6, 3)),
    "mobilenet_v2": MobileNetV2,
    "wrn-16-1": partial(WideResNet, 16, 1),
    "wrn-16-4": partial(WideResNet, 16, 4),
    "wrn-34-10": partial(WideResNet, 34, 10),
    "wrn-34-20": partial(WideResNet, 34, 20),
}


def build(name: str, *, classes: int, channels: int, seed: int = 0) -> Classifier:
    """A freshly initialised network; the same seed gives the same weights.

    Raises:
        FerdError: no network has that name.
    """
    if name not in NETWORKS:
        known = ", ".join(sorted(NETWORKS))
        raise FerdError(f"network {name!r} is unknown; choose from {known}, or put yours into NETWORKS")
    return with_weights_of(seed, partial(NETWORKS[name], classes=classes, channels=channels))
