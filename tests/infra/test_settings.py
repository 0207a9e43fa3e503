"""One list of settings for local processes and for Docker; nothing off the loopback; no passwords."""

import re
import stat
import subprocess
import sys

import pytest
import yaml
from dotenv import dotenv_values

from infra import stack
from tests.conftest import ROOT, environment, free_port

INFRA = ROOT / "infra"
LISTED = dotenv_values(INFRA / "stack.env")


def test_compose_knows_only_the_listed_settings():
    text = re.sub(r"#.*", "", (INFRA / "compose.yaml").read_text())
    names = {name.partition(":-")[0] for name in re.findall(r"\$\{([^}]+)\}", text)}
    assert names - set(LISTED) - set(stack.SECRETS) == {"FERD_DATA"}


def test_supervisord_knows_only_the_listed_settings_and_what_follows_from_them():
    names = set(re.findall(r"%\(ENV_(\w+)\)s", (INFRA / "supervisord.conf").read_text()))
    derived = {"STACK_FOLDER", "FERD_WORKSPACE", "POSTGRES_BINARIES", "POSTGRES_OS_USER", "S3_COMMAND"}
    assert names - set(LISTED) == derived


def test_nothing_is_published_off_the_loopback():
    services = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert "0.0.0.0" not in (INFRA / "supervisord.conf").read_text()


def test_the_list_has_no_passwords():
    assert not [name for name in LISTED if re.search("PASSWORD|SECRET|KEY|TOKEN", name)]


def test_passwords_are_made_once_and_are_for_one_user(tmp_path, monkeypatch):
    monkeypatch.setenv("STACK_FOLDER", str(tmp_path))
    for name in stack.SECRETS:
        monkeypatch.delenv(name, raising=False)
    first = stack.Stack().secrets()
    assert stack.Stack().secrets() == first
    assert len(set(first.values())) == 3
    assert stat.S_IMODE((tmp_path / "secrets.env").stat().st_mode) == 0o600
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the environment's")
    assert stack.Stack().secrets()["AWS_SECRET_ACCESS_KEY"] == "the environment's"


@pytest.mark.parametrize("command", ["down", "status"])
def test_nothing_runs_where_nothing_was_started(tmp_path, command):
    done = subprocess.run(
        [sys.executable, "-m", "infra.stack", command],
        cwd=ROOT,
        env=environment() | {"STACK_FOLDER": str(tmp_path), "PREFECT_PORT": str(free_port())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "nothing is running\n", done.stderr
    assert done.returncode == (command == "status")
