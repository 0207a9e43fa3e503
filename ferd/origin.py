"""What a saved state belongs to, by hashes: a run goes on with nothing but what it was begun with."""

import hashlib
from collections.abc import Mapping

from torch import Tensor, nn

from ferd.datasets import Images
from ferd.errors import FerdError


def hash_of(*tensors: Tensor) -> str:
    """Of their numbers, in whatever order they lie in memory."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def hash_of_weights(network: nn.Module) -> str:
    """Of all weights and buffers."""
    return hash_of(*network.state_dict().values())


def hash_of_images(data: Images) -> str:
    """Of images and labels."""
    return hash_of(data.images, data.labels)


def origin_of_attacks(network: nn.Module, data: Images, seed: int, batch_size: int) -> dict[str, str]:
    """Of attacks on a network, whose random numbers are a batch's own."""
    return {
        "weights": hash_of_weights(network),
        "images": hash_of_images(data),
        "seed": str(seed),
        "batch_size": str(batch_size),
    }


def require_same(saved: object, here: Mapping[str, str], of: str = "what the state was saved with") -> None:
    """Refuse a state, or results, of something else than there is here.

    Args:
        saved: what the state has as its origin.
        here: a hash, or a name, by what it is of.
        of: what that was, in the message.

    Raises:
        FerdError: says what is another.
    """
    if not isinstance(saved, Mapping):
        raise FerdError("the state is of another version; begin anew")
    for what, value in here.items():
        if saved.get(what) != value:
            raise FerdError(f"{what}: not {of}; give that, or begin anew")
