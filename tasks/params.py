"""``params.yaml`` -> validated settings; the one place where it is read."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError

from ferd.config import Benchmark, Fraction, Method, NonNegative, Settings, parse
from ferd.datasets import dataset
from ferd.errors import FerdError
from ferd.models.registry import NETWORKS
from tasks.paths import CHECKPOINTS

PARAMS = Path(os.environ.get("FERD_PARAMS", "params.yaml"))  # a sweep's point has its own: tasks/sweep.py
PLAIN_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9_-]*")
CONTROLS = ("real-data", "uniform-noise", "untrained-generator")
USED = {  # by command: keys of its benchmark that a result depends on, as dvc.yaml has them for its stages
    "data": ("data",),
    "teacher": ("augmentation", "data.dataset", "evaluation.batch_size", "teacher", "threat_model"),
    "judge": ("analysis.judge", "augmentation", "data.dataset", "evaluation.batch_size", "threat_model"),
    "distill": ("augmentation", "data.dataset", "distillation", "threat_model"),
    "evaluate": ("data.dataset", "evaluation", "threat_model"),
    "analyse": ("analysis", "data.dataset", "distillation.utae_steps", "threat_model"),
}


class Tolerances(Settings):
    """How far a figure may be from the committed one elsewhere (``tasks.results.verdict``).

    ``average`` and ``worst`` in fractions of the images, ``nsd`` in fractions of the committed NSD; or so
    many standard errors over seeds, where that is more.
    """

    average: Fraction
    worst: Fraction
    nsd: NonNegative
    standard_errors: NonNegative


class Nightly(Settings):
    """What ``flows.nightly`` computes anew every night, and when it finds a figure changed."""

    benchmarks: Annotated[list[str], Field(min_length=1)]
    tolerances: Tolerances


@dataclass(frozen=True)
class Params:
    """All benchmarks and methods, by name, and what is run every night."""

    benchmarks: dict[str, Benchmark]
    methods: dict[str, Method]
    nightly: Nightly

    def benchmark(self, name: str) -> Benchmark:
        """The benchmark of that name, or one line that lists them."""
        return _lookup(self.benchmarks, name, "benchmark")

    def method(self, name: str) -> Method:
        """The method of that name, or one line that lists them."""
        return _lookup(self.methods, name, "method")


def read(path: Path = PARAMS) -> Params:
    """Read and validate every block.

    Raises:
        FerdError: the file is missing or not YAML, or a block has a fault; says which key.
    """
    content = read_content(path)
    try:
        return validate(content)
    except FerdError as error:
        raise FerdError(f"{path}: {error}") from None


def read_content(path: Path) -> Any:
    """The settings as they are written, not validated, by the reader and the dialect (YAML 1.2) of DVC.

    Raises:
        FerdError: the file is missing, cannot be read, is not YAML or has a key twice.
    """
    try:
        return parsed(path.read_text("utf-8"))
    except FileNotFoundError:
        raise FerdError(f"{path}: not found; run from the project's root folder") from None
    except OSError as error:
        raise FerdError(f"{path}: cannot be read: {error.strerror or error}; correct that") from None
    except DuplicateKeyError as error:
        line = error.problem_mark.line + 1
        raise FerdError(f"{path}: line {line}: {error.problem}; remove one of them") from None
    except (YAMLError, ValueError) as error:  # the second: not UTF-8, or a date that there is not
        raise FerdError(f"{path}: not valid YAML in UTF-8: {' '.join(str(error).split())}") from None


def parsed(text: str) -> Any:
    """YAML 1.2 by ``ruamel.yaml``'s safe reader, which refuses a key given twice."""
    return YAML(typ="safe").load(text)


def written(content: Any) -> str:
    """What ``parsed`` and DVC read as the same content; another dialect's writer would leave "1e3" bare."""
    text = StringIO()
    yaml: Any = YAML(typ="safe")
    yaml.default_flow_style = yaml.sort_base_mapping_type_on_output = False
    yaml.dump(content, text)
    return text.getvalue()


def put(content: Any, key: str, value: Any) -> None:
    """Set ``a.b.c`` in settings as they are written.

    Raises:
        FerdError: there is no block ``a.b``.
    """
    *parents, last = key.split(".")
    block = content
    for parent in parents:
        block = block.get(parent) if isinstance(block, dict) else None
    if not isinstance(block, dict):
        raise FerdError(f"{key}: unknown key; {'.'.join(parents)} is no block of keys")
    block[last] = value


