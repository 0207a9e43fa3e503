"""A workspace: this project's code with settings that take seconds, in a folder of its own."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from filelock import FileLock
from xdist.scheduler import LoadScopeScheduling

from tasks import tracking
from tests.warm_python import WarmPython

ROOT = Path(__file__).parents[1]
# Of the person who runs the tests: a record, a server, a repository, a channel for alerts, not to be
# touched; and what keeps modules of the working directory from being found.
FOREIGN = ("AWS_", "DVC_", "FERD_", "GIT_", "MLFLOW_", "PG", "PREFECT_", "PYTHONSAFEPATH")
KEPT = ("FERD_DATA", "FERD_RELEASED_CODE")  # what tests are given: images, a clone
for _name in [name for name in os.environ if name.startswith(FOREIGN) and name not in KEPT]:
    del os.environ[_name]
OWN_FOLDER = "TESTS_OWN_FOLDER"  # instead of the person's home; xdist's workers get it by this variable
GIT_CONFIG = f"[core]\n\texcludesFile = {os.devnull}\n[safe]\n\tdirectory = *\n"
TINY_DISTILLATION = {
    "rounds": 3,
    "warmup_rounds": 1,
    "batch_size": 16,
    "synthesis": {"steps": 2},
    "student": {"steps": 2},
}


class ByStack(LoadScopeScheduling):
    """One process runs all tests that share the services; the others take the rest, one at a time."""

    def _split_scope(self, nodeid: str) -> str:
        return "stack" if nodeid.startswith("tests/services/") else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByStack | None:
    """How tests are shared under ``--dist loadscope``."""
    return ByStack(config, log) if config.getoption("dist") == "loadscope" else None


def pytest_configure(config: pytest.Config) -> None:
    """What is looked for in a home is looked for in a folder of the tests' own."""
    if not hasattr(config, "workerinput"):
        os.environ[OWN_FOLDER] = tempfile.mkdtemp(prefix="ferd-tests-")
        (own_folder() / "gitconfig").write_text(GIT_CONFIG, "utf-8")
    os.environ.update(instead_of_home())


def pytest_unconfigure(config: pytest.Config) -> None:
    """The folder goes with the last process that has it."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(own_folder(), ignore_errors=True)


def own_folder() -> Path:
    """The tests' own, while they run."""
    return Path(os.environ[OWN_FOLDER])


def instead_of_home() -> dict[str, str]:
    """Where Git, DVC, AWS and Prefect look for settings, and Prefect keeps its database."""
    nothing = dict.fromkeys(
        (
            "AWS_CONFIG_FILE",
            "AWS_SHARED_CREDENTIALS_FILE",
            "DVC_GLOBAL_CONFIG_DIR",
            "DVC_SYSTEM_CONFIG_DIR",
        ),
        str(own_folder() / "nothing"),
    )
    return nothing | {
        "GIT_CONFIG_GLOBAL": str(own_folder() / "gitconfig"),
        "GIT_CONFIG_NOSYSTEM": "1",
        "PREFECT_HOME": str(own_folder() / "prefect"),
    }


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that are marked ``gpu`` are skipped where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="this machine has no GPU"))


@pytest.fixture(autouse=True)
def one_thread_and_seed() -> None:
    """The machine is shared, and what a test draws is the same each time, whichever ran before it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal bytes are asked for, which a GPU does not give, but in tests that are marked ``gpu``."""
    if not request.node.get_closest_marker("gpu"):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(autouse=True)
def no_record_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that a test has left open is not for the next test's stage to end, nor its store to write to."""
    monkeypatch.setattr(tracking, "_unfinished", set())
    if "mlflow.tracking._tracking_service.utils" in sys.modules:
        utils = sys.modules["mlflow.tracking._tracking_service.utils"]
        monkeypatch.setattr(utils, "_tracking_uri", None)  # what mlflow.set_tracking_uri has set


@cache
def written_params() -> dict:
    """params.yaml as it is; parsing it takes longer than most tests."""
    return yaml.safe_load((ROOT / "params.yaml").read_text())


def tiny_params() -> dict:
    """params.yaml with the smallest settings that still run every part of ``digits``."""
    params = deepcopy(written_params())
    digits = params["benchmarks"]["digits"]
    digits["data"] |= {"train_per_class": 20, "validation_per_class": 2, "test_per_class": 5}
    digits["teacher"]["training"] |= {"epochs": 2, "attack_steps": 1}
    digits["teacher"]["measure"] |= {"accept_not_robust": True}
    digits["analysis"] |= {"images_per_class": 2, "targeted_steps": 2, "gammas": [0.0, 0.5]}
    digits["analysis"]["judge"]["training"] |= {"epochs": 1}
    for key, value in TINY_DISTILLATION.items():
        if isinstance(value, dict):
            digits["distillation"][key] |= value
        else:
            digits["distillation"][key] = value
    digits["evaluation"]["attacks"] = {
        "clean": "all",
        "fgsm": "all",
        "pgd20": "all",
        "cw30": 10,
        "autoattack": 10,
    }
    return params


