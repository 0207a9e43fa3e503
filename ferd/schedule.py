"""Learning rates over a training."""

import math

from torch.optim import Optimizer


def set_cosine_rate(optimiser: Optimizer, initial: float, done: float, warm_up: float = 0.0) -> float:
    """½·initial·(1 + cos π·done): from ``initial`` at ``done`` = 0 to 0 at 1; -> the rate set.

    Over the first ``warm_up`` of the training it rises linearly to the cosine.
    """
    rate = initial * 0.5 * (1 + math.cos(math.pi * done))
    if done < warm_up:
        rate *= done / warm_up
    for group in optimiser.param_groups:
        group["lr"] = rate
    return rate
