"""Where checkpoints and results are shared, for this clone alone: ``python -m tasks.remote s3://ferd/dvc``."""

import re
from pathlib import Path

from ferd.errors import FerdError
from tasks.command import as_command, command_line
from tasks.dvc_pipeline import plain_errors

NAME = "storage"
TIMEOUT_SECONDS = 30  # S3's own are a minute, tried five times


def set_remote(url: str) -> None:
    """Make an address DVC's remote, by ``.dvc/config.local``; what it takes is compared with what was sent.

    Raises:
        FerdError: it is neither ``SCHEME://...`` nor an absolute folder that is there, or not in ASCII.
    """
    from dvc.repo import Repo

    if not re.match(r"[a-z0-9]+://[^/]", url) and not (Path(url).is_absolute() and Path(url).is_dir()):
        raise FerdError(
            f"{url!r} is neither an address such as s3://BUCKET/FOLDER nor an absolute folder that is there; "
            "correct it"
        )
    if not url.isascii():
        raise FerdError(f"{url!r}: DVC's configuration takes letters of ASCII alone; choose another address")
    timeouts = {"connect_timeout": TIMEOUT_SECONDS, "read_timeout": TIMEOUT_SECONDS}
    with plain_errors(), Repo(".") as repo, repo.config.edit("local") as local:
        local.setdefault("core", {})["remote"] = NAME
        own = {"url": url, "verify": True} | (timeouts if url.startswith("s3://") else {})
        local.setdefault("remote", {})[NAME] = own
    print(f"remote: {url}; `dvc push` sends, `dvc pull` takes")


def main() -> None:
    """Parse the command line and set it."""
    parser = command_line(__doc__)
    parser.add_argument("url", metavar="URL")
    url = parser.parse_args().url
    with as_command("remote"):
        set_remote(url)


if __name__ == "__main__":
    main()
