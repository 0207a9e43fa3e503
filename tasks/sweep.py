"""A sweep: one key of the settings at several values, over seeds; what its points are and what came of them.

A point is a student, distilled and evaluated under the settings of ``params.yaml`` with one key changed. It
is no stage of ``dvc.yaml``; its outputs are in a folder named by the hash of all that they depend on
(docs/decisions/2026-11-25-sweep.md):

    sweeps/<sweep_id>/                               the settings, weights, images and results of its points
    results/sweeps/<sweep_id>.json                   their results together (tasks/results/stored_sweeps.py)
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ferd.config import Benchmark, Method, fingerprint
from ferd.datasets import dataset
from ferd.errors import FerdError
from ferd.files import atomic_write, read_json, write_json
from ferd.models.registry import build
from ferd.student_losses import fixes_its_weight
from tasks import lineage, params, paths, tracking
from tasks.mlflow_view import address, save_view
from tasks.results.stored_sweeps import (
    SCHEMA,
    USED,
    Value,
    in_method,
    input_hash,
    load,
    order,
    other_settings,
    results_file,
    setting,
)
from tasks.stage import StageFailed, run_module
from tasks.table import print_groups

FOLDER = Path("sweeps")
WEIGHT = "distillation.student.adversarial_weight"
WHOLE = 1e15  # from here on 1e+15 is the shorter name
TABLE = [(attack, figure) for attack in ("clean", "pgd20") for figure in ("average", "worst", "nsd")]


@dataclass(frozen=True)
class Point:
    """One value and one seed, with all that another process, or another machine, needs to compute it.

    ``method`` is the name that the changed method has in ``settings``, the text of the point's params.yaml;
    ``inputs`` are the files that it depends on, by their hash (``tasks.results.stored_sweeps``).
    """

    sweep_id: str
    benchmark: str
    student: str
    method: str
    key: str
    value: Value
    seed: int
    settings: str
    inputs: Mapping[str, str]

    @property
    def name(self) -> str:
        """``utae.gamma=0.3 s0``."""
        return f"{self.label} s{self.seed}"

    @property
    def label(self) -> str:
        """``utae.gamma=0.3``."""
        return f"{self.key}={plain(self.value)}"

    @property
    def result(self) -> Path:
        """Where its result is, on the machine that collects the sweep."""
        return self._results / f"s{self.seed}.json"

    @property
    def done(self) -> bool:
        """Whether its result is there, whole: the cost is written last."""
        return self.result.exists() and paths.cost_of(self.result, "evaluate").exists()

    @property
    def _results(self) -> Path:
        return FOLDER / self.sweep_id / "results" / self.benchmark / self.student / self.method

    def compute(
        self, workspace: Path, on_event: Callable[[dict[str, Any]], None], environment: Mapping[str, str]
    ) -> None:
        """Distil and evaluate, in a process of its own that uses the code, teacher and data of ``workspace``.

        Raises:
            StageFailed: the process failed, or the workspace is not that of the sweep.
        """
        for path, expected in self.inputs.items():
            if not (workspace / path).exists() or input_hash(workspace / path) != expected:
                reason = (
                    f"{(workspace / path).resolve()} is missing, or another file than where the sweep was "
                    "asked for; bring this machine's clone to the same commit, then `dvc pull` the teacher "
                    "and the images"
                )
                raise StageFailed(self.name, reason, retryable=False)
        settings = FOLDER / self.sweep_id / f"{self.label}-s{self.seed}.yaml"
        with atomic_write(workspace / settings) as part:
            part.write_text(self.settings, "utf-8")
        own = {
            "FERD_PARAMS": str(settings),
            "FERD_OUTPUTS": str(FOLDER / self.sweep_id),
            "FERD_SWEEP_ID": self.sweep_id,
            "FERD_SWEPT": self.label,
        }
        command = ["tasks.point", self.benchmark, self.student, self.method, str(self.seed)]
        run_module(self.name, command, on_event, {**environment, **own}, workspace)

    def files(self, workspace: Path) -> dict[str, bytes]:
        """Its results in ``workspace``, by name: what another machine sends back."""
        folder = workspace / self._results
        return {path.name: path.read_bytes() for path in sorted(folder.glob(f"s{self.seed}.*"))}

    def keep(self, files: Mapping[str, bytes]) -> None:
        """Write what another machine sent back, the cost last."""
        last = paths.cost_of(self.result, "evaluate").name
        for name in sorted(files, key=lambda name: name == last):
            with atomic_write(self._results / name) as part:
                part.write_bytes(files[name])


class Sweep:
    """What is asked for, validated by the types of the settings before anything runs.

    Raises:
        FerdError: no such benchmark, student, method or key, or a value that the key cannot take.
    """

    def __init__(
        self,
        benchmark: str,
        student: str | None,
        method: str,
        key: str,
        values: Sequence[Value],
        seeds: Sequence[int],
    ) -> None:
        known = params.read()
        self.benchmark, self.method, self.key = benchmark, method, key
        self._settings = known.benchmark(benchmark)
        self.student = student or self._settings.students[0]
        kind = dataset(self._settings.data.dataset)
        build(self.student, classes=len(kind.class_names), channels=kind.channels, seed=0)
        known.method(method)
        if not values or not seeds:
            raise FerdError("a sweep needs at least one of values and one of seeds")
        if min(seeds) < 0:
            raise FerdError(f"seed {min(seeds)}: must be 0 or more")
        self.seeds = sorted(set(seeds))
        self._content = params.read_content(params.PARAMS)
        self._refuse_keys_out_of_reach()
        self.values: list[Value] = []
        for value in values:
            accepted = self._accepted(value)
            if accepted not in self.values:
                self.values.append(accepted)

    def _refuse_keys_out_of_reach(self) -> None:
        first = self.key.split(".")[0]
        if not in_method(self.key) and first not in USED:
            why = (
                "a sweep takes the benchmark's data and teacher as they are; begin with"
                if first in Benchmark.model_fields
                else "unknown key; begin with a block of the benchmark or a key of the method:"
            )
            raise FerdError(f"{self.key}: {why} {', '.join([*USED, *Method.model_fields])}")
        if self.key == WEIGHT and fixes_its_weight(params.read().method(self.method)):
            raise FerdError(f"{self.key}: {self.method} takes no notice of it; all points would be alike")

    def _changed(self, value: Value, name: str) -> dict[str, Any]:
        """params.yaml with the key changed, and the method under ``name``."""
        content = deepcopy(self._content)
        method = content["methods"][name] = deepcopy(content["methods"][self.method])
        params.put(method if in_method(self.key) else content["benchmarks"][self.benchmark], self.key, value)
        return content

    def _accepted(self, value: Value) -> Value:
        """The value as the settings' types take it: 0 as 0.0 where the key is a fraction."""
        known = params.validate(self._changed(value, self.method))
        if pool := known.method(self.method).pool_of:
            raise FerdError(
                f"method {self.method!r} with {self.key}={value} replays the pool of {pool!r}, which a sweep "
                "does not make; sweep a method that makes its own images"
            )
        found = setting(known.benchmark(self.benchmark), known.method(self.method), self.key)
        if not isinstance(found, float | int | str):
            raise FerdError(f"{self.key}: is a whole block; sweep one of the keys in it")
        return found

    @cached_property
    def inputs(self) -> dict[str, str]:
        """The files that the points depend on, by their hash; the teacher and the data must be there."""
        splits = ["test", "train"] if self._needs_training_images else ["test"]
        files = [paths.teacher(self.benchmark), *(paths.images(self.benchmark, split) for split in splits)]
        return {str(path): input_hash(path) for path in [*files, *_code()]}

    @property
    def _needs_training_images(self) -> bool:
        images = [self._content["methods"][self.method]["images"]]
        return "real-data" in [*images, *(self.values if self.key == "images" else ())]

    @cached_property
    def id(self) -> str:
        """Readable, and with the hash of all that the points have in common: not their values and seeds.

        So a sweep that is asked for again with more of either adds to what is there.
        """
        name = f"{self.benchmark}-{self.student}-{self.method}-{self.key}"
        return f"{name}-{fingerprint(self._common, self.inputs)[:8]}"

    @cached_property
    def _common(self) -> dict[str, Any]:
        """The settings that the points have in common, whatever params.yaml has by now."""
        known = params.validate(self._content)
        return other_settings(known.benchmark(self.benchmark), known.method(self.method), self.key)

    def points(self) -> list[Point]:
        """A point a seed and value, all values of a seed first: one that is stopped early can be compared."""
        return [
            Point(
                self.id,
                self.benchmark,
                self.student,
                method,
                self.key,
                value,
                seed,
                params.written(self._changed(value, method)),
                self.inputs,
            )
            for seed in self.seeds
            for value in self.values
            for method in [f"{self.method},{self.key}={plain(value)}"]
        ]

    @property
    def threads(self) -> int:
        """How many threads a point computes with."""
        return max(self._settings.distillation.threads, self._settings.evaluation.threads)

    def write_results(self) -> Path | None:
        """Put together what all points of the sweep came to, those of earlier runs included; -> the file.

        None where no point has come to anything yet.
        """
        found = []
        pattern = f"results/{self.benchmark}/{self.student}/*/s*.evaluate{paths.COST}"
        for cost in (FOLDER / self.id).glob(pattern):
            file = cost.with_name(f"{cost.name.partition('.')[0]}.json")
            if not file.exists():
                continue
            result = read_json(file, {"method": str, "seed": int}, again="run the sweep again")
            text = result["method"].removeprefix(f"{self.method},{self.key}=")
            found.append({"value": self._accepted(parse_value(text)), "result": result})
        if not found:
            return None
        path = results_file(self.id)
        write_json(
            path,
            {
                "schema": SCHEMA,
                "sweep_id": self.id,
                "benchmark": self.benchmark,
                "student": self.student,
                "method": self.method,
                "key": self.key,
                "settings": fingerprint(self._common),
                "inputs": self.inputs,
                "points": sorted(found, key=lambda point: (order(point["value"]), point["result"]["seed"])),
            },
        )
        return path

    def link(self) -> str:
        """Where MLflow shows the comparison: a chart a metric, the key across, this sweep's runs alone."""
        with tracking.connected() as client:
            experiment = tracking.experiment(client, self.benchmark)
            place = save_view(client, experiment, self.id, f"tags.sweep_id = '{self.id}'", self.key)
        served = os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http")
        return f"{address()}{place}{'' if served else ' (after `make ui`)'}"


