"""Weights that other programs wrote, under the field's usual key names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ferd.config import Normalisation
from ferd.errors import FerdError
from ferd.models.classifier import Classifier
from ferd.models.registry import build

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "model.")
UNUSED = ("sub_block1.",)  # a group that WideResNets of the TRADES authors' code hold and never run
SHOWN = 3  # keys that an error names


def load_foreign(
    path: Path, name: str, *, classes: int, channels: int, normalisation: Normalisation | None = None
) -> Classifier:
    """A network of the registry with the weights of a .safetensors, .pt or .pth file, frozen in eval mode.

    The weights may lie in a dict under one of ``WRAPPERS``, and their names may begin with ``module.``.
    Half-precision weights become float32; what begins with a name of ``UNUSED`` is left out.

    Args:
        normalisation: put inside the network, which takes images in [0, 1] then like all others.

    Raises:
        FerdError: the file is missing, damaged or holds no weights, or they do not fit the network; or
            the normalisation is not one of its channels.
    """
    network = build(name, classes=classes, channels=channels)
    tensors = _unwrapped(_read(path), path)
    expected = network.state_dict()
    for key in expected.keys() - tensors.keys():
        if key.endswith("num_batches_tracked"):  # counts batches; older programs did not keep it
            tensors[key] = expected[key]
    _refuse(path, name, "lacks", expected.keys() - tensors.keys())
    _refuse(path, name, "has more than", tensors.keys() - expected.keys())
    other = {key for key in expected if expected[key].shape != tensors[key].shape}
    if other in ({"linear.weight", "linear.bias"}, {"fc.weight", "fc.bias"}):
        found = len(tensors[next(key for key in other if key.endswith("bias"))])
        raise FerdError(f"{path}: {name} of {found} classes, where {classes} are needed; give another one")
    _refuse(path, name, "has other shapes than", other)
    network.load_state_dict({key: value.to(expected[key].dtype) for key, value in tensors.items()})
    if normalisation:
        if len(normalisation.mean) != channels:
            raise FerdError(
                f"{path}: normalisation has {len(normalisation.mean)} channels where images have {channels}; "
                "give one mean and one std a channel"
            )
        network.normalise_by(torch.tensor(normalisation.mean), torch.tensor(normalisation.std))
    return network.eval().requires_grad_(False)


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise FerdError(f"{path}: no such weights; correct the path") from None
    except Exception as error:  # a damaged pickle fails by whatever it came upon: KeyError, IndexError, ...
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FerdError(f"{path}: cannot be read as plain weights ({reason}); fetch it again") from None


def _unwrapped(content: Any, path: Path) -> dict[str, Tensor]:
    """Weights by name, out of their wrapping and without prefixes."""
    while isinstance(content, Mapping):
        wrapper = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if wrapper is None:
            break
        content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise FerdError(f"{path}: holds no dict of weights; save the network's state_dict()")
    tensors = dict(content)
    for prefix in PREFIXES:
        if tensors and all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return {key: value for key, value in tensors.items() if not key.startswith(UNUSED)}


def _refuse(path: Path, name: str, how: str, keys: set[str]) -> None:
    if keys:
        some = ", ".join(sorted(keys)[:SHOWN])
        more = f" and {len(keys) - SHOWN} others" if len(keys) > SHOWN else ""
        raise FerdError(f"{path}: {how} {name}: {some}{more}; name the network that it was saved from")
