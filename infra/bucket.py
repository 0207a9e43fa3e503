"""``python -m infra.bucket NAME``: create a bucket at ``AWS_ENDPOINT_URL`` where it is not there."""

import argparse
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ferd.errors import FerdError, Unreachable
from tasks.command import as_command

SETTINGS = ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def exists(name: str, environment: Mapping[str, str]) -> bool:
    """Whether the bucket is at the endpoint of an environment.

    Raises:
        FerdError: the endpoint is not set or refuses; ``Unreachable`` where it does not answer.
    """
    with _s3(name, environment) as s3:
        return name in {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}


def ensure(name: str, environment: Mapping[str, str]) -> None:
    """Create the bucket, unless it is there, with the endpoint and credentials of an environment.

    Raises:
        FerdError: as ``exists``.
    """
    if not exists(name, environment):
        with _s3(name, environment) as s3:
            s3.create_bucket(Bucket=name)


@contextmanager
def _s3(name: str, environment: Mapping[str, str]) -> Iterator[Any]:
    """A client, whose errors inside the block are this module's."""
    import boto3
    from botocore import exceptions as boto
    from botocore.config import Config

    missing = [setting for setting in SETTINGS if not environment.get(setting)]
    if missing:
        raise FerdError(
            f"S3 bucket {name}: {', '.join(missing)} not set; `. .stack/environment.sh` sets what it takes"
        )
    endpoint, region, key, secret = (environment[setting] for setting in SETTINGS)
    try:
        yield boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name=region,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
        )
    except (boto.BotoCoreError, boto.ClientError, ValueError) as error:
        silent = isinstance(error, boto.ConnectionError | boto.HTTPClientError) or _is_busy(error)
        said = " ".join(str(error).split())
        raise (Unreachable if silent else FerdError)(f"S3 bucket {name}: {said}") from None


def _is_busy(error: Exception) -> bool:
    """Whether a server answered that it cannot do it just now."""
    answer = getattr(error, "response", {}).get("ResponseMetadata", {})
    return int(answer.get("HTTPStatusCode", 0)) >= 500


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Create a bucket at AWS_ENDPOINT_URL, unless it is there.")
    parser.add_argument("name")
    name = parser.parse_args().name
    with as_command("bucket"):
        ensure(name, os.environ)


if __name__ == "__main__":
    main()
