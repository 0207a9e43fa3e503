"""The passwords of the stack, made at its first start and kept in its folder for this user alone."""

import os
import re
import secrets
from base64 import b64encode
from pathlib import Path

from dotenv import dotenv_values

from ferd.errors import FerdError
from ferd.files import atomic_write

LOGIN = "PREFECT_API_AUTH_STRING"  # what Prefect's clients send: a name, a colon and a password
SECRETS = ("POSTGRES_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", LOGIN)


def keep(folder: Path) -> dict[str, str]:
    """Those of an earlier start, else the environment's, else new ones.

    Raises:
        FerdError: the environment has others than those kept, or those of a cluster are gone.
    """
    path = folder / "secrets.env"
    try:
        kept = dotenv_values(path, interpolate=False) if path.exists() else {}
    except UnicodeDecodeError:
        raise FerdError(f"{path}: damaged, not UTF-8 text; bring it back, or move it away") from None
    given = {key: os.environ[key] for key in SECRETS if os.environ.get(key)}
    other = [key for key, value in given.items() if (kept.get(key) or value) != value]
    if other:
        raise FerdError(
            f"{path} keeps another {' and '.join(other)} than the environment has; "
            f"unset {' '.join(other)} in this shell"
        )
    if not kept.get("POSTGRES_PASSWORD") and (folder / "postgresql").exists():
        raise FerdError(
            f"{path} is without the POSTGRES_PASSWORD of {folder / 'postgresql'}; bring it back "
            f"({folder / 'pgpass'} has it too), or move that folder away"
        )
    values = {key: kept.get(key) or given.get(key) or _made_up(key) for key in SECRETS}
    if not re.fullmatch(r"[^\s:\\]+", values["POSTGRES_PASSWORD"]):
        raise FerdError(
            "POSTGRES_PASSWORD: no space, : or \\ in it, since asyncpg cannot read them; set another"
        )
    if not re.fullmatch(r"[^\s:%\"\\]+:[^\s%\"\\]+", values[LOGIN]):
        raise FerdError(
            f'{LOGIN}: not NAME:PASSWORD without space, %, " and \\, which supervisord cannot hand on; '
            "set another"
        )
    if values != kept:
        write_private(path, "".join(f"{key}={_quoted(value)}\n" for key, value in values.items()))
        taken = [key for key in given if not kept.get(key)]
        if taken:
            print(f"{path}: keeps the environment's {' and '.join(taken)}")
    return values


def write_private(path: Path, text: str) -> None:
    """A file for this user alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        part.touch(mode=0o600)
        part.write_text(text, "utf-8")


def authorization(login: str) -> dict[str, str]:
    """The header by which Prefect's server takes ``NAME:PASSWORD``; none for an empty one."""
    return {"Authorization": f"Basic {b64encode(login.encode()).decode()}"} if login else {}


def _quoted(value: str) -> str:
    """As a value of an .env file, to be read back as it is."""
    if value.isalnum():
        return value
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _made_up(key: str) -> str:
    return f"{'ferd:' if key == LOGIN else ''}{secrets.token_hex(16)}"
