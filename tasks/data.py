"""Stage ``data``: a benchmark's images -> ``data/<benchmark>/<split>.safetensors``."""

import os
from pathlib import Path

from ferd.config import Data
from ferd.dataset_readers import load_splits
from ferd.datasets import save_images
from tasks import params, paths, process
from tasks.command import command_line


def main() -> None:
    """``python -m tasks.data BENCHMARK``."""
    parser = command_line(__doc__)
    parser.add_argument("benchmark")
    args = parser.parse_args()
    with process.running(f"data {args.benchmark}") as progress:
        progress.start()
        settings = params.read().benchmark(args.benchmark).data
        write_images(args.benchmark, settings)


def write_images(benchmark: str, settings: Data) -> None:
    """Read the dataset below ``FERD_DATA`` and write the benchmark's splits."""
    root = os.environ.get("FERD_DATA")
    for split, part in load_splits(settings, Path(root) if root else None).items():
        save_images(paths.images(benchmark, split), part)


if __name__ == "__main__":
    main()
