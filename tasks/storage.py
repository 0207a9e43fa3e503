"""Weights that lie elsewhere: streamed, resumed after a break, and in place only when their hash is right."""

import fcntl
import importlib
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, InvalidURL
from importlib import resources
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from ferd.config import Weights
from ferd.errors import FerdError, Unreachable
from ferd.files import file_hash

DOWNLOADS = Path("downloads")
CHUNK = 1 << 20
TRIES = 4
FIRST_PAUSE_SECONDS = 1.0
TIMEOUT_SECONDS = 30
PROGRESS_SECONDS = 5.0
BUSY = (408, 429)  # answers that, like 500 and above, another try may change
PARTIAL_CONTENT = 206  # the answer to a Range; a server that ignores it answers 200
RANGE_NOT_SATISFIABLE = 416

# a stream, the offset that it begins at, and the size of the whole (0: unknown)
Opened = tuple[IO[bytes], int, int]
Source = Callable[[int], Opened]  # an offset to begin at -> the stream


class Broken(Exception):
    """A connection that broke or was refused: worth another try."""


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
        if not _is_right(target, weights.sha256, "sha256"):
            _from_zoo(weights.location, target, weights.sha256)
    else:
        schemes = {"https": ("https", "http"), "s3": ("s3",)}[weights.source]
        if urlsplit(weights.location).scheme not in schemes:
            raise FerdError(
                f"weights.location: {weights.location!r} does not begin with {schemes[0]}://; correct it, or "
                "weights.source"
            )
        download(weights.location, target, weights.sha256)
    return target


def download(url: str, target: Path, checksum: str, algorithm: str = "sha256") -> None:
    """Fetch ``https://``, ``http://`` or ``s3://`` to ``target``, unless it is there and right.

    A broken download goes on from ``<target>.part``, by a later call too. Of several processes that
    want the same target, one fetches it and the others wait.

    Raises:
        FerdError: the address does not answer or has no such file, the hash differs, the disk is full.
    """
    sources = {"https": _http_source, "http": _http_source, "s3": _s3_source}
    scheme = urlsplit(url).scheme
    if scheme not in sources or not urlsplit(url).netloc:
        raise FerdError(f"{url!r} is no address that begins with https://, http:// or s3://; correct it")
    part = _part_of(target)
    try:
        if _is_right(target, checksum, algorithm):
            return
        with alone(part):
            if not _is_right(target, checksum, algorithm):
                _stream(url, sources[scheme](url), part)
                _put_in_place(part, target, url, checksum, algorithm)
    except OSError as error:
        raise _unwritable(target, error) from None


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


def _is_right(path: Path, checksum: str, algorithm: str) -> bool:
    return path.exists() and file_hash(path, algorithm) == checksum


def _part_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _put_in_place(part: Path, target: Path, origin: str, checksum: str, algorithm: str) -> None:
    """Move a whole part to ``target``; one with another hash is deleted."""
    found = file_hash(part, algorithm)
    if found != checksum:
        part.unlink()
        raise FerdError(
            f"{origin}: its {algorithm} is {found} but {checksum} is expected; what was fetched is deleted: "
            "the file there is another one, or the expected hash is wrong"
        )
    os.replace(part, target)


def _unwritable(target: Path, error: OSError) -> FerdError:
    return FerdError(
        f"{target}: cannot be written: {error.strerror or error}; free space or correct the permissions of "
        f"{target.parent}, then run again"
    )


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock of a file, made where it is missing; one that is empty in the end is deleted.

    Who has waited for a file that was deleted or moved meanwhile waits for the one that is there now.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is(path, lock):
                continue
            try:
                yield
            finally:
                if _is(path, lock) and not path.stat().st_size:
                    path.unlink()
            return


def _is(path: Path, file: IO[bytes]) -> bool:
    """Whether a path still names an open file; another's, made since, is not to be touched."""
    return path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))


def _stream(url: str, source: Source, part: Path) -> None:
    """Append to ``part`` until the whole is there; a break is tried again after a growing pause."""
    for attempt in range(TRIES):
        try:
            return _append(url, source, part)
        except Broken as error:
            reason = " ".join(str(error).split())
        if attempt + 1 < TRIES:
            time.sleep(FIRST_PAUSE_SECONDS * 2**attempt)
    raise Unreachable(
        f"{url}: {reason} (tried {TRIES} times); run again when the connection is there, "
        f"to go on from {part}, or correct the address"
    )


def _append(url: str, source: Source, part: Path) -> None:
    """One connection: what is missing of ``part``, or all of it where the server does not go on."""
    stream, offset, total = source(part.stat().st_size if part.exists() else 0)
    with stream, part.open("r+b" if offset else "wb") as file:
        file.seek(offset)
        said = time.monotonic()
        while chunk := _read(stream):
            file.write(chunk)
            if time.monotonic() - said > PROGRESS_SECONDS:
                said = time.monotonic()
                print(f"{url}: {file.tell() >> 20} of {total >> 20 or '?'} MiB", flush=True)
        if file.tell() < total:
            raise Broken(f"the connection broke after {file.tell()} of {total} bytes")


def _read(stream: IO[bytes]) -> bytes:
    try:
        return stream.read(CHUNK)
    except Exception as error:  # http.client, urllib3 and socket each raise their own
        raise Broken(f"the connection broke: {str(error) or type(error).__name__}") from None


