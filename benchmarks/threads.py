"""How stages side by side and threads within them share the cores: attack iterations a second of them all.

``python -m benchmarks.threads``: each arrangement in turn, twice over, with and without OpenMP's spinning.
"""

import os
import subprocess
import sys
import time
from statistics import mean

import torch

from ferd.models.classifier import frozen
from ferd.models.registry import build
from tasks.command import command_line

SECONDS = 8
ARRANGEMENTS = ((2, 1), (1, 2), (2, 2))  # processes, threads in each
SPINS = {"settled (GOMP_SPINCOUNT=0)": "0", "OpenMP's default (300000)": "300000"}


def iterations(threads: int) -> float:
    """Attack iterations a second on 32 images of 32×32, from when the clock strikes ``SECONDS``."""
    torch.set_num_threads(threads)
    network = build("resnet8-w32", classes=10, channels=3).eval()
    inputs = torch.rand(32, 3, 32, 32)
    with frozen(network):
        _iterate(network, inputs)
        time.sleep(SECONDS - time.time() % SECONDS)  # all processes begin together
        started, done = time.monotonic(), 0
        while time.monotonic() - started < SECONDS:
            _iterate(network, inputs)
            done += 1
        return done / (time.monotonic() - started)


def _iterate(network: torch.nn.Module, inputs: torch.Tensor) -> None:
    attacked = inputs.clone().requires_grad_()
    torch.autograd.grad(network(attacked).sum(), attacked)


def together(processes: int, threads: int, spin: str) -> float:
    """The sum over processes that run at the same time."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    environment["GOMP_SPINCOUNT"] = spin
    command = [sys.executable, "-m", "benchmarks.threads", str(threads)]
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    return sum(float(process.communicate()[0]) for process in running)


def main() -> None:
    """Measure all arrangements, or, given a number of threads, be one of their processes."""
    parser = command_line(__doc__)
    parser.add_argument("threads", nargs="?", type=int, help="be one process with so many threads")
    threads = parser.parse_args().threads
    if threads:
        print(iterations(threads))
        return
    found: dict[tuple[int, int, str], list[float]] = {}
    for _ in range(2):
        for processes, threads in ARRANGEMENTS:
            for name, spin in SPINS.items():
                rate = together(processes, threads, spin)
                found.setdefault((processes, threads, name), []).append(rate)
    for (processes, threads, name), rates in found.items():
        shown = ", ".join(f"{rate:.1f}" for rate in rates)
        print(f"{processes} × {threads} threads, {name}: {mean(rates):.1f} iterations a second ({shown})")


if __name__ == "__main__":
    main()
