"""The code behind each result: ``sources/<command>.txt``, a line a file, a hash of its code and its path.

Stages of ``dvc.yaml`` depend on these lists, which the stage ``sources`` writes (``tasks.sources``). A hash
covers what computes: a comment, a docstring or a blank line changes none, and outdates no result
(docs/decisions/2026-11-27-sources.md).
"""

import ast
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from ferd.config import Benchmark
from ferd.errors import FerdError
from ferd.models.registry import NETWORKS
from tasks.bare_code import bare, parsed
from tasks.job import job_of

STAGE = "sources"
FOLDER = Path("sources")
OF_NETWORKS = FOLDER / "networks"
COMMANDS = ("data", "teacher", "judge", "distill", "evaluate", "analyse", "report")
REGISTRY = "ferd/models/registry.py"
# Events, paths, settings, names, the record: they carry a result, and do not change it.
PLUMBING = frozenset(
    {
        "ferd/__init__.py",
        "ferd/config.py",  # checks settings; each value is a parameter of the stage
        "ferd/errors.py",
        "ferd/files.py",
        "ferd/models/__init__.py",
        REGISTRY,  # names of networks; literal parameter counts are tested
        "tasks/__init__.py",
        "tasks/command.py",
        "tasks/cost_record.py",
        "tasks/lineage.py",
        "tasks/params.py",
        "tasks/paths.py",
        "tasks/process.py",
        "tasks/storage.py",
        "tasks/tracking.py",
    }
)


def lists(commands: Sequence[str] = COMMANDS) -> dict[Path, str]:
    """The lists of commands and of all networks, by where they are; of the code in the working directory.

    Raises:
        FerdError: a file is not Python.
    """
    networks = network_files()
    files = {FOLDER / f"{name}.txt": behind(f"tasks/{name}.py") - {*networks.values()} for name in commands}
    files |= {OF_NETWORKS / f"{name}.txt": behind(file) for name, file in networks.items()}
    return {path: "".join(map(_line, sorted(needed))) for path, needed in files.items()}


def network_files() -> dict[str, str]:
    """The registry's files of networks, by name.

    A stage depends on the lists of those that its benchmark has: a new network outdates nothing.
    """
    imported = [Path(path) for path in _imports(REGISTRY, Path())]
    kinds = [path for path in imported if path.parent == Path(REGISTRY).parent]
    return {path.stem: str(path) for path in kinds if path.stem not in ("__init__", "classifier")}


def network_lists(command: Sequence[str], benchmarks: Mapping[str, Benchmark]) -> set[Path]:
    """The lists of the networks that a stage's command builds or loads; of names that are unknown none."""
    job = job_of(command)
    if job is None or job.benchmark not in benchmarks:
        return set()
    benchmark, student = benchmarks[job.benchmark], job.student
    teacher, judge = benchmark.teacher.network, benchmark.analysis.judge.network
    built = {
        "teacher": (teacher,),
        "judge": (judge,),
        "distill": (teacher, student),
        "evaluate": (student or teacher,),
        "analyse": (teacher, student, judge) if student else (teacher,),
    }.get(job.kind, ())
    known = {network for network in built if network and network in NETWORKS}
    return {OF_NETWORKS / f"{_file_of(network)}.txt" for network in known}


def _file_of(network: str) -> str:
    """The file of ``ferd/models`` that has a network's class, without its suffix."""
    made_by = NETWORKS[network]
    return getattr(made_by, "func", made_by).__module__.rpartition(".")[2]


def outdated(among: Mapping[Path, str]) -> list[Path]:
    """Those of these lists that are others on disk, or not there."""
    return [path for path, text in among.items() if not path.is_file() or path.read_text("utf-8") != text]


def require(command: str) -> None:
    """Refuse to compute with other code than the lists on disk say: by them DVC records a result.

    Raises:
        FerdError: they are of other code.
    """
    for path in outdated(lists([command])):
        again = f"`dvc repro --single-item {STAGE}`, then run again"
        raise FerdError(f"{path}: is of other code than what is here; {again}")


def behind(entry: str, root: Path = Path()) -> set[str]:
    """A file and all below ``root`` that it imports, but for the plumbing and what only that imports."""
    seen: set[str] = set()
    waiting = [entry]
    while waiting:
        path = waiting.pop()
        if path not in seen and path not in PLUMBING:
            seen.add(path)
            waiting += _imports(path, root)
    return seen


def code_hash(path: Path) -> str:
    """SHA-256 (hex) of what computes in a file.

    Raises:
        FerdError: the file is not Python.
    """
    return hashlib.sha256(bare(path).encode()).hexdigest()


def _line(path: str) -> str:
    return f"{code_hash(Path(path))}  {path}\n"


def _imports(path: str, root: Path) -> list[str]:
    """Files below ``root`` that one of them imports, at any level of nesting, packages' own among them.

    Raises:
        FerdError: the file is not Python, or an import is relative.
    """
    names: list[str] = []
    for node in ast.walk(parsed(root / path)[1]):
        if isinstance(node, ast.ImportFrom):
            if not node.module or node.level:
                raise FerdError(f"{path}:{node.lineno}: a relative import; write it in full, to be followed")
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    modules = [Path(*name.split(".")) for name in names]
    files = [file for module in modules for file in (module.with_suffix(".py"), module / "__init__.py")]
    return [str(file) for file in files if (root / file).is_file()]
