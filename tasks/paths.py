"""Where checkpoints and results are: the names that ``dvc.yaml`` and people rely on."""

import os
from pathlib import Path

from ferd.errors import FerdError

OUTPUTS = Path(os.environ.get("FERD_OUTPUTS", ""))  # a sweep's points keep theirs apart: tasks/sweep.py
CHECKPOINTS = OUTPUTS / "checkpoints"
RESULTS = OUTPUTS / "results"
RESUME = Path(".resume")  # what stages that were interrupted left, and their locks
PAGE = RESULTS / "report" / "index.html"
COST = "-cost.json"  # ends the name of a file that says what a stage took
RESULT_SCHEMA = "ferd-result/1"
ANALYSIS_SCHEMA = "ferd-analysis/2"


def images(benchmark: str, split: str) -> Path:
    """A benchmark's images: ``train``, ``validation`` or ``test``."""
    return Path("data") / benchmark / f"{split}.safetensors"


def teacher(benchmark: str) -> Path:
    """The teacher's weights."""
    return Path("checkpoints") / benchmark / "teacher.safetensors"


def student(benchmark: str, student: str, method: str, seed: int) -> Path:
    """A student's weights; its images are beside it, with the suffix ``.pool``."""
    return CHECKPOINTS / benchmark / student / method / f"s{seed}.safetensors"


def pool(benchmark: str, student: str, method: str, seed: int) -> Path:
    """The folder of images that a student was trained on."""
    return CHECKPOINTS / benchmark / student / method / f"s{seed}.pool"


def result_of(checkpoint: Path) -> Path:
    """The result that evaluating a checkpoint writes."""
    return (RESULTS / checkpoint.relative_to(CHECKPOINTS)).with_suffix(".json")


def cost_of(result: Path, work: str) -> Path:
    """What a stage took, in a file beside its result; ``work``: train, distill, evaluate or analyse."""
    return result.with_suffix(f".{work}{COST}")


def checkpoint_of(result: Path) -> Path:
    """The checkpoint that a result was computed from."""
    return (CHECKPOINTS / result.relative_to(RESULTS)).with_suffix(".safetensors")


def made_by(benchmark: str, checkpoint: Path) -> str:
    """The module, and its arguments, that makes a checkpoint."""
    student, method, seed = identity(checkpoint)
    return (
        f"tasks.distill {benchmark} {student} {method} s{seed}" if student else f"tasks.teacher {benchmark}"
    )


def run_key(checkpoint: Path) -> str:
    """``<student>/<method>/s<seed>`` or ``teacher``: what names a run in MLflow."""
    return "/".join(_identifying(checkpoint))


def identity(checkpoint: Path) -> tuple[str | None, str, int]:
    """(student, method, seed); a teacher is (None, "teacher", 0).

    Raises:
        FerdError: the checkpoint is neither a student's nor a teacher's.
    """
    parts = _identifying(checkpoint)
    if parts == ("teacher",):
        return None, "teacher", 0
    if len(parts) != 3:
        raise FerdError(f"{checkpoint}: neither a teacher's nor a student's checkpoint; give one of those")
    student, method, seed = parts
    return student, method, int(seed.removeprefix("s"))


def _identifying(checkpoint: Path) -> tuple[str, ...]:
    """What follows the benchmark in a checkpoint's path."""
    return checkpoint.with_suffix("").relative_to(CHECKPOINTS).parts[1:]
