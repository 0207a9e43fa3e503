"""``python -m infra.bucket NAME``: create a bucket at ``AWS_ENDPOINT_URL`` where it is not there."""

import os
import sys
from collections.abc import Mapping

from ferd.errors import FerdError


def ensure(name: str, environment: Mapping[str, str]) -> None:
    """Create the bucket, unless it is there, with the endpoint and credentials of an environment.

    Raises:
        FerdError: the endpoint does not answer, or refuses.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    s3 = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        region_name=environment["AWS_DEFAULT_REGION"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
    )
    try:
        if name not in {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}:
            s3.create_bucket(Bucket=name)
    except (BotoCoreError, ClientError) as error:
        raise FerdError(f"S3 bucket {name}: {' '.join(str(error).split())}") from None


if __name__ == "__main__":
    try:
        ensure(sys.argv[1], os.environ)
    except FerdError as error:
        sys.exit(f"bucket: {error}")
