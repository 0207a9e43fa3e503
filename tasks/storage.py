"""Weights that lie elsewhere: streamed, resumed after a break, and in place only when their hash is right."""

import hashlib
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from ferd.config import Weights
from ferd.errors import FerdError

DOWNLOADS = Path("downloads")
CHUNK = 1 << 20
TRIES = 4
FIRST_PAUSE_SECONDS = 1.0
TIMEOUT_SECONDS = 30
PROGRESS_SECONDS = 5.0

Opened = tuple[
    IO[bytes], int, int
]  # a stream, the offset that it begins at, the size of the whole (0: unknown)
Source = Callable[[int], Opened]  # an offset to begin at -> the stream


class Broken(Exception):
    """A connection that broke, or was refused: worth another try."""


def fetch_weights(weights: Weights) -> Path:
    """The file of some weights on this machine, its SHA-256 checked.

    Raises:
        FerdError: it cannot be had, or it is another file.
    """
    if weights.source in ("https", "s3"):
        target = DOWNLOADS / f"{weights.sha256[:16]}-{Path(urlsplit(weights.location).path).name}"
        download(weights.location, target, weights.sha256)
        return target
    path = {"package": _packaged, "file": _local, "robustbench": _from_zoo}[weights.source](weights.location)
    try:
        found = file_hash(path, "sha256")
    except OSError as error:
        raise FerdError(f"{path}: cannot be read: {error.strerror}; correct weights.location") from None
    if found != weights.sha256:
        raise FerdError(
            f"{path}: its SHA-256 is {found} but {weights.sha256} is expected; it is another file or "
            "damaged: fetch it again, or correct weights.sha256"
        )
    return path


def download(url: str, target: Path, checksum: str, algorithm: str = "sha256") -> None:
    """Fetch ``https://``, ``http://`` or ``s3://`` to ``target``, unless it is there and right.

    An interrupted download is continued from ``<target>.part``, by a later call too.

    Raises:
        FerdError: the address does not answer or has no such file, the hash differs, the disk is full.
    """
    if target.exists() and file_hash(target, algorithm) == checksum:
        return
    part = target.with_name(f"{target.name}.part")
    source = _s3_source(url) if url.startswith("s3://") else _http_source(url)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _stream(url, source, part)
        found = file_hash(part, algorithm)
        if found != checksum:
            part.unlink()
            raise FerdError(
                f"{url}: its {algorithm} is {found} but {checksum} is expected; it was removed: the file "
                "there has changed, or the expected hash is wrong"
            )
        os.replace(part, target)
    except OSError as error:
        raise FerdError(
            f"{target}: cannot be written: {error.strerror or error}; free space or correct the permissions "
            f"of {target.parent}, then run again"
        ) from None


