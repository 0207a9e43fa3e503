"""The code behind each result: ``sources/<command>.txt``, a line a file, a hash of its code and its path.

Stages of ``dvc.yaml`` depend on these lists, which the stage ``sources`` writes. A hash covers what computes:
a comment, a docstring or a blank line changes none, and outdates no result
(docs/decisions/2026-11-27-sources.md).
"""

import argparse
import ast
import hashlib
from pathlib import Path

from ferd.files import atomic_write
from tasks.bare_code import bare, parsed
from tasks.process import running

STAGE = "sources"
FOLDER = Path("sources")
COMMANDS = ("data", "teacher", "judge", "distill", "evaluate", "analyse", "report")
# A stage depends on the lists of the networks that its benchmark has: a new network outdates nothing.
NETWORKS = ("mobilenet_v2", "preact_resnet", "resnet", "wide_resnet")
# Events, paths, settings, names and the record: they carry a result, and do not change it.
PLUMBING = frozenset(
    {
        "ferd/__init__.py",
        "ferd/config.py",  # checks settings; each value is a parameter of the stage
        "ferd/errors.py",
        "ferd/files.py",
        "ferd/models/__init__.py",
        "ferd/models/registry.py",  # names of networks; literal parameter counts are tested
        "tasks/__init__.py",
        "tasks/params.py",
        "tasks/paths.py",
        "tasks/process.py",
        "tasks/tracking.py",
    }
)


def lists() -> dict[Path, str]:
    """Each list, by where it is, and its text; of the code in the working directory.

    Raises:
        FerdError: a file is not Python.
    """
    networks = {_network(name) for name in NETWORKS}
    files = {FOLDER / f"{name}.txt": behind(f"tasks/{name}.py") - networks for name in COMMANDS}
    files |= {FOLDER / "networks" / f"{name}.txt": behind(_network(name)) for name in NETWORKS}
    line_of = {path: _line(path) for path in set().union(*files.values())}
    return {path: "".join(line_of[file] for file in sorted(needed)) for path, needed in files.items()}


def outdated() -> set[Path]:
    """The lists that would be other than they are now."""
    return {
        path
        for path, text in lists().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    }


def behind(entry: str) -> set[str]:
    """A file and all of this project that it imports, but for the plumbing and what only that imports."""
    seen: set[str] = set()
    waiting = [entry]
    while waiting:
        path = waiting.pop()
        if path not in seen and path not in PLUMBING:
            seen.add(path)
            waiting += _imports(path)
    return seen


def _line(path: str) -> str:
    return f"{hashlib.sha256(bare(Path(path)).encode()).hexdigest()}  {path}\n"


def _imports(path: str) -> list[str]:
    """Files of this project that a file imports, at any level of nesting."""
    names: list[str] = []
    for node in ast.walk(parsed(Path(path))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    files = [Path(*name.split(".")).with_suffix(".py") for name in names]
    return [str(file) for file in files if file.is_file()]


def _network(name: str) -> str:
    return f"ferd/models/{name}.py"


def main() -> None:
    """Write the lists."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None).parse_args()
    with running(STAGE) as progress:
        progress.start()
        for path, text in lists().items():
            with atomic_write(path) as part:
                part.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
