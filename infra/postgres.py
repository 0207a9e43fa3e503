"""PostgreSQL for the stack: a cluster below its folder, with MLflow's and Prefect's databases."""

import errno
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from ferd.errors import FerdError
from infra.passwords import write_private
from infra.settings import DATABASES

PART = "postgresql.part-"


class Postgres:
    """A PostgreSQL cluster below the stack's folder, run by a user who is not root."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self._folder, self._settings = folder, settings
        self.data, self._pgpass = folder / "postgresql", folder / "pgpass"
        self.binaries = postgres_binaries(self.data)
        self.os_user = _unprivileged_user()

    def initialise(self, password: str) -> None:
        """Create the cluster, and the file by which MLflow and Prefect log in, where they are not there."""
        port, user = self._settings["POSTGRES_PORT"], self._settings["POSTGRES_USER"]
        write_private(self._pgpass, f"127.0.0.1:{port}:*:{user}:{password}\n")
        for leftover in self.data.parent.glob(f"{PART}*"):  # of a start that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        if (self.data / "PG_VERSION").exists():
            return
        with tempfile.TemporaryDirectory(prefix=PART, dir=self.data.parent) as part:
            self._create(Path(part), password)

    def logs_in_by(self, password: str) -> bool:
        """Whether MLflow and Prefect do, as the last start left it; no password has a colon."""
        kept = self._pgpass.read_text("utf-8") if self._pgpass.exists() else password
        return kept.rstrip("\n").rpartition(":")[2] == password

    def _create(self, part: Path, password: str) -> None:
        """Make the cluster in a folder beside it, so that a whole one or none is there."""
        account = pwd.getpwnam(self.os_user)
        other: dict[str, Any] = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        password_file, cluster = part / "password", part / "cluster"
        password_file.write_text(password, "utf-8")
        for path in (part, password_file):
            os.chown(path, account.pw_uid, account.pw_gid)
        user = self._settings["POSTGRES_USER"]
        done = subprocess.run(
            [
                *(self.binaries / "initdb", "--pgdata", cluster, "--username", user),
                *("--auth", "scram-sha-256", "--encoding", "UTF8", "--pwfile", password_file),
            ],
            cwd="/",
            env={**os.environ, "LC_ALL": "C"},  # this shell's locale may not be on this machine
            capture_output=True,
            text=True,
            check=False,
            **(other if os.geteuid() == 0 else {}),
        )
        if done.returncode:
            said = " ".join(done.stderr.split())
            full = os.strerror(errno.ENOSPC) in said
            mend = "free space" if full else "set STACK_FOLDER to a folder that this user can reach"
            raise FerdError(
                f"{self.data}: the user {self.os_user} can make no PostgreSQL cluster there: {said}; {mend}"
            )
        try:
            cluster.rename(self.data)
        except OSError as error:
            raise FerdError(
                f"{self.data}: {error.strerror}, and no PostgreSQL cluster; move it away"
            ) from None

    def answers(self) -> bool:
        """Whether one can log in.

        Raises:
            FerdError: the cluster has another password.
        """
        import psycopg2

        try:
            self._connect().close()
        except psycopg2.OperationalError as error:
            if "authentication failed" in str(error):
                raise FerdError(
                    f"{self._folder / 'secrets.env'}: not the POSTGRES_PASSWORD of {self.data}, or another "
                    f"POSTGRES_USER than {self._settings['POSTGRES_USER']} made that; put those back"
                ) from None
            return False
        return True

    def create_databases(self) -> None:
        """MLflow's and Prefect's, where they are not there."""
        from psycopg2 import sql

        with closing(self._connect()) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            for name in (self._settings[key] for key in DATABASES):
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
                if cursor.fetchone() is None:
                    cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    def _connect(self) -> Any:
        import psycopg2

        return psycopg2.connect(
            host="127.0.0.1",
            port=self._settings["POSTGRES_PORT"],
            user=self._settings["POSTGRES_USER"],
            dbname="postgres",
            passfile=str(self._pgpass),
            connect_timeout=5,
        )


def postgres_binaries(cluster: Path) -> Path:
    """Where ``postgres`` is: on PATH, or in Debian's place for it; of the version that made ``cluster``.

    Raises:
        FerdError: there is none, or none of that version.
    """
    found = shutil.which("postgres")
    places = [Path(found).parent] if found else []
    places += sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True
    )
    installed = [place for place in places if (place / "initdb").exists()]
    if not installed:
        raise FerdError(
            "PostgreSQL's server is not installed; `apt-get install postgresql` or `brew install postgresql`"
        )
    version = cluster / "PG_VERSION"
    if not version.exists():
        return installed[0]
    made_by = version.read_text("utf-8").strip()
    for place in installed:
        if _major(place) == made_by:
            return place
    raise FerdError(
        f"{cluster}: of PostgreSQL {made_by}, and installed is {', '.join(map(_major, installed))}; "
        f"`apt-get install postgresql-{made_by}`, or pg_upgrade it"
    )


def _major(binaries: Path) -> str:
    """``16`` of ``postgres (PostgreSQL) 16.4``."""
    said = subprocess.run([binaries / "postgres", "--version"], capture_output=True, text=True, check=True)
    return said.stdout.split()[2].partition(".")[0]


def _unprivileged_user() -> str:
    """This user, or, since PostgreSQL refuses root, the first of ``postgres`` and ``nobody`` that exists."""
    if os.geteuid() != 0:
        try:
            return pwd.getpwuid(os.geteuid()).pw_name
        except KeyError:
            raise FerdError(
                f"user id {os.geteuid()} has no name on this machine, which PostgreSQL asks for; add it to "
                "/etc/passwd"
            ) from None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in known)
