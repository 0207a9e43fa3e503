"""Weights that come with the package; how each was made and what it withstands is in docs/evidence/."""

from importlib import resources
from pathlib import Path

from ferd.checkpoint import load_classifier
from ferd.models.classifier import Classifier

CIFAR10_TEACHER = Path(str(resources.files(__name__))) / "cifar10-resnet14.safetensors"


def cifar10_teacher() -> Classifier:
    """A robust ResNet-14 for CIFAR-10 (2.8 M parameters, ε = 8/255), frozen in eval mode."""
    return load_classifier(CIFAR10_TEACHER, classes=10, channels=3)
