"""The settings of the stack: those of ``infra/stack.env``, the environment's first, and what each may be."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values

from ferd.errors import FerdError

LISTED = Path(__file__).with_name("stack.env")
PORTS = ("POSTGRES_PORT", "S3_PORT", "MLFLOW_PORT", "PREFECT_PORT")
DATABASES = ("MLFLOW_DATABASE", "PREFECT_DATABASE")
NAMES = (*DATABASES, "POSTGRES_USER", "WORK_POOL")
SCHEDULE = ("NIGHTLY_CRON", "NIGHTLY_TIMEZONE")
LEAST = {"FLOW_RUNS_AT_A_TIME": 1, "SILENT_RUN_SECONDS": 10}  # the second: Prefect looks that often
KNOWN = (*PORTS, *NAMES, *SCHEDULE, *LEAST, "S3_BUCKET", "AWS_DEFAULT_REGION", "MLFLOW_OPTIONS")
CHANGE = "set it in infra/stack.env or in the environment"
LONGEST_SOCKET = 95  # bytes of its name: Linux takes 107, macOS 103; supervisord adds its process's number


def read() -> dict[str, str]:
    """All settings, by name.

    Raises:
        FerdError: one is not listed.
    """
    listed = dotenv_values(LISTED)
    if lacking := [name for name in KNOWN if name not in listed]:
        raise FerdError(f"infra/stack.env lacks {' and '.join(lacking)}; git checkout infra/stack.env")
    return {key: os.environ.get(key, value or "") for key, value in listed.items()}


def check(settings: Mapping[str, str], folder: Path) -> None:
    """Refuse what a service would fail by.

    Raises:
        FerdError: a setting, or the stack's folder, cannot be.
    """
    if len(os.fsencode(folder / "supervisor.sock")) > LONGEST_SOCKET:
        raise FerdError(f"{folder}: too long for a socket in it; set STACK_FOLDER to a shorter one")
    if set(str(folder)) & set('%"\\\n'):  # supervisord.conf cannot hold them
        raise FerdError(f"{folder}: no % \" \\ or line end in a stack's folder; set STACK_FOLDER")
    for name in PORTS:
        value = settings[name]
        if not (value.isascii() and value.isdecimal() and 0 < int(value) < 65536):
            raise FerdError(f"{name}={value} is no port (1 to 65535); {CHANGE}")
    for name in NAMES:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", settings[name]):
            raise FerdError(f"{name}={settings[name]}: letters, digits, _ and - alone; {CHANGE}")
    for name, least in LEAST.items():
        value = settings[name]
        if not (value.isascii() and value.isdecimal() and int(value) >= least):
            raise FerdError(f"{name}={value} is no whole number of {least} or more; {CHANGE}")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", settings["S3_BUCKET"]):
        raise FerdError(
            f"S3_BUCKET={settings['S3_BUCKET']}: 3 to 63 small letters, digits, . and -; {CHANGE}"
        )
    for names in (PORTS, DATABASES):
        values = [settings[name] for name in names]
        if same := [name for name in names if values.count(settings[name]) > 1]:
            raise FerdError(f"{' and '.join(same)} are both {settings[same[0]]}; {CHANGE}")
    _check_schedule(settings)


def _check_schedule(settings: Mapping[str, str]) -> None:
    from prefect.client.schemas.schedules import CronSchedule

    cron, timezone = settings["NIGHTLY_CRON"], settings["NIGHTLY_TIMEZONE"]
    try:
        CronSchedule(cron=cron, timezone=timezone)
    except ValueError:
        raise FerdError(
            f"NIGHTLY_CRON={cron} with NIGHTLY_TIMEZONE={timezone} is no schedule such as 0 2 * * * with "
            f"UTC; {CHANGE}"
        ) from None
