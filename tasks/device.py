"""What a stage computes on, and how exactly."""

import torch


def device_with(threads: int) -> torch.device:
    """The GPU where there is one, else the CPU with so many threads (part of what is reproduced).

    float32 is float32: TensorFloat-32, which cuDNN would use for convolutions, is switched off.
    """
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device(device_type())


def device_name(device: torch.device) -> str:
    """A GPU's model, or ``cpu``: what a stage's cost names, and a plan compares."""
    return torch.cuda.get_device_name() if device.type == "cuda" else "cpu"


def device_type() -> str:
    """``cuda`` where there is a GPU, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"
