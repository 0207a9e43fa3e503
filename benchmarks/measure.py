"""Calls in turn, A B A B: medians, and the peak of memory of each."""

import ctypes
import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

Call = Callable[[], object]


@dataclass(frozen=True)
class Measured:
    """The median of a call in milliseconds, and its peak of memory in MB above what was there (or None)."""

    milliseconds: float
    peak_mb: float | None


def in_turn(calls: Sequence[Call], repeats: int, device: torch.device) -> list[Measured]:
    """Each once, for memory and to warm up; then A B ... A B ..., ``repeats`` times each."""
    peaks = [peak_mb(call, device) for call in calls]
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, taken in zip(calls, seconds, strict=True):
            taken.append(seconds_of(call, device))
    return [Measured(1000 * median(taken), peak) for taken, peak in zip(seconds, peaks, strict=True)]


def seconds_of(call: Call, device: torch.device) -> float:
    """Of the clock on a GPU or with several threads; else of the processor.

    A single thread's processor time is its work, also where other people's processes share the core.
    """
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    _synchronise(device)
    started = clock()
    call()
    _synchronise(device)
    return clock() - started


def peak_mb(call: Call, device: torch.device) -> float | None:
    """The most that a call adds to the memory in use: the GPU's allocations, or on Linux resident pages."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    if not sys.platform.startswith("linux"):
        call()
        return None
    ctypes.CDLL(None).malloc_trim(0)  # freed pages go back, so that they are counted when they are used again
    Path("/proc/self/clear_refs").write_text("5", "utf-8")  # the high-water mark begins anew
    resident_before = resident_mb("VmRSS")
    call()
    return resident_mb("VmHWM") - resident_before


def resident_mb(key: str) -> float:
    """A figure of this process in MB: VmRSS is resident now, VmHWM was at most (Linux)."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(f"/proc/self/status has no {key}")


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
