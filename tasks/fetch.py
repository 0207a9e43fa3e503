"""Download an image set into ``FERD_DATA``; the stages themselves never download."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchvision.datasets.utils import extract_archive

from ferd.dataset_readers import TINY_IMAGENET_FOLDER, cifar_source, read
from ferd.errors import FerdError
from tasks import process
from tasks.command import as_command, command_line
from tasks.download import download
from tasks.locks import held

TINY_IMAGENET_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_IMAGENET_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
TINY_IMAGENET_TRAIN, TINY_IMAGENET_TEST = 100_000, 10_000


def main() -> None:
    """``python -m tasks.fetch cifar10|cifar100|tiny-imagenet``."""
    parser = command_line(__doc__)
    parser.add_argument("set", choices=["cifar10", "cifar100", "tiny-imagenet"])
    name = parser.parse_args().set
    with as_command(f"fetch {name}"):
        print(f"fetch {name}: {fetch(name, root())}")


def root() -> Path:
    """The folder of image sets.

    Raises:
        FerdError: ``FERD_DATA`` is not set.
    """
    if not os.environ.get("FERD_DATA"):
        raise FerdError("FERD_DATA is not set; set it to the folder that shall hold the image sets")
    return Path(os.environ["FERD_DATA"])


def fetch(name: str, folder: Path) -> str:
    """Bring an image set into ``folder`` unless it is there; says which of the two. Another process waits.

    Raises:
        FerdError: it cannot be downloaded or unpacked, or what is there is not whole.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with held(folder / f".{name}.lock"):
            return fetch_tiny_imagenet(folder) if name == "tiny-imagenet" else fetch_cifar(name, folder)
    except OSError as error:
        raise FerdError(f"{folder}: cannot be written: {error.strerror or error}") from None


def fetch_cifar(name: str, folder: Path) -> str:
    """CIFAR-10 or CIFAR-100, in its place only once torchvision has checked it by the checksums it knows."""
    source = cifar_source(name)
    target, archive = folder / source.base_folder, folder / source.filename
    if _is_readable(name, folder):
        return f"{target} is there and whole already"
    download(source.url, archive, source.tgz_md5, "md5")
    with _unpacked(archive) as part:
        read(name, part)
        process.move_folder(part / source.base_folder, target)
    archive.unlink()
    return f"{target} is whole"


def _is_readable(name: str, folder: Path) -> bool:
    try:
        read(name, folder)
    except FerdError:
        return False
    return True


def fetch_tiny_imagenet(folder: Path) -> str:
    """Tiny-ImageNet-200; a folder that is there, but not whole, is left as it is."""
    target, archive = folder / TINY_IMAGENET_FOLDER, folder / "tiny-imagenet-200.zip"
    if target.exists():
        _check_counts(folder)
        return f"{target} is there and whole already"
    download(TINY_IMAGENET_URL, archive, TINY_IMAGENET_MD5, "md5")
    with _unpacked(archive) as part:
        (part / TINY_IMAGENET_FOLDER).replace(target)
    _check_counts(folder)
    archive.unlink()
    return f"{target} is whole"


def _check_counts(folder: Path) -> None:
    found = tuple(len(part.labels) for part in read("tiny-imagenet", folder))
    if found != (TINY_IMAGENET_TRAIN, TINY_IMAGENET_TEST):
        raise FerdError(
            f"{folder / TINY_IMAGENET_FOLDER}: has {found[0]} training and {found[1]} validation images, "
            f"not {TINY_IMAGENET_TRAIN} and {TINY_IMAGENET_TEST} as published; move it away, then run again"
        )


@contextmanager
def _unpacked(archive: Path) -> Iterator[Path]:
    """A folder with what is in an archive of the right checksum; it is gone afterwards."""
    part = archive.with_name(f".{archive.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of an attempt that was killed
    try:
        extract_archive(archive, part)
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


if __name__ == "__main__":
    main()
