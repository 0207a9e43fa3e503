"""What came of sweeps: ``results/sweeps/<sweep_id>.json``, schema ``ferd-sweep/2``.

``sweep_id``, ``benchmark``, ``student``, ``method``, ``key``; ``inputs``, the SHA-256 of each file that the
points depend on (teacher, images; of code as in ``tasks.lineage``); and ``points``, a list of
``{"value": ..., "result": ...}``, a result as ``tasks.evaluate`` writes it, its seed included, ordered by
value and seed. Of newer ones also ``settings``, the hash of all settings of its points but the swept key's.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ferd.config import Benchmark, Method, Settings, fingerprint
from ferd.files import read_json
from tasks.lineage import code_hash
from tasks.paths import RESULTS
from tasks.process import sha256
from tasks.results.stored import Group, check_figures

SCHEMA = "ferd-sweep/2"
FOLDER = RESULTS / "sweeps"
Value = float | int | str | bool
USED = ("threat_model", "augmentation", "distillation", "evaluation")  # blocks that points read
NAMES = ("sweep_id", "benchmark", "student", "method", "key")
RESULT_FIELDS = {"method": str, "seed": int, "attacks": dict}
FIELDS = {
    **dict.fromkeys(NAMES, str),
    "inputs": dict,
    "points": [{"value": Value, "result": RESULT_FIELDS}],
}


@dataclass(frozen=True)
class SweepResults:
    """The points that are done: a group of seeds a value, in the order of the values.

    ``inputs``: the files that they depend on, by their SHA-256 when the sweep ran, each time that it did.
    ``own``: the value of ``params.yaml``, where the benchmark's students stand for it.
    ``settings``: the hash of all other settings of its points; None of a sweep that did not write it.
    """

    sweep_id: str
    benchmark: str
    student: str
    method: str
    key: str
    inputs: Mapping[str, Collection[str]]
    groups: Mapping[Value, Group]
    own: Value | None = None
    settings: str | None = None

    def changed(self) -> list[str]:
        """The inputs that are other files here and now; those that are missing are not known to be."""
        return [
            name
            for name, expected in self.inputs.items()
            if Path(name).exists() and {input_hash(Path(name))} != set(expected)
        ]


def input_hash(path: Path) -> str:
    """SHA-256 (hex) of a file, or of what computes in it."""
    return code_hash(path) if path.suffix == ".py" else sha256(path)


def results_file(sweep_id: str) -> Path:
    """The results of a sweep's points together."""
    return FOLDER / f"{sweep_id}.json"


def load(path: Path, seeds: Sequence[int] | None = None) -> SweepResults:
    """The results of a sweep; ``seeds``: of these alone.

    Raises:
        FerdError: the file is not that of a sweep.
    """
    again = "run the sweep again"
    content = read_json(path, FIELDS, schema=SCHEMA, again=again)
    grouped: dict[Value, list[dict[str, Any]]] = {}
    for point in content["points"]:
        check_figures(point["result"], str(path), again)
        if seeds is None or point["result"]["seed"] in seeds:
            grouped.setdefault(point["value"], []).append(point["result"])
    groups = {
        value: Group(content["student"], results[0]["method"], tuple(results), (path,) * len(results))
        for value, results in grouped.items()
    }
    inputs = {name: [expected] for name, expected in content["inputs"].items()}
    names = {name: content[name] for name in NAMES}
    return SweepResults(**names, inputs=inputs, groups=groups, settings=content.get("settings"))


def of_benchmark(name: str) -> list[SweepResults]:
    """What sweeps of a benchmark have results of, one a student, method, key and state of other settings.

    One that ran again since code or teacher changed has another file: of a seed that is in both, the file
    counts of which less has changed since.
    """
    found = [load(path) for path in sorted(FOLDER.glob(f"{name}-*.json"))]
    together: dict[tuple[str | None, ...], SweepResults] = {}
    for sweep in sorted(found, key=lambda sweep: len(sweep.changed()), reverse=True):
        if sweep.benchmark == name and sweep.groups:
            what = sweep.student, sweep.method, sweep.key, sweep.settings
            together[what] = _beside(together[what], sweep) if what in together else sweep
    return sorted(
        together.values(), key=lambda sweep: (sweep.key, sweep.student, sweep.method, sweep.settings or "")
    )


def _beside(older: SweepResults, newer: SweepResults) -> SweepResults:
    """Both together."""
    groups = {
        value: _united([part.groups[value] for part in (older, newer) if value in part.groups])
        for value in sorted({**older.groups, **newer.groups}, key=order)
    }
    names = {**older.inputs, **newer.inputs}
    inputs = {name: [*older.inputs.get(name, ()), *newer.inputs.get(name, ())] for name in names}
    return replace(newer, groups=groups, inputs=inputs)


def _united(groups: Sequence[Group]) -> Group:
    """Their results, a seed each: the last group's where several have it."""
    by_seed = {
        result["seed"]: (result, path)
        for group in groups
        for result, path in zip(group.results, group.paths, strict=True)
    }
    results, paths = zip(*(by_seed[seed] for seed in sorted(by_seed)), strict=True)
    return replace(groups[-1], results=results, paths=paths)


def beside_own_students(
    sweep: SweepResults, benchmark: Benchmark, methods: Mapping[str, Method], groups: Sequence[Group]
) -> SweepResults:
    """The sweep with the value that ``params.yaml`` has, too: ``groups``, the benchmark's, stand for it.

    Not where the sweep is of other settings than ``params.yaml`` has now.
    """
    method = methods.get(sweep.method)
    own = next(
        (group for group in groups if (group.student, group.method) == (sweep.student, sweep.method)), None
    )
    if method is None or own is None:
        return sweep
    if sweep.settings and sweep.settings != fingerprint(other_settings(benchmark, method, sweep.key)):
        return sweep
    value = setting(benchmark, method, sweep.key)
    if value in sweep.groups or not isinstance(value, Value):
        return sweep
    together = {**sweep.groups, value: own}
    return replace(sweep, groups={each: together[each] for each in sorted(together, key=order)}, own=value)


def setting(benchmark: Benchmark, method: Method, key: str) -> Any:
    """What a key of the method's block or the benchmark's is set to; None where there is none."""
    found: Any = method if in_method(key) else benchmark
    for part in key.split("."):
        if isinstance(found, Settings):
            found = getattr(found, part, None)
        else:
            found = found.get(part) if isinstance(found, Mapping) else None
    return found


def other_settings(benchmark: Benchmark, method: Method, key: str) -> dict[str, Any]:
    """All settings that the points of a sweep of ``key`` have in common."""
    block = benchmark.model_dump()
    common = {name: block[name] for name in USED} | {"method": method.model_dump()}
    common["dataset"] = block["data"]["dataset"]
    *parents, last = key.split(".")
    changed = common["method"] if in_method(key) else common
    for parent in parents:
        changed = changed[parent]
    changed.pop(last, None)  # a key that the block may have, and has not
    return common


def in_method(key: str) -> bool:
    """Whether a key is of the method's block."""
    return key.split(".")[0] in Method.model_fields


def order(value: Value) -> tuple[bool, float, str]:
    """Numbers before words."""
    return (True, 0.0, value) if isinstance(value, str) else (False, float(value), "")