def file_hash(path: Path, algorithm: str) -> str:
    """Hash of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _stream(url: str, source: Source, part: Path) -> None:
    """Append to ``part`` until the whole is there; a break is tried again after a growing pause."""
    for attempt in range(TRIES):
        try:
            return _append(url, source, part)
        except Broken as error:
            reason = str(error)
        if attempt + 1 < TRIES:
            time.sleep(FIRST_PAUSE_SECONDS * 2**attempt)
    raise FerdError(
        f"{url}: {reason} (tried {TRIES} times); what was fetched is kept in {part}: run again when the "
        "connection is there"
    )


def _append(url: str, source: Source, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    stream, offset, total = source(have)
    with stream, part.open("r+b" if offset else "wb") as file:
        file.seek(offset)
        said = time.monotonic()
        while chunk := _read(stream):
            file.write(chunk)
            if time.monotonic() - said > PROGRESS_SECONDS:
                said = time.monotonic()
                print(f"{url}: {file.tell() >> 20} of {total >> 20 or '?'} MiB", flush=True)
        if total and file.tell() < total:
            raise Broken(f"the connection broke after {file.tell()} of {total} bytes")


def _read(stream: IO[bytes]) -> bytes:
    try:
        return stream.read(CHUNK)
    except Exception as error:  # http.client, urllib3 and socket each raise their own
        raise Broken(
            f"the connection broke: {' '.join(str(error).split()) or type(error).__name__}"
        ) from None


def _http_source(url: str) -> Source:
    def open_at(offset: int) -> Opened:
        request = urllib.request.Request(url, headers={"Range": f"bytes={offset}-"} if offset else {})
        try:
            answer = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the part is as long as the whole, or longer: begin anew
                return open_at(0)
            if error.code >= 500:
                raise Broken(f"the server answers {error.code} {error.reason}") from None
            raise FerdError(
                f"{url}: the server answers {error.code} {error.reason}; correct the address"
            ) from None
        except (urllib.error.URLError, OSError) as error:
            raise Broken(f"no connection: {getattr(error, 'reason', error)}") from None
        begins = offset if answer.status == 206 else 0  # 200: the server ignores Range
        length = int(answer.headers.get("Content-Length", 0))
        return answer, begins, begins + length if length else 0

    return open_at


def _s3_source(url: str) -> Source:
    client = _s3_client()
    bucket, key = urlsplit(url).netloc, urlsplit(url).path.lstrip("/")

    def open_at(offset: int) -> Opened:
        with _s3_faults(url):
            size = int(client.head_object(Bucket=bucket, Key=key)["ContentLength"])
            if offset >= size:
                offset = 0
            answer = client.get_object(Bucket=bucket, Key=key, Range=f"bytes={offset}-")
            return answer["Body"], offset, size

    return open_at


def _s3_client() -> Any:
    import boto3
    from botocore.config import Config

    settings = Config(
        retries={"mode": "standard"},
        s3={"addressing_style": "path"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        connect_timeout=TIMEOUT_SECONDS,
    )
    return boto3.client("s3", endpoint_url=os.environ.get("AWS_ENDPOINT_URL"), config=settings)


@contextmanager
def _s3_faults(url: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError, NoCredentialsError

    try:
        yield
    except NoCredentialsError:
        raise FerdError(f"{url}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from None
    except EndpointConnectionError as error:
        raise Broken(f"no connection: {error}; AWS_ENDPOINT_URL says where the server is") from None
    except ClientError as error:
        code = error.response["ResponseMetadata"]["HTTPStatusCode"]
        if code >= 500:
            raise Broken(f"the server answers {code}") from None
        what = {403: "forbidden; these credentials may not read it", 404: "no such bucket or key"}
        raise FerdError(f"{url}: {what.get(code, str(error))}; correct weights.location") from None
    except BotoCoreError as error:
        raise Broken(" ".join(str(error).split())) from None


def _packaged(location: str) -> Path:
    folder = Path(str(resources.files("ferd.assets")))
    if not (folder / location).is_file():
        known = ", ".join(sorted(path.name for path in folder.glob("*.safetensors"))) or "none"
        raise FerdError(f"weights {location!r} do not come with the package; those that do: {known}")
    return folder / location


def _local(location: str) -> Path:
    path = Path(location).expanduser()
    if path.is_absolute():
        return path
    root = os.environ.get("FERD_DATA")
    if root is None:
        raise FerdError(
            f"FERD_DATA is not set; set it to the folder below which {location} lies (see README)"
        )
    return Path(root) / path


def _from_zoo(location: str) -> Path:
    """A model of RobustBench's CIFAR-10 L∞ zoo, by its name there, downloaded by its package."""
    try:
        from robustbench.utils import load_model
    except ImportError:
        raise FerdError(
            "RobustBench is not installed; `pip install -c constraints.txt -e '.[robustbench]'`"
        ) from None
    folder = DOWNLOADS / "robustbench"
    load_model(location, model_dir=str(folder), dataset="cifar10", threat_model="Linf")
    return folder / "cifar10" / "Linf" / f"{location}.pt"
