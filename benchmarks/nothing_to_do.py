"""What DVC takes where every stage of the grid is up to date: ``python -m benchmarks.nothing_to_do``.

In a temporary clone of the last commit, with stand-ins for the outputs that are not in Git (a file with its
own path in it) and a ``dvc.lock`` of all stages: no result of the real one is touched.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import networkx
import torch
from dvc.repo import Repo
from dvc.stage import Stage
from dvc.stage.serialize import to_single_stage_lockfile
from dvc.utils import serialize

from benchmarks.measure import seconds_of
from tasks import dvc_patches
from tasks.command import command_line

LOCK = Path("dvc.lock")


def finish_all() -> int:
    """Make every stage up to date, in the working directory; -> how many there are."""
    repo = Repo(".")
    with repo.lock:
        graph = repo.index.graph
        LOCK.unlink()
        entries = {}
        for stage in reversed(list(networkx.topological_sort(graph))):
            _stand_in(stage)
            stage.save()
            stage.commit()
            entries[stage.name] = to_single_stage_lockfile(stage)
    serialize.dump_yaml(str(LOCK), {"schema": "2.0", "stages": entries})
    return len(entries)


def _stand_in(stage: Stage) -> None:
    for out in stage.outs:
        path = Path(out.def_path)
        if not path.exists():
            file = path if path.suffix not in ("", ".pool") else path / "stand-in"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(out.def_path, "utf-8")


def nothing_to_do(*command: str) -> tuple[float, float]:
    """Seconds of the processor, and in all, of a module over every stage; when DVC knows the files."""
    for _ in range(2):
        before = os.times()
        done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=True)
        after = os.times()
        assert "Running stage" not in done.stdout
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return used, after.elapsed - before.elapsed


def measure() -> None:
    """Print what is up to date, what that takes, and what a stage's reading and writing of its lock takes."""
    stages = finish_all()
    text = LOCK.read_text("utf-8")
    print(f"{stages} stages up to date, dvc.lock of {len(text) / 1000:.0f} KB")
    for module, *options in (("dvc",), ("dvc", "-P"), ("tasks.run_dvc",), ("tasks.run_dvc", "-P")):
        used, passed = nothing_to_do(module, "repro", *options)
        command = " ".join(["python -m", module, "repro", *options])
        print(f"{command}, nothing to do: {used:.1f} s of processor time, {passed:.1f} s in all")
    torch.set_num_threads(1)  # then `seconds_of` is of the processor
    by_dvc = seconds_of(_a_stage, torch.device("cpu"))
    dvc_patches.apply()
    ours = seconds_of(_a_stage, torch.device("cpu"))
    print(f"a stage reads dvc.lock and changes it: {by_dvc:.1f} s by dvc, {ours:.1f} s by tasks.run_dvc")


def _a_stage() -> None:
    """What DVC does with the lock for one that runs."""
    serialize.load_yaml(str(LOCK))
    with serialize.modify_yaml(str(LOCK)) as content:
        content["stages"]["report"]["cmd"] += "x"


def main() -> None:
    """Clone, and measure there."""
    command_line(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "--quiet", ".", folder], check=True)
        os.chdir(folder)
        measure()


if __name__ == "__main__":
    main()
