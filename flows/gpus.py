"""This machine's GPUs, given to the processes of a flow so that each has as few of them as can be."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tasks import slots

DRIVER = Path("/proc/driver/nvidia")  # where Linux has one loaded


class Gpus:
    """The GPUs that this process sees: all, or those that ``CUDA_VISIBLE_DEVICES`` names."""

    def __init__(self) -> None:
        count = torch.cuda.device_count()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
        self._processes = dict.fromkeys(visible.split(",")[:count], 0)
        self._lock = threading.Lock()

    @contextmanager
    def one(self) -> Iterator[dict[str, str]]:
        """The environment of a process that is given the least busy GPU; empty where there is no choice."""
        if len(self._processes) < 2:
            yield {}
            return
        with self._lock:
            gpu = min(self._processes, key=self._processes.__getitem__)
            self._processes[gpu] += 1
        try:
            number, count = list(self._processes).index(gpu), len(self._processes)
            yield {"CUDA_VISIBLE_DEVICES": gpu, slots.SHARE: f"{number}/{count}"}
        finally:
            with self._lock:
                self._processes[gpu] -= 1


def machine() -> str:
    """What stages compute on here, in words; a GPU that is here in vain is told of."""
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        return f"{count} GPU{'s' * (count > 1)}"
    if DRIVER.exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        return "the CPU: torch cannot use the GPU here, see `python -c 'import torch; torch.cuda.init()'`"
    return "the CPU"
