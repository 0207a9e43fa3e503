"""``make bench``: every hot step beside its plain reference, in turn; first that both compute the same.

Rows go to ``benchmarks/results.json``: {hardware, step, size, precision, reference_ms, ours_ms, ratio,
peak_mb}; what other hardware has measured stays.
"""

import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.equality import Check, checks_of_steps, checks_on_real_images, real_images
from benchmarks.measure import in_turn
from benchmarks.steps import GPU_SIZES, GPU_STEPS, SIZES, STEPS, Bench, Size
from ferd.files import write_json
from ferd.tf32 import tf32_convolutions
from tasks.command import command_line
from tasks.cost_record import processor
from tasks.device import device_with

RESULTS = Path(__file__).with_name("results.json")
KEY = ("hardware", "step", "size", "precision", "convolutions")  # the last on a GPU alone


def measured(name: str, size: Size, repeats: int, folder: Path, device: torch.device) -> list[dict[str, Any]]:
    """A row a precision of one step at one size, all measured in turn with one reference."""
    step = GPU_STEPS[name]
    plain = step.reference(Bench(size, "float32", folder, device))
    as_the_library = tf32_convolutions(False)  # which some steps, called by themselves, are not told
    ours = [
        as_the_library(step.ours(Bench(size, precision, folder, device))) for precision in step.precisions
    ]
    reference, *found = in_turn([plain, *ours], repeats, device)
    return [
        {
            "hardware": hardware(device),
            "step": name,
            "size": size.name,
            "precision": precision,
            **({"convolutions": _convolutions()} if device.type == "cuda" else {}),
            "reference_ms": round(reference.milliseconds / step.count(size), 1),
            "ours_ms": round(mine.milliseconds / step.count(size), 1),
            "ratio": round(reference.milliseconds / mine.milliseconds, 2),
            "reference_peak_mb": reference.peak_mb and round(reference.peak_mb),
            "peak_mb": mine.peak_mb and round(mine.peak_mb),
        }
        for precision, mine in zip(step.precisions, found, strict=True)
    ]


def _convolutions() -> str:
    """The type that a GPU computes the reference's convolutions in; ours are as the precision says."""
    return "tf32" if torch.backends.cudnn.allow_tf32 else "float32"


def keep(rows: Sequence[dict[str, Any]]) -> None:
    """Write rows in place of those of the same hardware, step, size and precision."""
    before = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else []
    kept = {tuple(row.get(key) for key in KEY): row for row in [*before, *rows]}
    write_json(RESULTS, list(kept.values()))


def checked(device: torch.device, folder: Path) -> list[Check]:
    """All that must be equal, each printed as it comes."""
    found = []
    for size in SIZES:
        for check in checks_of_steps(Bench(size, "float32", folder, device)):
            found.append(_printed(check))
    for real in real_images(device):
        for check in checks_on_real_images(real):
            found.append(_printed(check))
    return found


def _printed(check: Check) -> Check:
    print(f"{'equal' if check.passed else 'DIFFERENT'}: {check.what}: {check.found}", flush=True)
    return check


def hardware(device: torch.device) -> str:
    """What the figures were measured on: a card, or a processor and how it computes in bfloat16."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    units = {"BF16": torch.cpu._is_avx512_bf16_supported(), "AMX": torch.cpu._is_amx_tile_supported()}
    return ", ".join([processor(), *(name for name, supported in units.items() if supported)])


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """All rows."""
    table = Table()
    for key in rows[0]:
        table.add_column(key, justify="left" if key in KEY else "right")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=None if Console().is_terminal else 140).print(table)


def main() -> None:
    """Check, measure, write, print."""
    parser = command_line(__doc__)
    parser.add_argument(
        "steps",
        nargs="*",
        help=f"{', '.join(GPU_STEPS)} (the last on a GPU): these alone, without the checks",
    )
    parser.add_argument("--image", type=int, choices=(32, 64), help="at this size alone")
    parser.add_argument("--repeats", type=int, default=3, help="of each call")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--tf32", action="store_true", help="on a GPU: the reference in TensorFloat-32, torch's default"
    )
    args = parser.parse_args()
    device = device_with(args.threads)
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = args.tf32, True
    on_gpu = device.type == "cuda"
    steps, sizes = (GPU_STEPS, GPU_SIZES) if on_gpu else (STEPS, SIZES)
    if unknown := [name for name in args.steps if name not in steps]:
        parser.error(f"{', '.join(unknown)}: no such step on this device; choose from {', '.join(steps)}")
    logging.getLogger("ferd").setLevel(logging.ERROR)  # a fresh generator's images are grey: no warning
    print(f"{hardware(device)}, {args.threads} thread(s), torch {torch.__version__}", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        checks = [] if args.steps else checked(device, Path(folder))
        for size in [size for size in sizes if args.image in (None, size.image)]:
            for name in args.steps or size.steps or steps:
                rows += measured(name, size, args.repeats, Path(folder) / size.student, device)
                keep(rows)
                print(json.dumps(rows[-len(steps[name].precisions) :], ensure_ascii=False), flush=True)
    print_table(rows)
    if failed := [check.what for check in checks if not check.passed]:
        sys.exit(f"bench: not the same: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
