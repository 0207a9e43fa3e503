"""A network's weights, wherever they lie: a file, the package, an address, RobustBench's zoo."""

import os
from importlib import resources
from pathlib import Path
from urllib.parse import urlsplit

from ferd.config import Weights
from ferd.errors import FerdError
from ferd.files import file_hash
from tasks import robustbench
from tasks.download import download

DOWNLOADS = Path("downloads")


def fetch_weights(weights: Weights) -> Path:
    """The file of some weights on this machine, its SHA-256 checked; a download stays in ``downloads/``.

    Source ``https`` takes ``http://`` too, and ``s3`` asks the server at ``AWS_ENDPOINT_URL``, where set.

    Raises:
        FerdError: it cannot be had, or it is another file.
    """
    if weights.source in ("package", "file"):
        path = _packaged(weights.location) if weights.source == "package" else _local(weights.location)
        _check(path, weights.sha256)
        return path
    name = weights.location.partition("?")[0].rpartition("/")[2]
    target = DOWNLOADS / f"{weights.sha256[:16]}-{name}"
    if weights.source == "robustbench":
        target = target.with_name(f"{target.name}.pt")
        robustbench.fetch_model(weights.location, target, weights.sha256)
    else:
        schemes = {"https": ("https", "http"), "s3": ("s3",)}[weights.source]
        if urlsplit(weights.location).scheme not in schemes:
            raise FerdError(
                f"weights.location: {weights.location!r} does not begin with {schemes[0]}://; correct it, or "
                "weights.source"
            )
        download(weights.location, target, weights.sha256)
    return target


def _check(path: Path, sha256: str) -> None:
    """Refuse a file that is not the one expected."""
    try:
        found = file_hash(path, "sha256")
    except OSError as error:
        raise FerdError(f"{path}: cannot be read: {error.strerror}; correct weights.location") from None
    if found != sha256:
        raise FerdError(
            f"{path}: its SHA-256 is {found} but {sha256} is expected; it is another file or damaged: "
            "correct weights.location or weights.sha256"
        )


def _packaged(location: str) -> Path:
    folder = Path(str(resources.files("ferd.assets")))
    if not (folder / location).is_file():
        known = ", ".join(sorted(path.name for path in folder.glob("*.safetensors"))) or "none"
        raise FerdError(f"weights.location: {location!r} does not come with the package; these do: {known}")
    return folder / location


def _local(location: str) -> Path:
    path = Path(location).expanduser()
    if path.is_absolute():
        return path
    root = os.environ.get("FERD_DATA")
    if not root:
        raise FerdError(f"FERD_DATA is not set; set it to the folder below which {location} lies")
    return Path(root) / path
