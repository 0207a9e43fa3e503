"""The pipeline as DVC sees it: its stages, what each needs, and what is out of date."""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from ferd.errors import FerdError
from tasks import lineage, params
from tasks.job import Job, job_of
from tasks.stage import Stage

REPORT = "report"
BUSY_POLL_SECONDS = 1.0
MOST_POLL_SECONDS = 30.0  # after doubling: each attempt reads the files of hundreds of stages
T = TypeVar("T")


class Busy(FerdError):
    """DVC refuses, since another process runs stages of this folder."""


class Pipeline:
    """The stages of ``dvc.yaml`` and ``dvc.lock``, read once: with hundreds of them that takes seconds.

    Raises:
        FerdError: they cannot be read.
    """

    def __init__(self) -> None:
        from dvc.repo import Repo

        from tasks import dvc_patches

        dvc_patches.apply()
        # Of a stage that was stopped it would say, each time, that its lock is removed.
        logging.getLogger("dvc.rwlock").setLevel(logging.ERROR)
        with plain_errors():
            self._repo = Repo(".", _wait_for_lock=True)  # others run stages of this folder meanwhile
            with self._repo.lock:  # by which they write dvc.lock
                graph = self._repo.index.graph
            self._needs = {
                stage.addressing: [need.addressing for need in graph.successors(stage)]
                for stage in graph.nodes
            }
            self._known = {stage.addressing: stage for stage in graph.nodes}

    def student_stages(
        self, benchmark: str, methods: Sequence[str] | None, seeds: Sequence[int] | None
    ) -> list[str]:
        """Names of the stages that evaluate a benchmark's students, by default all.

        Raises:
            FerdError: dvc.yaml has no stage for a method or seed that was named, or for none of the others
                that were named with it, or has one for a student that the benchmark lacks.
        """
        students = self._students(benchmark)
        chosen = {
            name: job
            for name, job in students.items()
            if (methods is None or job.method in methods) and (seeds is None or job.seed in seeds)
        }
        for kind, wanted in (("method", methods), ("seed", seeds)):
            known = list(dict.fromkeys(getattr(job, kind) for job in students.values()))
            found = {getattr(job, kind) for job in chosen.values()}
            for value in wanted or ():
                if value not in known:
                    raise FerdError(
                        f"dvc.yaml evaluates no {kind} {value!r} of {benchmark}; choose from "
                        f"{', '.join(map(str, known))}, or add it to the stages that distil and evaluate them"
                    )
                if value not in found:
                    pairs = dict.fromkeys(
                        f"{job.method} s{job.seed}"
                        for job in students.values()
                        if getattr(job, kind) == value
                    )
                    raise FerdError(
                        f"dvc.yaml evaluates {kind} {value!r} of {benchmark}, but not with what was named "
                        f"beside it; it has {', '.join(pairs)}"
                    )
        return list(chosen)

    def _students(self, benchmark: str) -> dict[str, Job]:
        """The stages that evaluate a benchmark's students, by name."""
        named = params.read().benchmark(benchmark).students
        students = {
            name: job
            for name, job in self._jobs.items()
            if job and job.kind == "evaluate" and job.benchmark == benchmark and job.student
        }
        for name, job in students.items():
            if job.student not in named:
                raise FerdError(
                    f"dvc.yaml: {name} is of the student {job.student}, which "
                    f"benchmarks.{benchmark}.students in params.yaml lacks ({', '.join(named)}); name it "
                    "there, or take it out of dvc.yaml"
                )
        return students

    def analyses_of(self, evaluations: Sequence[str]) -> list[str]:
        """Names of the stages that analyse what these stages evaluate."""
        evaluated = {job.checkpoint for name in evaluations if (job := self._jobs[name])}
        return [
            name
            for name, job in self._jobs.items()
            if job and job.kind == "analyse" and job.checkpoint in evaluated
        ]

    @cached_property
    def _jobs(self) -> dict[str, Job | None]:
        return {name: job_of(module_of(stage.cmd)) for name, stage in self._known.items()}

    def plan(self, targets: Sequence[str] | None = None, *, report: bool = False) -> list[Stage]:
        """The targets and all they need, in topological order; by default every stage.

        A stage must run where DVC finds it changed, or where something it needs must run. Of the lists of
        code those count that ``sources`` would write now. Waits while another process writes what is read.

        Args:
            report: the report in the end, too, though not all that it draws.

        Raises:
            FerdError: dvc.yaml has no such stage, or one that does not depend on the code of its networks.
        """
        names = self._ancestors(targets or list(self._needs)) + ([REPORT] if report else [])
        settings = params.read()
        params.require_plain_names(settings)
        self._refuse_without_network(names, settings)
        lists = lineage.lists()
        changed = when_free(lambda: self._changed(names, lists))
        planned: dict[str, Stage] = {}
        for name in names:
            known = self._known[name]
            upstream = tuple(need for need in self._needs[name] if need in names)
            stale = name in changed or any(planned[need].stale for need in upstream if need != lineage.STAGE)
            uncached = tuple(Path(out.def_path) for out in known.outs if not out.use_cache)
            planned[name] = Stage(name, upstream, stale, module_of(known.cmd), uncached)
        return list(planned.values())

    def _refuse_without_network(self, names: Sequence[str], settings: params.Params) -> None:
        for name in names:
            stage = self._known[name]
            needed = lineage.network_lists(module_of(stage.cmd), settings.benchmarks)
            if lacking := needed - {Path(dep.def_path) for dep in stage.deps}:
                path = min(lacking)
                raise FerdError(
                    f"dvc.yaml: {name} does not depend on {path}, so that a change of its network would "
                    "outdate nothing; give it that file's name as its network (docs/library.md)"
                )

    def _changed(self, names: Sequence[str], lists: Mapping[Path, str]) -> set[str]:
        with self._repo.lock:
            found = {
                name for name in names if name != lineage.STAGE and _is_changed(self._known[name], lists)
            }
        if lineage.STAGE not in self._known:
            raise FerdError(f"dvc.yaml has no stage {lineage.STAGE}, or is not there; git checkout dvc.yaml")
        recorded = {Path(out.def_path): out.hash_info.value for out in self._known[lineage.STAGE].outs}
        unknown = any(recorded.get(path) != _md5(text) for path, text in lists.items())
        return found | ({lineage.STAGE} if unknown or lineage.outdated(lists) else set())

    def _ancestors(self, targets: Sequence[str]) -> list[str]:
        ordered: dict[str, None] = {}

        def visit(name: str) -> None:
            if name not in self._needs:
                raise FerdError(f"dvc.yaml has no stage {name!r}; `dvc stage list` shows those it has")
            if name not in ordered:
                for need in self._needs[name]:
                    visit(need)
                ordered[name] = None

        for target in targets:
            visit(target)
        return list(ordered)