def environment() -> dict[str, str]:
    """This environment: this Python first, offline, no GPU, no telemetry, nobody's Prefect profile."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "PREFECT_"))}
    return own | {
        "PATH": path,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",  # equal bytes are asked for
        "PYTHONPATH": "",
        "DVC_NO_ANALYTICS": "true",
        "PREFECT_HOME": instead_of_home()["PREFECT_HOME"],
        "PREFECT_PROFILES_PATH": os.devnull,
    }


def run_in(
    folder: Path, *command: str, timeout: float = 300, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in a workspace; ``python`` is this Python."""
    program, *arguments = command
    if program == sys.executable and arguments[0] in ("-m", "-c"):
        return warm_python().run(arguments, folder, environment() | variables, timeout)
    return subprocess.run(
        command,
        cwd=folder,
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@cache
def warm_python() -> WarmPython:
    """This process's own."""
    return WarmPython(environment() | {"MLFLOW_DISABLE_TELEMETRY": "true"})


def make_workspace(folder: Path) -> Path:
    """Copy the code, write tiny settings, make it a Git and DVC repository."""
    for name in ("ferd", "tasks", "flows", "sources"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    (folder / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc" / "config")
    (folder / "params.yaml").write_text(yaml.safe_dump(tiny_params(), sort_keys=False))
    for name in (*tiny_params()["benchmarks"], "sweeps"):
        (folder / "results" / name).mkdir(parents=True)
        (folder / "results" / name / ".gitkeep").touch()
    run_in(folder, "git", "init", "--quiet")
    return folder


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A fresh workspace."""
    return make_workspace(tmp_path)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Callable[..., Path]:
    """``made_once(name, make)``: a folder that tests in all processes share; the first to ask makes it."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent

    def folder_of(name: str, make: Callable[[Path], None]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with FileLock(f"{folder}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a making that failed
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def finished(made_once: Callable[..., Path]) -> Path:
    """A workspace in which the flow has brought two methods up to date; not to be changed."""
    return made_once("finished", make_finished)


def keep_digits_alone(folder: Path) -> None:
    """Drop all other benchmarks from a workspace's dvc.yaml: DVC takes seconds over hundreds of stages."""
    content = yaml.safe_load((folder / "dvc.yaml").read_text())
    stages = content["stages"]
    for block in stages.values():
        if "foreach" in block:
            block["foreach"] = {"digits": block["foreach"]["digits"]}
    content["stages"] = {
        name: block
        for name, block in stages.items()
        if "foreach" in block or name in ("sources", "report") or name.endswith("-digits")
    }
    (folder / "dvc.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def make_finished(folder: Path) -> None:
    """Run the flow in a new workspace of ``digits``; its output is kept in ``flow.log``."""
    keep_digits_alone(make_workspace(folder))
    flow = run_in(
        folder,
        *(sys.executable, "-m", "flows.reproduce", "--methods", "ferd", "uniform-noise", "--seeds", "0"),
        timeout=900,  # dozens of tests wait for it: on a busy machine minutes
    )
    assert flow.returncode == 0, flow.stdout + flow.stderr
    (folder / "flow.log").write_text(flow.stdout + flow.stderr)


def copy_workspace(source: Path, target: Path) -> None:
    """Copy all but what other tests' processes may be writing in the shared workspace just now."""
    passing = shutil.ignore_patterns("__pycache__", "tmp", "mlartifacts", "*-journal", "*.lock.*")
    shutil.copytree(source, target, symlinks=True, ignore=passing)


@pytest.fixture
def finished_copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished workspace, to be changed."""
    target = tmp_path / "copy"
    copy_workspace(finished, target)
    return target


def wait_until(
    condition: Callable[[], bool], seconds: float = 60, explain: Callable[[], str] = lambda: ""
) -> None:
    """Poll until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s\n{explain()}"
        time.sleep(0.3)


def heed_interrupts() -> None:
    """In a new process: a shell's background job ignores Ctrl-C, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def free_port() -> int:
    """A port that nothing listens on."""
    (port,) = free_ports(1)
    return port


def free_ports(number: int) -> list[int]:
    """As many ports, each another."""
    with ExitStack() as taken:
        probes = [taken.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def set_param(folder: Path, value: object, *keys: str) -> None:
    """Set a value of a workspace's params.yaml."""
    path = folder / "params.yaml"
    content = yaml.safe_load(path.read_text())
    block = content
    for key in keys[:-1]:
        block = block[key]
    block[keys[-1]] = value
    path.write_text(yaml.safe_dump(content, sort_keys=False))


@pytest.fixture
def change_params() -> Callable[..., None]:
    """``change_params(folder, value, *keys)``: set a value of a workspace's params.yaml."""
    return set_param


@pytest.fixture
def handlers() -> Iterator[None]:
    """This process, and what it starts, heeds signals as usual, whoever began it; afterwards as before."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
