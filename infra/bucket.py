"""``python -m infra.bucket NAME``: create a bucket at ``AWS_ENDPOINT_URL`` where it is not there."""

import argparse
import os
from collections.abc import Mapping
from typing import Any

from ferd.errors import FerdError
from tasks import s3
from tasks.command import as_command

SETTINGS = {
    "AWS_ENDPOINT_URL": "endpoint_url",
    "AWS_DEFAULT_REGION": "region_name",
    "AWS_ACCESS_KEY_ID": "aws_access_key_id",
    "AWS_SECRET_ACCESS_KEY": "aws_secret_access_key",
}


def exists(name: str, environment: Mapping[str, str]) -> bool:
    """Whether the bucket is at the endpoint of an environment.

    Raises:
        FerdError: the endpoint is not set or refuses; ``Unreachable`` where it does not answer.
    """
    where = f"S3 bucket {name}"
    with s3.faults(where):
        return _is_there(name, _client(where, environment))


def ensure(name: str, environment: Mapping[str, str]) -> None:
    """Create the bucket, unless it is there, with the endpoint and credentials of an environment.

    Raises:
        FerdError: as ``exists``.
    """
    where = f"S3 bucket {name}"
    with s3.faults(where):
        client = _client(where, environment)
        if not _is_there(name, client):
            client.create_bucket(Bucket=name)


def _client(where: str, environment: Mapping[str, str]) -> Any:
    if missing := [setting for setting in SETTINGS if not environment.get(setting)]:
        raise FerdError(
            f"{where}: {', '.join(missing)} not set; `. .stack/environment.sh` sets what it takes"
        )
    return s3.client(**{option: environment[setting] for setting, option in SETTINGS.items()})


def _is_there(name: str, client: Any) -> bool:
    return name in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Create a bucket at AWS_ENDPOINT_URL, unless it is there.")
    parser.add_argument("name")
    name = parser.parse_args().name
    with as_command("bucket"):
        ensure(name, os.environ)


if __name__ == "__main__":
    main()
