"""Stage ``data``: a benchmark's images -> ``data/<benchmark>/<split>.safetensors``."""

import argparse
import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ferd.config import Data
from ferd.datasets import Images, load_splits
from ferd.errors import FerdError
from ferd.files import atomic_write
from tasks import params, paths, process


def main() -> None:
    """``python -m tasks.data BENCHMARK``."""
    parser = argparse.ArgumentParser(description=__doc__)
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
        with atomic_write(paths.images(benchmark, split)) as target:
            save_file({"images": part.images, "labels": part.labels}, target)


def load_images(path: Path) -> Images:
    """A split that the stage wrote.

    Raises:
        FerdError: it is missing or damaged.
    """
    again = f"run `dvc repro data@{path.parent.name}`"
    try:
        return Images(**load_file(path))
    except FileNotFoundError:
        raise FerdError(f"{path}: no such images; {again}") from None
    except SafetensorError as error:
        raise FerdError(f"{path}: cut off or damaged ({error}); {again}") from None


if __name__ == "__main__":
    main()
