"""Small seeded networks and images that the tests of the method share."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.equality import digits_teacher
from ferd.config import Data, ThreatModel
from ferd.dataset_readers import load_splits
from ferd.datasets import Images
from ferd.models.classifier import Classifier
from ferd.models.registry import build

torch.set_num_threads(1)


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def threat() -> ThreatModel:
    return ThreatModel(norm="linf", epsilon=0.1, step_size=0.025, steps=5)


@pytest.fixture
def images() -> Tensor:
    """(16, 1, 8, 8) in [0, 1]."""
    return torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels() -> Tensor:
    """(16,) of 10 classes."""
    return torch.arange(16) % 10


@pytest.fixture
def make_network() -> Callable[..., Classifier]:
    """A trainable ResNet-8 whose running statistics are those of some images, in eval mode."""

    def make(channels: int = 1, classes: int = 10, seed: int = 0) -> Classifier:
        network = build("resnet8-w8", classes=classes, channels=channels, seed=seed)
        source = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for _ in range(5):
                network.train()(torch.rand(32, channels, 8, 8, generator=source))
            network.linear.weight.mul_(8)  # predictions far from uniform
        return network.eval()

    return make


@pytest.fixture
def teacher(make_network: Callable[..., Classifier]) -> Classifier:
    """A network in eval mode with frozen weights."""
    return make_network().requires_grad_(False)


@pytest.fixture
def untouched() -> Callable[[nn.Module], AbstractContextManager[None]]:
    """Weights, statistics, modes and requires_grad are the same after the block as before it."""

    def facts(network: nn.Module) -> list[bool]:
        modes = [module.training for module in network.modules()]
        return modes + [weight.requires_grad for weight in network.parameters()]

    @contextmanager
    def check(network: nn.Module) -> Iterator[None]:
        before = facts(network)
        state = {key: value.clone() for key, value in network.state_dict().items()}
        yield
        assert facts(network) == before
        for key, value in network.state_dict().items():
            assert torch.equal(value, state[key]), key
        assert all(weight.grad is None for weight in network.parameters())

    return check


@pytest.fixture(scope="session")
def digits() -> dict[str, Images]:
    """100 training, 5 validation and 2 test digits a class."""
    data = Data(dataset="digits", train_per_class=100, validation_per_class=5, test_per_class=2)
    return load_splits(data, None)


@pytest.fixture(scope="session")
def trained(digits: dict[str, Images]) -> Classifier:
    """A ResNet-8 after three epochs of PGD-AT on digits: right on most, robust on some."""
    return digits_teacher(digits["train"], torch.device("cpu")).requires_grad_(False)


@pytest.fixture
def regular_file(tmp_path: Path) -> Path:
    """A path that can hold nothing: below it every write fails, for every user."""
    path = tmp_path / "file"
    path.write_text("not a folder")
    return path
