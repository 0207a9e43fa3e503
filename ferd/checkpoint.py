"""Weights and resumable state on disk: written whole or not at all, refused on mismatch."""

import io
import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ferd.errors import FerdError
from ferd.files import atomic_write
from ferd.models.classifier import Classifier, shapes
from ferd.models.registry import build

FORMAT = "ferd-checkpoint/1"
NORMALISATION = ("input_mean", "input_std")  # weights that any network may have
PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)


def save_classifier(path: Path | str, network: Classifier, name: str, **about: Any) -> None:
    """Write weights with what is needed to rebuild the network and to refuse a wrong one.

    Args:
        name: the network's name in the registry.
        about: further facts, as JSON values; equal facts and weights give equal bytes.

    Raises:
        FerdError: no network has that name, or it has other weights; a fact is no JSON value or has the name
            of one that is written anyway; or the file cannot be written.
    """
    named = build(name, classes=network.classes, channels=network.channels)
    needed, there = shapes(named.state_dict()), shapes(network.state_dict())
    if {name: shape for name, shape in there.items() if name not in NORMALISATION} != needed:
        raise FerdError(f"{path}: the network is no {name!r}, whose weights have other names or shapes")
    own = {"format": FORMAT, "network": name, "classes": network.classes, "channels": network.channels}
    if taken := sorted(own.keys() & about.keys()):
        raise FerdError(f"{path}: the header has its own {taken[0]}; give that fact another name")
    try:
        header = json.dumps(own | about, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise FerdError(f"{path}: facts about a checkpoint are JSON values ({error})") from None
    tensors = {  # each a copy: two names may share one
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in network.state_dict().items()
    }
    with atomic_write(Path(path)) as part:
        save_file(tensors, part, metadata={"ferd": header})


def read_facts(path: Path, *needed: str) -> dict[str, Any]:
    """The facts saved with a checkpoint, without its weights.

    Args:
        needed: facts that must be there beside those that every checkpoint has.

    Raises:
        FerdError: the file is missing, cut off, not a checkpoint of this project, or lacks a fact.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError:
        raise FerdError(f"{path}: no such checkpoint; run the stage that makes it") from None
    except (SafetensorError, OSError) as error:
        if Path(path).is_dir():
            raise FerdError(f"{path}: is a folder; give a checkpoint's file") from None
        raise FerdError(
            f"{path}: cut off or not a safetensors file ({error}); delete it and make it again"
        ) from None
    try:
        facts = json.loads(metadata.get("ferd", "{}"))
    except ValueError:
        facts = {}
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise FerdError(
            f"{path}: written by another program (no {FORMAT!r} header); use a checkpoint made by "
            "this project"
        )
    for key in ("network", "classes", "channels", *needed):
        if key not in facts:
            raise FerdError(f"{path}: its header lacks {key!r}; use a checkpoint that a stage made")
    return facts


def load_classifier(path: Path | str, **expected: Any) -> Classifier:
    """The network of a checkpoint, in eval mode with frozen weights.

    Args:
        expected: facts that must hold, e.g. ``classes=10``.

    Raises:
        FerdError: as ``read_facts``; or a fact differs, or the weights do not fit the network.
    """
    facts = read_facts(path := Path(path))
    for key, value in expected.items():
        if facts.get(key) != value:
            raise FerdError(
                f"{path}: {key} is {facts.get(key)!r} but {value!r} is needed; it belongs to "
                "another benchmark or to other settings"
            )
    try:
        network = build(facts["network"], classes=facts["classes"], channels=facts["channels"])
    except FerdError as error:
        raise FerdError(f"{path}: {error}") from None
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if tensors.keys() >= {*NORMALISATION}:
        network.normalise_by(*(tensors[name] for name in NORMALISATION))
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise FerdError(f"{path}: weights do not fit {facts['network']}: {reason}") from None
    return network.eval().requires_grad_(False)


def save_state(path: Path | str, state: Mapping[str, Any]) -> None:
    """Write a resumable state of tensors and plain values.

    Raises:
        FerdError: it holds something else, which ``load_state`` would refuse; or it cannot be written.
    """
    _require_plain(dict(state), "state")
    with atomic_write(Path(path)) as part:
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)  # in memory first: torch reports a full disk as a RuntimeError
        part.write_bytes(buffer.getvalue())


def _require_plain(value: Any, where: str) -> None:
    """Of the very types that ``torch.load`` takes, no kind of them."""
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            _require_plain(key, f"{where}: the key {key!r}")
            _require_plain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple, set):
        for number, item in enumerate(value):
            _require_plain(item, f"{where}[{number}]")
    elif not isinstance(value, Tensor) and type(value) not in PLAIN:
        raise FerdError(
            f"{where} is a {type(value).__module__}.{type(value).__qualname__}, which cannot be read back; "
            "make it a tensor, a number or a string"
        )


def load_state(path: Path | str) -> dict[str, Any] | None:
    """The state at ``path``; None where there is none.

    Raises:
        FerdError: the file cannot be read as a state.
    """
    if not Path(path).exists():
        return None
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises many types here: pickle, zip, EOF, runtime
        raise FerdError(
            f"{path}: unreadable resume state ({type(error).__name__}); delete it to begin anew"
        ) from None
    if not isinstance(state, dict):
        raise FerdError(
            f"{path}: holds no resume state, but a {type(state).__name__}; delete it to begin anew"
        )
    return state
