"""What a stage of ``dvc.yaml`` computes, and for whom: read from its command."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks import params, paths

TEACHERS = ("teacher", "judge")  # kinds that make a network on real images, one for all students


@dataclass(frozen=True)
class Job:
    """A stage's kind, ``distill`` of ``tasks.distill``; its benchmark; the student that it is about, if any.

    ``checkpoint`` is the network that it makes or looks at; of ``data`` there is none.
    """

    kind: str
    benchmark: str
    student: str | None = None
    method: str = ""
    seed: int = 0
    checkpoint: Path = Path()

    @property
    def spent(self) -> Path:
        """The file that says what the stage took when it last ran."""
        work = "train" if self.kind in TEACHERS else self.kind
        return paths.cost_of(paths.result_of(self.checkpoint), work)


def job_of(command: Sequence[str]) -> Job | None:
    """Of a stage's module and its arguments; None where these are none of a benchmark's stage.

    Raises:
        FerdError: what is evaluated or analysed is neither a teacher's nor a student's checkpoint.
    """
    match list(command):
        case ["tasks.data", benchmark]:
            return Job("data", benchmark)
        case ["tasks.teacher" | "tasks.judge" as module, benchmark]:
            kind = module.removeprefix("tasks.")
            return Job(kind, benchmark, checkpoint=paths.teacher(benchmark).with_stem(kind))
        case ["tasks.distill", benchmark, student, method, seed] if seed.removeprefix("s").isdecimal():
            number = int(seed.removeprefix("s"))
            checkpoint = paths.student(benchmark, student, method, number)
            return Job("distill", benchmark, student, method, number, checkpoint)
        case ["tasks.evaluate" | "tasks.analyse" as module, file]:
            kind, checkpoint = module.removeprefix("tasks."), Path(file)
            return Job(kind, params.benchmark_of(checkpoint), *paths.identity(checkpoint), checkpoint)
    return None


def methods_of(benchmark: str) -> set[str]:
    """The methods whose students dvc.yaml, if there is one, evaluates.

    By its text: DVC itself takes seconds to read it.

    Raises:
        FerdError: it cannot be read.
    """
    pipeline = Path("dvc.yaml")
    stages = params.read_content(pipeline)["stages"] if pipeline.exists() else {}
    of_students = [
        stage for name, stage in stages.items() if name.startswith("evaluate") and "matrix" in stage
    ]
    return {
        str(method)
        for stage in of_students
        if benchmark in [block.get("benchmark") for block in stage.get("vars", []) if isinstance(block, dict)]
        for method in stage["matrix"].get("method", [])
    }
