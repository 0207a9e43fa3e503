"""What a stage took: time, memory, hardware and versions."""

import os
import platform
import resource
import sys
from importlib import metadata
from pathlib import Path

import torch

from ferd.files import write_json
from tasks.device import device_name
from tasks.process import Progress


def write(path: Path, progress: Progress, device: torch.device) -> None:
    """Time, memory, hardware and versions, in a file of their own: results compare bit for bit."""
    write_json(
        path,
        {
            "seconds": round(progress.seconds, 1),
            "processor_seconds": round(progress.processor_seconds, 1),
            "peak_memory_mb": peak_memory_mb(device),
            **({"resumed": True} if progress.resumed else {}),  # then the seconds are the last attempt's
            "device": device_name(device),
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            **{name: metadata.version(name) for name in ("numpy", "pyautoattack", "scikit-learn")},
        },
    )


def peak_memory_mb(device: torch.device) -> int:
    """MB at the process's peak: of tensors on a GPU, else of resident memory."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated() / 1e6)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)


def processor() -> str:
    """The processor's model and the instructions that torch uses on it: rounding depends on both."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(models or [platform.processor()])[0]}, {torch.backends.cpu.get_cpu_capability()}"
