"""TensorFloat-32: on a GPU, what PyTorch makes of float32 convolutions unless it is told not to."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def tf32_convolutions(allowed: bool) -> Iterator[None]:
    """Float32 convolutions in TensorFloat-32 (10 bits of mantissa) or not, matrix products never.

    For a block, or as a decorator of a function; the caller's own setting holds again after it.
    """
    put_back = _allow(allowed)
    try:
        yield
    finally:
        put_back()


def _allow(allowed: bool) -> Callable[[], None]:
    """Set both; -> what sets them back.

    PyTorch has older and newer names for this, and refuses to read the older ones where somebody has set the
    newer: by those that the caller uses, so that both stay readable to the caller.
    """
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    try:
        older = cudnn.allow_tf32, torch.get_float32_matmul_precision()
    except RuntimeError:
        newer = cudnn.conv.fp32_precision, matmul.fp32_precision

        def put_back_newer() -> None:
            cudnn.conv.fp32_precision, matmul.fp32_precision = newer

        cudnn.conv.fp32_precision, matmul.fp32_precision = "tf32" if allowed else "ieee", "ieee"
        return put_back_newer

    def put_back() -> None:
        cudnn.allow_tf32 = older[0]
        torch.set_float32_matmul_precision(older[1])

    cudnn.allow_tf32 = allowed
    torch.set_float32_matmul_precision("highest")
    return put_back
