"""What DVC remembers of the stages that made a result: the settings then, and whether they still hold."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from ferd.errors import FerdError
from ferd.files import check_fields
from tasks import params
from tasks.paths import CHECKPOINTS

LOCK = Path("dvc.lock")
FILES = [{"path": str, "md5": str}]
OPTIONAL_FIELDS = {"deps": FILES, "outs": FILES, "params": {"params.yaml": dict}}
SHOWN = 3  # differences that a line names


def remembered() -> "Remembered":
    """What DVC remembers now; read once where several benchmarks are looked at.

    Raises:
        FerdError: as ``Remembered``.
    """
    files = [path.absolute() for path in (LOCK, params.PARAMS) if path.exists()]
    return _as_of(tuple((file, file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=1)
def _as_of(_files: tuple[tuple[Path, int], ...]) -> "Remembered":
    return Remembered()


def locked_stages(lock: Path) -> dict[str, dict[str, Any]]:
    """The stages of a ``dvc.lock`` by name, each with its command, parameters and files; none without a file.

    Raises:
        FerdError: it is cut or damaged.
    """
    from dvc.exceptions import DvcException
    from dvc.utils.serialize import parse_yaml  # by C code: the lock has half a megabyte

    if not lock.exists():
        return {}
    damaged = FerdError(f"{lock}: cannot be read as DVC wrote it; `git checkout {lock}`")
    try:
        stages = parse_yaml(lock.read_text("utf-8"), lock)["stages"]
        for name, stage in stages.items():
            present = {key: kind for key, kind in OPTIONAL_FIELDS.items() if key in stage}
            check_fields(stage, {"cmd": str, **present}, name)
    except (DvcException, FerdError, ValueError, LookupError, TypeError, AttributeError):
        raise damaged from None
    return dict(stages)


class Remembered:
    """The stages of ``dvc.lock``, by the files that they wrote.

    Raises:
        FerdError: as ``locked_stages``.
    """

    def __init__(self) -> None:
        self._by_output = {
            out["path"]: (stage, out["md5"])
            for stage in locked_stages(LOCK).values()
            for out in stage.get("outs", ())
        }

    @cached_property
    def _present(self) -> dict[str, Any]:
        return params.flatten(params.read_content(params.PARAMS))

    def settings_of(self, output: Path) -> dict[str, Any]:
        """The parameters of the stage that wrote a file last; none where DVC does not remember it."""
        stage, _ = self._by_output.get(str(output), ({}, ""))
        return _settings(stage)

    def outdated(self, results: Mapping[int, Path]) -> dict[str, list[int]]:
        """What results were made with that does not hold any more, and the seeds of which this is so.

        By DVC's record of each ``evaluate`` stage and of all stages before it. Where DVC remembers nothing at
        all, results are not judged.

        Args:
            results: by seed.
        """
        seeds = defaultdict(list)
        for seed, path in results.items():
            if self._by_output and (reason := self._reason(path)):
                seeds[reason].append(seed)
        return dict(seeds)

    def _reason(self, path: Path) -> str:
        if str(path) not in self._by_output:
            return f"{LOCK} has no stage that wrote it, so that its settings are not known; run that stage"
        stage, written = self._by_output[str(path)]
        if hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() != written:
            return "not as DVC's stage wrote it, so that its settings are not known; run that stage again"
        found = list(dict.fromkeys(self._changed(stage)))
        if not found:
            return ""
        more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        return f"made with {', '.join(found[:SHOWN])}{more}; run again before you compare"

    def _changed(self, stage: Mapping[str, Any]) -> Iterator[str]:
        """Settings and files of a stage, and of those before it, that are others now."""
        for key, then in params.flatten(_settings(stage)).items():
            now = self._present.get(key, "none")
            if now != then:
                yield f"{key} {then}, where params.yaml has {now}"
        for dep in stage.get("deps", ()):
            if dep["path"] in self._by_output:
                before, written = self._by_output[dep["path"]]
                if dep["md5"] != written:
                    yield f"another {dep['path']} than there is now"
                yield from self._changed(before)
            elif Path(dep["path"]).is_relative_to(CHECKPOINTS):
                yield f"{dep['path']}, of which {LOCK} has no stage"


def _settings(stage: Mapping[str, Any]) -> dict[str, Any]:
    return dict(stage.get("params", {}).get("params.yaml", {}))
