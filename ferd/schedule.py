"""Learning rates over a training."""

import math

from torch.optim import Optimizer


def set_cosine_rate(optimiser: Optimizer, initial: float, done: float) -> float:
    """½·initial·(1 + cos π·done): from ``initial`` at ``done`` = 0 to 0 at 1; -> the rate set."""
    rate = initial * 0.5 * (1 + math.cos(math.pi * done))
    for group in optimiser.param_groups:
        group["lr"] = rate
    return rate