def parse_value(text: str) -> Value:
    """A value as it is typed: a number, ``true``, ``false``, or a word."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, float | int) else text


def plain(value: Value) -> str:
    """A value in a name: ``0.3``, ``0`` for 0.0, a word; what a path cannot hold is replaced."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < WHOLE:
        return str(int(value))
    return re.sub(r"[^\w.+-]", "_", str(value))


def print_table(sweep: Sweep) -> None:
    """Print what the sweep was asked for, a row a value."""
    found = load(results_file(sweep.id), sweep.seeds).groups
    groups = {value: found[value] for value in sweep.values if value in found}
    title = (
        f"{sweep.benchmark}, {sweep.student}, {sweep.method}: accuracy in percent on so many test images; "
        "NSD = std/mean over classes; mean ± sample standard deviation over seeds, of two both values"
    )
    names = {
        sweep.key.replace(".", ".\n"): [plain(value) for value in groups],
        "seeds": [str(len(group.seeds)) for group in groups.values()],
    }
    print_groups(title, names, list(groups.values()), TABLE)


def _code() -> list[Path]:
    """The code that the stages distill and evaluate depend on, and that of all networks."""
    entries = [f"tasks/{name}.py" for name in ("distill", "evaluate")]
    files = {file for entry in entries for file in lineage.behind(entry)}
    return sorted({*map(Path, files), *Path("ferd/models").glob("*.py")})