def _is_changed(stage: Any, lists: Mapping[Path, str]) -> bool:
    """Whether DVC finds a stage changed; of the lists of code, by what they would be."""
    for finding in stage.status(check_updates=True).get(stage.addressing, []):
        of = finding.get("changed deps", finding) if isinstance(finding, dict) else {finding}
        if any(Path(path) not in lists for path in of):
            return True
    return any(
        dep.hash_info.value != _md5(lists[path])
        for dep in stage.deps
        if (path := Path(dep.def_path)) in lists
    )


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def module_of(cmd: str | list[str]) -> tuple[str, ...]:
    """``python -m MODULE ARGUMENT ...`` without its first two words; of any other command an empty module."""
    words = cmd.split() if isinstance(cmd, str) else []
    return tuple(words[2:]) if words[1:2] == ["-m"] and len(words) > 2 else ("",)


def when_free(work: Callable[[], T]) -> T:
    """What ``work`` returns; where DVC refuses since another process runs stages here, wait for it."""
    said, pause = False, BUSY_POLL_SECONDS
    while True:
        try:
            with plain_errors():
                return work()
        except Busy as error:
            if not said:
                print(f"waiting: {error}", flush=True)
            said = True
        time.sleep(pause)
        pause = min(2 * pause, MOST_POLL_SECONDS)


@contextmanager
def plain_errors() -> Iterator[None]:
    """DVC's errors as one line each."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.rwlock import RWLockFileCorruptedError, RWLockFileFormatError

    try:
        yield
    except LockError as error:
        said = " ".join(str(error).split())
        raise Busy(f"another process is running stages of this folder ({said})") from None
    except (RWLockFileCorruptedError, RWLockFileFormatError) as error:
        said = " ".join(str(error).split())
        raise FerdError(
            f"dvc: {said}; where no other process runs stages here, delete .dvc/tmp/rwlock"
        ) from None
    except DvcException as error:
        told = [error, error.__cause__] if error.__cause__ else [error]  # the cause names a line of dvc.yaml
        said = ": ".join(" ".join(str(part).split()) for part in told)
        mend = "; `git checkout dvc.lock`" if "'dvc.lock'" in said else ""
        raise FerdError(f"dvc: {said}{mend}") from None
