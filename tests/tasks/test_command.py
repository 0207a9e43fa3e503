"""Commands of a person end with one line."""

import errno
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tasks
from ferd.errors import FerdError
from tasks import point
from tasks.command import as_command
from tests.conftest import ROOT, environment


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (FerdError("params.yaml: missing"), 2, "plan: params.yaml: missing\n"),
        (
            PermissionError(errno.EACCES, "Permission denied", "logs"),
            2,
            "plan: logs: Permission denied; free space or correct the permissions\n",
        ),
        (
            FileExistsError(errno.EEXIST, "File exists", ".nightly"),
            2,
            "plan: .nightly: File exists; move away what is in its place\n",
        ),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", ".resume/locks/data-" + 300 * "a"),
            2,
            "plan: data-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...: File name too long; give a shorter one\n",
        ),
        (KeyboardInterrupt(), 130, "plan: stopped\n"),
    ],
)
def test_a_fault_or_an_interrupt_is_one_line(capsys, raised, code, line):
    with pytest.raises(SystemExit) as ended, as_command("plan"):
        raise raised
    assert (ended.value.code, capsys.readouterr().err) == (code, line)


@pytest.mark.parametrize(
    "bug",
    [
        ZeroDivisionError(),
        FileNotFoundError(errno.ENOENT, "No such file", "x"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),  # of a connection: standard output is read
    ],
)
def test_a_bug_stays_a_traceback(bug):
    with pytest.raises(type(bug)), as_command("plan"):
        raise bug


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("print(1)", 141),
        ("print('1' * 100_000)", 141),
        ("print(1, flush=True)", 141),
        ("print(1); sys.exit(1)", 1),
        ("print(1); raise FerdError('wrong')", 2),
    ],
)
def test_a_reader_that_ends_first_is_no_fault(program, code):
    """As ``| head``: it has what it wanted."""
    given = "import sys; from ferd.errors import FerdError; from tasks.command import as_command\n"
    given += f"with as_command('plan'): {program}"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", given],
        cwd=ROOT,
        env=environment() | {"PYTHONUNBUFFERED": ""},
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (code, "plan: wrong\n" if code == 2 else "")


HERE = "127.0.0.1,localhost"


@pytest.mark.parametrize(
    ("given", "direct"),
    [
        ({}, HERE),
        ({"NO_PROXY": "example.org"}, f"example.org,{HERE}"),
        ({"no_proxy": "a.org, b.org", "NO_PROXY": "c.org"}, f"a.org,b.org,{HERE}"),
        ({"no_proxy": "*"}, "*"),
        ({"NO_PROXY": "*"}, "*"),
    ],
)
def test_a_proxy_is_not_asked_for_this_machines_servers(monkeypatch, given, direct):
    """Named once, also in a process that another of the project has started; other hosts stay."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, given.get(name, ""))
    for _ in range(2):
        importlib.reload(tasks)
        assert (os.environ["no_proxy"], os.environ["NO_PROXY"]) == (direct, direct)


def test_a_user_without_a_name_has_one_for_dvc():
    program = """
import os, pwd
def getpwuid(number):
    raise KeyError(f"getpwuid(): uid not found: {number}")
pwd.getpwuid = getpwuid
for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
    os.environ.pop(name, None)
import tasks
import getpass
print(getpass.getuser())
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.stdout == f"{os.getuid()}\n", done.stderr


@pytest.mark.parametrize("module", ["tasks.tracking", "infra.automations"])
def test_asked_for_help_a_command_does_nothing_else(monkeypatch, capsys, module):
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/api")
    monkeypatch.setattr("sys.argv", [module, "--help"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main()
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {module}")


def test_a_point_without_its_sweep_is_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["point", "digits", "resnet8-w8", "ferd", "0"])
    for name in point.GIVEN:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit) as ended:
        point.main()
    assert ended.value.code == 2
    assert "FERD_SWEEP_ID not set: a point is run by python -m flows.sweep" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_terminal_of_another_encoding_is_no_fault_of_the_files(finished_copy):
    """All are UTF-8, and what such a terminal lacks becomes a question mark."""
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    for program, says in (
        (("-m", "tasks.table", "digits"), "| `ferd` |"),
        (("-c", "from tasks.command import as_command\nwith as_command('a'): print('1 \\xb1 2')"), "1 ? 2"),
    ):
        command = [f"{Path(sys.executable).parent}/python", *program]
        env = environment() | locale | {"PYTHONPATH": str(finished_copy)}
        done = subprocess.run(
            command, cwd=finished_copy, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert says in done.stdout
