"""TensorFloat-32: on a GPU, what PyTorch makes of float32 convolutions unless it is told not to."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def tf32_convolutions(allowed: bool) -> Iterator[None]:
    """Float32 convolutions in TensorFloat-32 (10 bits of mantissa) or not, matrix products never.

    For a block, or as a decorator of a function; the caller's own setting holds again after it.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32, matmul.allow_tf32 = allowed, False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before