def flatten(block: Mapping[str, Any] | Settings, prefix: str = "") -> dict[str, Any]:
    """Nested settings as ``a.b.c`` keys."""
    items = block.model_dump() if isinstance(block, Settings) else block
    flat: dict[str, Any] = {}
    for key, value in items.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def validate(content: Any) -> Params:
    """As ``read``, of content that was already read."""
    blocks = _section(content, "the whole file")
    for key in blocks.keys() - {"benchmarks", "methods", "nightly"}:
        raise FerdError(f"{key}: unknown key at the top; only benchmarks, methods and nightly")
    params = Params(
        {
            name: parse(Benchmark, _section(block, f"benchmarks.{name}"), f"benchmarks.{name}")
            for name, block in _section(blocks.get("benchmarks"), "benchmarks").items()
        },
        {
            name: parse(Method, _section(block, f"methods.{name}"), f"methods.{name}")
            for name, block in _section(blocks.get("methods"), "methods").items()
        },
        parse(Nightly, _section(blocks.get("nightly"), "nightly"), "nightly"),
    )
    for name, benchmark in params.benchmarks.items():
        try:
            kind = dataset(benchmark.data.dataset)
        except FerdError as error:
            raise FerdError(f"benchmarks.{name}.data.{error}") from None
        try:
            benchmark.require_fitting(len(kind.class_names))
        except FerdError as error:
            raise FerdError(f"benchmarks.{name}.{error}") from None
        judge = benchmark.analysis.judge.network
        for network in (benchmark.teacher.network, judge, *benchmark.students):
            _lookup(NETWORKS, network, f"benchmarks.{name}: network")
    for name in params.nightly.benchmarks:
        _lookup(params.benchmarks, name, "nightly.benchmarks: benchmark")
    return params


def require_plain_names(known: Params) -> None:
    """Refuse names that DVC would take apart; a sweep's own settings, which it does not read, have others.

    Raises:
        FerdError: a benchmark or a method has one.
    """
    for group, names in (("benchmarks", known.benchmarks), ("methods", known.methods)):
        for name in names:
            if not PLAIN_NAME.fullmatch(name):
                raise FerdError(
                    f"{PARAMS}: {group}: {name!r} is no name: it is part of paths and of DVC's keys, where a "
                    "dot goes deeper; take letters, digits, - and _, as in gamma-0_3"
                )


def used_by(task: str) -> list[Any]:
    """What the result of a stage such as ``distill digits/resnet8-w8/ferd/s0`` depends on, of all settings.

    Raises:
        FerdError: as ``read``.
    """
    known = read()
    command, _, what = task.partition(" ")
    if command not in USED:  # the report
        return [known.benchmarks, known.methods]
    name, _, method, *_ = [*what.split("/"), "", "", ""]
    benchmark = known.benchmarks.get(name)
    used = [attrgetter(key)(benchmark) for key in USED[command]] if benchmark else []
    return [*used, known.methods.get(method)] if command == "distill" else used


def benchmark_of(checkpoint: Path) -> str:
    """The benchmark whose checkpoint is meant, as a command is given it.

    Raises:
        FerdError: checkpoints are kept elsewhere.
    """
    place = rf"{re.escape(str(CHECKPOINTS))}/([^/]+)/([^/]+|[^/]+/[^/]+/s\d+)\.safetensors"
    found = re.fullmatch(place, str(checkpoint))
    if not found:
        raise FerdError(
            f"{checkpoint}: no checkpoint's place; from the project's root folder, give "
            f"{CHECKPOINTS}/BENCHMARK/teacher.safetensors or "
            f"{CHECKPOINTS}/BENCHMARK/STUDENT/METHOD/sSEED.safetensors"
        )
    return found[1]


def _section(block: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(block, Mapping):
        raise FerdError(f"{where}: must be a block of keys, found {block!r}")
    for key in block:
        if not isinstance(key, str):
            raise FerdError(f"{where}: the key {key!r} is not text; put it in quotes, or give another name")
    return block


def _lookup(known: Mapping[str, Any], name: str, kind: str) -> Any:
    if name not in known:
        raise FerdError(f"{kind} {name!r} is unknown; choose from {', '.join(known)}")
    return known[name]
