"""``python -m infra.bucket NAME``: create a bucket at ``AWS_ENDPOINT_URL`` where it is not there."""

import argparse
import os
import sys
from collections.abc import Mapping

from ferd.errors import FerdError

SETTINGS = ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def ensure(name: str, environment: Mapping[str, str]) -> None:
    """Create the bucket, unless it is there, with the endpoint and credentials of an environment.

    Raises:
        FerdError: the endpoint is not set, does not answer, or refuses.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    missing = [setting for setting in SETTINGS if not environment.get(setting)]
    if missing:
        raise FerdError(
            f"S3 bucket {name}: {', '.join(missing)} not set; `. .stack/environment.sh` sets what it takes"
        )
    endpoint, region, key, secret = (environment[setting] for setting in SETTINGS)
    try:
        s3 = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name=region,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
        )
        if name not in {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}:
            s3.create_bucket(Bucket=name)
    except (BotoCoreError, ClientError, ValueError) as error:
        raise FerdError(f"S3 bucket {name}: {' '.join(str(error).split())}") from None


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Create a bucket at AWS_ENDPOINT_URL, unless it is there.")
    parser.add_argument("name")
    try:
        ensure(parser.parse_args().name, os.environ)
    except FerdError as error:
        sys.exit(f"bucket: {error}")


if __name__ == "__main__":
    main()
