"""Files at an address: streamed, resumed after a break, and in place only when their hash is right."""

import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException, InvalidURL
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from ferd.errors import FerdError, Unreachable
from ferd.files import file_hash
from tasks import s3
from tasks.locks import held

CHUNK = 1 << 20
TRIES = 4
FIRST_PAUSE_SECONDS = 1.0
PROGRESS_SECONDS = 5.0
PARTIAL_CONTENT = 206  # the answer to a Range; a server that ignores it answers 200
RANGE_NOT_SATISFIABLE = 416

# a stream, the offset that it begins at, and the size of the whole (0: unknown)
Opened = tuple[IO[bytes], int, int]
Source = Callable[[int], Opened]  # an offset to begin at -> the stream; Unreachable where it breaks


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

    def fetch(part: Path) -> None:
        _stream(url, sources[scheme](url), part)

    put_in_place(fetch, url, target, checksum, algorithm)


def put_in_place(
    fetch: Callable[[Path], None], origin: str, target: Path, checksum: str, algorithm: str = "sha256"
) -> None:
    """Have ``fetch`` write ``<target>.part``, and move it to ``target`` if its hash is right.

    Where ``target`` is there and right, or another process puts it there meanwhile, nothing is fetched. A
    part with another hash is deleted; one that is not whole stays.

    Raises:
        FerdError: the hash differs, or it cannot be written.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        if _is_right(target, checksum, algorithm):
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with held(target.with_name(f".{target.name}.lock")):
            if not _is_right(target, checksum, algorithm):
                if not (part.is_file() and _is_right(part, checksum, algorithm)):  # left by a late stop
                    fetch(part)
                    _check(part, origin, checksum, algorithm)
                os.replace(part, target)
    except OSError as error:
        raise FerdError(
            f"{target}: cannot be written: {error.strerror or error}; free space or correct the permissions "
            f"of {target.parent}, then run again"
        ) from None


def _is_right(path: Path, checksum: str, algorithm: str) -> bool:
    return path.exists() and file_hash(path, algorithm) == checksum


def _check(part: Path, origin: str, checksum: str, algorithm: str) -> None:
    found = file_hash(part, algorithm)
    if found != checksum:
        part.unlink()
        raise FerdError(
            f"{origin}: its {algorithm} is {found} but {checksum} is expected; what was fetched is deleted: "
            "the file there is another one, or the expected hash is wrong"
        )


def _stream(url: str, source: Source, part: Path) -> None:
    """Append to ``part`` until the whole is there; a break is tried again after a growing pause."""
    for attempt in range(TRIES):
        try:
            return _append(url, source, part)
        except Unreachable as error:
            reason = " ".join(str(error).split())
        if attempt + 1 < TRIES:
            time.sleep(FIRST_PAUSE_SECONDS * 2**attempt)
    raise Unreachable(
        f"{reason} (tried {TRIES} times); run again when the connection is there, "
        f"to go on from {part}, or correct the address"
    )


def _append(url: str, source: Source, part: Path) -> None:
    """One connection: what is missing of ``part``, or all of it where the server does not go on."""
    stream, offset, total = source(part.stat().st_size if part.exists() else 0)
    with stream, part.open("r+b" if offset else "wb") as file:
        file.seek(offset)
        said = time.monotonic()
        while chunk := _read(url, stream):
            file.write(chunk)
            if time.monotonic() - said > PROGRESS_SECONDS:
                said = time.monotonic()
                print(f"{url}: {file.tell() >> 20} of {total >> 20 or '?'} MiB", flush=True)
        if file.tell() < total:
            raise Unreachable(f"{url}: the connection broke after {file.tell()} of {total} bytes")


def _read(url: str, stream: IO[bytes]) -> bytes:
    try:
        return stream.read(CHUNK)
    except Exception as error:  # http.client, urllib3 and socket each raise their own
        raise Unreachable(f"{url}: the connection broke: {str(error) or type(error).__name__}") from None


def _http_source(url: str) -> Source:
    def open_at(offset: int) -> Opened:
        try:
            request = urllib.request.Request(url, headers={"Range": f"bytes={offset}-"} if offset else {})
            answer = urllib.request.urlopen(request, timeout=s3.TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == RANGE_NOT_SATISFIABLE and offset:  # the part is no beginning of the whole
                return open_at(0)
            said = f"{url}: the server answers {error.code} {error.reason}"
            if error.code in s3.BUSY or error.code >= 500:
                raise Unreachable(said) from None
            raise FerdError(f"{said}; correct the address") from None
        except (InvalidURL, ValueError) as error:
            raise FerdError(f"{url}: not an address ({error}); correct it") from None
        except (HTTPException, OSError) as error:
            raise Unreachable(f"{url}: no connection: {getattr(error, 'reason', error)}") from None
        begins = offset if answer.status == PARTIAL_CONTENT else 0
        length = int(answer.headers.get("Content-Length", 0))
        return answer, begins, begins + length if length else 0

    return open_at


def _s3_source(url: str) -> Source:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    with s3.faults(url):
        client = s3.client()

    def open_at(offset: int) -> Opened:
        span = {"Range": f"bytes={offset}-"} if offset else {}
        with s3.faults(url):
            try:
                answer = client.get_object(Bucket=bucket, Key=key, **span)
            except client.exceptions.ClientError as error:
                if offset and error.response["Error"]["Code"] == "InvalidRange":
                    return open_at(0)
                raise
        begins = offset if answer["ResponseMetadata"]["HTTPStatusCode"] == PARTIAL_CONTENT else 0
        return answer["Body"], begins, begins + int(answer["ContentLength"])

    return open_at
