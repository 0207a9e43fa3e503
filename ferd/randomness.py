"""Streams of random numbers: one for each purpose that a seed serves, unrelated to each other."""

import hashlib
from collections.abc import Callable
from typing import TypeVar

import torch

Made = TypeVar("Made")


def stream_seed(seed: int, *purpose: str | int) -> int:
    """A seed for one purpose of ``seed``: the first 32 bits of SHA-256 over both.

    A seed used as it is for two purposes gives both the same numbers: first weights and the start of an
    attack, scaled. 32 bits, since torch's generator on a CPU reads no more of a seed.
    """
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])


def with_weights_of(seed: int, make: Callable[[], Made]) -> Made:
    """What ``make`` gives where all that it draws, its initial weights, is of ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream_seed(seed, "weights"))
        return make()


def stream(seed: int, *purpose: str | int, device: torch.device) -> torch.Generator:
    """The generator on ``device`` for one purpose of ``seed``."""
    return torch.Generator(device).manual_seed(stream_seed(seed, *purpose))
