"""Whether an edit changed what is distilled: the bytes of shortened students by the code of several commits.

``python -m benchmarks.same_students digits resnet8-w8 --methods ferd no-fae --commits 158b011 HEAD``, in a
folder that has the benchmark's images and teacher: a hash of each student's weights and one of its pool.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors import safe_open

from tasks import paths
from tasks.command import command_line
from tasks.params import read_content, written

ROUNDS, STEPS = 4, 6  # of the generator and of the student, a round


@contextmanager
def at(commit: str, benchmark: str) -> Iterator[Path]:
    """A clone at a commit, with this folder's images and teacher and a schedule that takes seconds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run(["git", "clone", "--quiet", ".", name], check=True)
        subprocess.run(["git", "checkout", "--quiet", commit], cwd=name, check=True)
        settings = read_content(folder / "params.yaml")
        schedule = settings["benchmarks"][benchmark]["distillation"]
        schedule |= {"rounds": ROUNDS, "warmup_rounds": 1}
        for part in ("synthesis", "student"):
            schedule[part]["steps"] = STEPS
        (folder / "params.yaml").write_text(written(settings), "utf-8")
        for file in (
            *(paths.images(benchmark, split) for split in ("train", "validation")),
            paths.teacher(benchmark),
        ):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).symlink_to(file.resolve(strict=True))
        yield folder


def hashes(folder: Path, benchmark: str, student: str, method: str, seed: int) -> tuple[str, str]:
    """Distil in a clone; -> 16 digits each of the SHA-256 of the weights and of the pool's files."""
    command = [sys.executable, "-m", "tasks.distill", benchmark, student, method, f"s{seed}"]
    record = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}  # shortened runs are in nobody's
    environment = os.environ | record | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True)
    weights, pool = hashlib.sha256(), hashlib.sha256()
    with safe_open(folder / paths.student(benchmark, student, method, seed), "pt") as tensors:
        for name in sorted(tensors.keys()):  # without the header: it names settings
            weights.update(tensors.get_tensor(name).numpy().tobytes())
    for file in sorted((folder / paths.pool(benchmark, student, method, seed)).iterdir()):
        pool.update(file.read_bytes())
    return weights.hexdigest()[:16], pool.hexdigest()[:16]


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, distil, print a row a (method, commit)."""
    parser = command_line(__doc__)
    parser.add_argument("benchmark")
    parser.add_argument("student")
    parser.add_argument("--methods", nargs="+", required=True)
    parser.add_argument("--commits", nargs="+", required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    found: dict[str, set[tuple[str, str]]] = {}
    for commit in args.commits:
        with at(commit, args.benchmark) as folder:
            for method in args.methods:
                both = hashes(folder, args.benchmark, args.student, method, args.seed)
                found.setdefault(method, set()).add(both)
                print(f"{method} by {commit}: weights {both[0]}, pool {both[1]}", flush=True)
    for method, different in found.items():
        print(f"{method}: {'the same bytes' if len(different) == 1 else 'DIFFERENT'}")


if __name__ == "__main__":
    main()
