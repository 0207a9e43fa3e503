"""Weights that come with the package; how each was made and what it withstands is in docs/evidence/."""

from importlib import resources
from pathlib import Path

from ferd.checkpoint import load_classifier
from ferd.models.classifier import Classifier

CIFAR10_TEACHER = Path(str(resources.files(__name__))) / "cifar10-wrn-16-4.safetensors"


def cifar10_teacher() -> Classifier:
    """A robust WRN-16-4 for CIFAR-10 (2.7 M parameters, ε = 8/255), frozen in eval mode."""
    return load_classifier(CIFAR10_TEACHER, classes=10, channels=3)
