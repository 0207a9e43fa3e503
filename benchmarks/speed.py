"""``make bench``: every hot step beside its plain reference, in turn; first that both compute the same.

Rows go to ``benchmarks/results.json``: {step, size, precision, reference_ms, ours_ms, ratio, peak_mb}.
"""

import argparse
import json
import logging
import platform
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
from benchmarks.steps import SIZES, STEPS, Bench, Size
from ferd.files import write_json

RESULTS = Path(__file__).with_name("results.json")
KEY = ("step", "size", "precision")


def measured(name: str, size: Size, repeats: int, folder: Path, device: torch.device) -> list[dict[str, Any]]:
    """A row a precision of one step at one size, all measured in turn with one reference."""
    step = STEPS[name]
    plain = step.reference(Bench(size, "float32", folder, device))
    ours = [step.ours(Bench(size, precision, folder, device)) for precision in step.precisions]
    reference, *found = in_turn([plain, *ours], repeats, device)
    return [
        {
            "step": name,
            "size": size.name,
            "precision": precision,
            "reference_ms": round(reference.milliseconds / step.count, 1),
            "ours_ms": round(mine.milliseconds / step.count, 1),
            "ratio": round(reference.milliseconds / mine.milliseconds, 2),
            "reference_peak_mb": reference.peak_mb and round(reference.peak_mb),
            "peak_mb": mine.peak_mb and round(mine.peak_mb),
        }
        for precision, mine in zip(step.precisions, found, strict=True)
    ]


def keep(rows: Sequence[dict[str, Any]]) -> None:
    """Write rows in place of those of the same step, size and precision."""
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    kept = {tuple(row[key] for key in KEY): row for row in [*before, *rows]}
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
    """What the figures were measured on."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    info = Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    name = models[0].partition(":")[2].strip() if models else platform.processor()
    bf16 = "with" if torch.cpu._is_avx512_bf16_supported() else "without"
    return f"{name} {bf16} AVX512-BF16, {torch.get_num_threads()} thread(s), torch {torch.__version__}"


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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("steps", nargs="*", help=f"{', '.join(STEPS)}: these alone, without the checks")
    parser.add_argument("--image", type=int, help="32 or 64: at this size alone")
    parser.add_argument("--repeats", type=int, default=3, help="of each call")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    logging.getLogger("ferd").setLevel(logging.ERROR)  # a fresh generator's images are grey: no warning
    print(hardware(device), flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        checks = [] if args.steps else checked(device, Path(folder))
        for size in [size for size in SIZES if args.image in (None, size.image)]:
            for name in args.steps or STEPS:
                rows += measured(name, size, args.repeats, Path(folder), device)
                keep(rows)
                print(json.dumps(rows[-len(STEPS[name].precisions) :], ensure_ascii=False), flush=True)
    print_table(rows)
    if failed := [check.what for check in checks if not check.passed]:
        sys.exit(f"bench: not the same: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
