"""S3 by boto3: a client, and what its errors mean."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ferd.errors import FerdError, Unreachable

TIMEOUT_SECONDS = 30
BUSY = (408, 429)  # answers that, like 500 and above, another try may change


def client(**settings: str) -> Any:
    """A client at ``AWS_ENDPOINT_URL``, where that is set; ``settings`` are those of ``boto3.client``.

    It tries once: whoever calls it says what is tried again.
    """
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"total_max_attempts": 1},
        s3={"addressing_style": "path"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        connect_timeout=TIMEOUT_SECONDS,
        read_timeout=TIMEOUT_SECONDS,
    )
    return boto3.Session().client("s3", config=config, **settings)


@contextmanager
def faults(where: str) -> Iterator[None]:
    """boto3's errors as one line each, which begins with ``where``.

    Raises:
        FerdError: ``Unreachable`` where another try may help.
    """
    from botocore import exceptions as boto

    try:
        yield
    except (boto.NoCredentialsError, boto.PartialCredentialsError):
        raise FerdError(f"{where}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from None
    except boto.ClientError as error:
        raise _refusal(where, error) from None
    except (boto.ConnectionError, boto.HTTPClientError) as error:
        said = " ".join(str(error).split())
        raise Unreachable(
            f"{where}: no connection: {said} (AWS_ENDPOINT_URL says where the server is)"
        ) from None
    except (boto.BotoCoreError, ValueError) as error:
        said = " ".join(str(error).split())
        raise FerdError(f"{where}: {said}; correct the address or the AWS_* variables") from None


def _refusal(where: str, error: Any) -> FerdError:
    """What a server's answer means."""
    code, status = error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]
    if status in BUSY or status >= 500:
        return Unreachable(f"{where}: the server answers {status} {code}")
    known = {
        "NoSuchBucket": "there is no such bucket; correct the address",
        "NoSuchKey": "there is no such key in the bucket; correct the address",
    }
    if status == 403:
        return FerdError(f"{where}: forbidden ({code}); these credentials may not use it: correct them")
    return FerdError(
        f"{where}: {known.get(code, f'the server answers {status} {code}; correct the address')}"
    )