def _http_source(url: str) -> Source:
    def open_at(offset: int) -> Opened:
        try:
            request = urllib.request.Request(url, headers={"Range": f"bytes={offset}-"} if offset else {})
            answer = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == RANGE_NOT_SATISFIABLE and offset:  # the part is no beginning of the whole
                return open_at(0)
            said = f"the server answers {error.code} {error.reason}"
            if error.code in BUSY or error.code >= 500:
                raise Broken(said) from None
            raise FerdError(f"{url}: {said}; correct the address") from None
        except (InvalidURL, ValueError) as error:
            raise FerdError(f"{url}: not an address ({error}); correct it") from None
        except (HTTPException, OSError) as error:
            raise Broken(f"no connection: {getattr(error, 'reason', error)}") from None
        begins = offset if answer.status == PARTIAL_CONTENT else 0
        length = int(answer.headers.get("Content-Length", 0))
        return answer, begins, begins + length if length else 0

    return open_at


def _s3_source(url: str) -> Source:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    with _s3_faults(url):
        client = _s3_client()

    def open_at(offset: int) -> Opened:
        span = {"Range": f"bytes={offset}-"} if offset else {}
        with _s3_faults(url):
            try:
                answer = client.get_object(Bucket=bucket, Key=key, **span)
            except client.exceptions.ClientError as error:
                if offset and error.response["Error"]["Code"] == "InvalidRange":
                    return open_at(0)
                raise
        begins = offset if answer["ResponseMetadata"]["HTTPStatusCode"] == PARTIAL_CONTENT else 0
        return answer["Body"], begins, begins + int(answer["ContentLength"])

    return open_at


def _s3_client() -> Any:
    import boto3
    from botocore.config import Config

    settings = Config(
        retries={"total_max_attempts": 1},  # ``_stream`` tries again
        s3={"addressing_style": "path"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        connect_timeout=TIMEOUT_SECONDS,
        read_timeout=TIMEOUT_SECONDS,
    )
    return boto3.Session().client("s3", config=settings)  # at AWS_ENDPOINT_URL, where that is set


@contextmanager
def _s3_faults(url: str) -> Iterator[None]:
    """boto3's errors as one line each; those of the connection as ``Broken``."""
    from botocore import exceptions as boto

    try:
        yield
    except (boto.NoCredentialsError, boto.PartialCredentialsError):
        raise FerdError(f"{url}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from None
    except boto.ClientError as error:
        raise _s3_refusal(url, error) from None
    except (boto.ConnectionError, boto.HTTPClientError) as error:
        raise Broken(f"no connection: {error} (AWS_ENDPOINT_URL says where the server is)") from None
    except (boto.BotoCoreError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise FerdError(f"{url}: {reason}; correct the address or the AWS_* variables") from None


def _s3_refusal(url: str, error: Any) -> Exception:
    """What a server's answer means."""
    code, status = error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]
    if status in BUSY or status >= 500:
        return Broken(f"the server answers {status} {code}")
    known = {
        "NoSuchBucket": "there is no such bucket; correct the address",
        "NoSuchKey": "there is no such key in the bucket; correct the address",
    }
    if status == 403:
        return FerdError(f"{url}: forbidden ({code}); these credentials may not read it: correct them")
    return FerdError(f"{url}: {known.get(code, f'the server answers {status} {code}; correct the address')}")


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


def _from_zoo(location: str, target: Path, checksum: str) -> None:
    """An L∞ model of RobustBench's zoo by its name, for CIFAR-10 or, behind ``cifar100/``, CIFAR-100."""
    for module in ("pyautoattack", "pyautoattack.state"):  # RobustBench 1.1 imports it by its former name
        sys.modules.setdefault(module.removeprefix("py"), importlib.import_module(module))
    try:
        from robustbench.model_zoo import model_dicts
        from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel
        from robustbench.utils import download_gdrive_new
    except ImportError as error:
        raise FerdError(
            f"weights.source robustbench: {error}; `pip install -c constraints.txt -e '.[robustbench]'`"
        ) from None
    sets = {"": BenchmarkDataset.cifar_10, "cifar100": BenchmarkDataset.cifar_100}
    prefix, _, name = location.rpartition("/")
    models = model_dicts[sets[prefix]][ThreatModel.Linf] if prefix in sets else {}
    file_id = models.get(name, {}).get("gdrive_id")
    if not isinstance(file_id, str):
        raise FerdError(
            f"weights.location: RobustBench has no model of one file by the name {location!r} among its Linf "
            "models; correct it (cifar100/NAME for CIFAR-100)"
        )
    _from_drive(lambda part: download_gdrive_new(file_id, part), location, target, checksum)


def _from_drive(fetch: Callable[[Path], None], name: str, target: Path, checksum: str) -> None:
    """What RobustBench's own client fetches to a path, checked and put in place."""
    part = _part_of(target)
    try:
        with alone(part):
            if _is_right(target, checksum, "sha256"):  # another process fetched it meanwhile
                return
            try:
                fetch(part)
            except Exception as error:  # gdown and requests each raise their own
                part.unlink(missing_ok=True)
                raise Unreachable(f"robustbench {name}: {' '.join(str(error).split())}; run again") from None
            _put_in_place(part, target, f"robustbench {name}", checksum, "sha256")
    except OSError as error:
        raise _unwritable(target, error) from None
