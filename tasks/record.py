"""Complete MLflow's record from the results at hand: ``python -m tasks.record``.

The stages write their runs as they compute. This adds what a person who browses asks for: what an
experiment is and how to read it, the results that were computed elsewhere, a run's table of classes, its
images and its dataset, and the final student as a model. It may be repeated: a run is completed once a
result.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ferd.checkpoint import load_classifier
from ferd.config import Benchmark, DistillationSettings, Method, parse
from ferd.datasets import dataset
from ferd.distillation import RoundRecord
from ferd.errors import FerdError
from ferd.files import check_fields, read_json_lines
from ferd.models.classifier import Classifier
from tasks import params, paths, process, tracking
from tasks.command import as_command, command_line
from tasks.distill import metrics_of
from tasks.mlflow_view import ABLATION, GAMMA, save_gamma_view
from tasks.params import Params
from tasks.results import stored, tidy
from tasks.results.remembered import Remembered, remembered

EVERY_ROUND = "generator/agreement"  # a metric that each round of a student has
COMPLETED = "completed"  # a run's tag: the result, and whether its model is there
REPORT = "report"  # the run that holds the page
DESCRIPTION = """\
{teacher} -> {students}, adversaries of ε {epsilon:.4g} in [0, 1] pixels, {rounds} rounds of {batch} images.

**A run** is a student `<network>/<method>/s<seed>`, distilled without data (but for the control
`real-data`), or the `teacher`. Runs are flat: choose some and press *Compare*.

**Parameters**: `student`, `method`, `gamma` (the weight of UTAE's uniform term) and `seed` first of all.

**Metrics**: `robust/<attack>/average`, `worst` (the weakest class) and `nsd` (spread over classes, relative
to the average: lower is fairer) on test images; `generator/…` and `student/…` by round;
`generator/agreement` is the share of synthetic images to which the teacher gives the requested label.

**Artifacts**: `per_class.json` (a row a class), the last synthetic images of each class, the result file.
The run `report` holds the page with all charts.

Does γ matter? Runs of `no-utae` (γ = 0), `gamma-…` and `ferd` carry the tag `ablation = gamma`; `make ui`
prints the link to their charts.
"""


def main() -> None:
    """Complete what the record lacks of every benchmark that has results."""
    parser = command_line(__doc__)
    parser.add_argument("benchmarks", nargs="*", help="by default all of params.yaml")
    args = parser.parse_args()
    with as_command("record"):
        settings = params.read()
        for name in args.benchmarks or settings.benchmarks:
            complete(name, settings)
            print(f"{name}: complete in the record")


def complete(name: str, settings: Params) -> str | None:
    """Describe a benchmark's experiment, and complete a run for each of its results.

    -> the link of its γ comparison (``tasks.mlflow_view``); None where fewer than two values of γ ran.
    """
    benchmark = settings.benchmark(name)
    groups = stored.load(name, classes=len(dataset(benchmark.data.dataset).class_names))
    if not groups:
        return None
    with tracking.connected() as client:
        experiment = tracking.experiment(client, name)
    with _alone():
        _warn_of_another_folder(client, experiment)
        client.set_experiment_tag(experiment, "mlflow.note.content", description(benchmark))
        client.set_experiment_tag(experiment, "mlflow.experimentKind", "custom_model_development")
        known, made_with = own_runs(client, experiment), remembered()
        for group in groups:
            for path, result in zip(group.paths, group.results, strict=True):
                _complete_run(client, experiment, known, settings, made_with, path, result)
        _keep_report(client, experiment, known.get(REPORT, []))
        compared = {group.method for group in groups} & tidy.gammas(settings.methods).keys()
        return save_gamma_view(client, experiment) if len(compared) > 1 else None


@contextmanager
def _alone() -> Iterator[None]:
    """One process at a time completes this folder's record: two would both import the same results.

    Raises:
        FerdError: MLflow failed, or a file cannot be read.
    """
    from mlflow.exceptions import MlflowException

    try:
        with process.alone("record"):
            yield
    except (MlflowException, OSError) as error:
        reason = tracking.reason_of(error)
        raise FerdError(f"mlflow: {reason}; see to that, then run again: it goes on where it was") from None


def _warn_of_another_folder(client: Any, experiment: str) -> None:
    """Say where artifacts go outside this folder, as after it was moved or copied with its record."""
    location = urlsplit(client.get_experiment(experiment).artifact_location)
    folder = Path(unquote(location.path))
    local = client.tracking_uri.startswith("sqlite:") and location.scheme == "file"
    if local and not folder.is_relative_to(Path.cwd().resolve()):
        print(
            f"mlflow: artifacts go to {folder}, outside this folder, which was moved or copied; to have them "
            f"here, move {client.tracking_uri} away and run python -m tasks.record",
            file=sys.stderr,
        )


def _keep_report(client: Any, experiment: str, runs: Sequence[Any]) -> None:
    """The report page as an artifact of a run of its own, which shows it in MLflow."""
    if not paths.PAGE.exists():
        return
    done = process.sha256(paths.PAGE)[:16]
    if not runs or runs[0].data.tags.get(COMPLETED) != done:
        made = client.create_run(experiment, run_name=REPORT, tags={"run_key": REPORT})
        client.log_artifact(made.info.run_id, str(paths.PAGE))
        client.set_tag(made.info.run_id, COMPLETED, done)
        client.set_terminated(made.info.run_id)


def description(benchmark: Benchmark) -> str:
    """What the experiment is, in Markdown."""
    return DESCRIPTION.format(
        teacher=benchmark.teacher.network,
        students=", ".join(benchmark.students),
        epsilon=benchmark.threat_model.epsilon,
        rounds=benchmark.distillation.rounds,
        batch=benchmark.distillation.batch_size,
    )


def own_runs(client: Any, experiment: str) -> dict[str, list[Any]]:
    """The runs of each student by its ``run_key``, the newest first; not those of sweeps and nights."""
    runs: dict[str, list[Any]] = defaultdict(list)
    token = None
    while True:
        page = client.search_runs([experiment], order_by=["attributes.start_time DESC"], page_token=token)
        for run in page:
            if "run_key" in run.data.tags and "sweep_id" not in run.data.tags:
                runs[run.data.tags["run_key"]].append(run)
        token = page.token
        if not token:
            return runs


def _complete_run(
    client: Any,
    experiment: str,
    known: Mapping[str, Sequence[Any]],
    settings: Params,
    made_with: Remembered,
    path: Path,
    result: Mapping[str, Any],
) -> None:
    checkpoint = paths.checkpoint_of(path)
    key = paths.run_key(checkpoint)
    runs = known.get(key, [])
    has_model = bool(result["student"]) and checkpoint.exists()  # teachers are large, and the same for all
    done = f"{process.sha256(path)[:16]}{' and model' if has_model else ''}"
    completed = [run for run in runs if run.data.tags.get(COMPLETED, "").startswith(done)]
    found = completed or [run for run in runs if _holds(run, result)]
    if not found:
        check_fields(result, {"threat_model": dict}, str(path), "run its evaluate stage")
    rounds = _rounds(path) if result["student"] else []
    if found:
        run_id = found[0].info.run_id
    else:
        run_id = _import(client, experiment, key, parameters(result, settings, made_with), path, result)
    _compare(client, run_id, runs, compared=result["method"] in tidy.gammas(settings.methods))
    if completed:
        return
    benchmark = settings.benchmark(result["benchmark"])
    class_names = dataset(benchmark.data.dataset).class_names
    _add_rounds(client, run_id, rounds, written=int(path.stat().st_mtime * 1000))
    _log_table(client, run_id, per_class(result, class_names), "per_class.json")
    client.log_artifact(run_id, str(path))
    images = path.with_suffix(".images.png")
    if images.exists():
        client.log_artifact(run_id, str(images))
    _log_dataset(client, run_id, benchmark, result)
    if has_model:
        _log_model(client, run_id, load_classifier(checkpoint), dataset(benchmark.data.dataset).size)
    client.set_tag(run_id, COMPLETED, done)


def _compare(client: Any, run_id: str, runs: Sequence[Any], *, compared: bool) -> None:
    """Of all runs of a key, this one alone is a point of the comparison of γ, if its method is compared."""
    tagged = {run.info.run_id for run in runs if ABLATION in run.data.tags}
    for other in tagged - {run_id}:
        client.delete_tag(other, ABLATION)
    if compared and run_id not in tagged:
        client.set_tag(run_id, ABLATION, GAMMA)


def _log_table(client: Any, run_id: str, columns: Mapping[str, Sequence[Any]], name: str) -> None:
    """A table as MLflow shows them, in place of the one that is there: its ``log_table`` would add rows."""
    rows = list(zip(*columns.values(), strict=True))
    client.log_dict(run_id, {"columns": list(columns), "data": rows}, name)
    client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([{"path": name, "type": "table"}]))


def figures(result: Mapping[str, Any]) -> dict[str, float]:
    """A result's figures as the metrics that the evaluate stage writes."""
    return tracking.robustness(result["attacks"], result.get("other_balls", []))


def per_class(result: Mapping[str, Any], class_names: Sequence[str]) -> dict[str, list[Any]]:
    """A column an attack, a row a class."""
    columns = {attack: list(values["per_class"]) for attack, values in result["attacks"].items()}
    return {"class": list(class_names), **columns}


def _holds(run: Any, result: Mapping[str, Any]) -> bool:
    return all(run.data.metrics.get(key) == value for key, value in figures(result).items())


def _import(
    client: Any,
    experiment: str,
    key: str,
    given: Mapping[str, Any],
    path: Path,
    result: Mapping[str, Any],
) -> str:
    """A run for a result that was computed elsewhere: pulled, or committed."""
    from mlflow.entities import Metric, Param, RunTag

    written = int(path.stat().st_mtime * 1000)
    metrics = [Metric(name, value, written, 0) for name, value in figures(result).items()]
    tags = {"run_key": key, "mlflow.source.name": str(path), "imported": "true"}
    run = client.create_run(experiment, start_time=written, run_name=key, tags=tags)
    run_id = str(run.info.run_id)
    params_given = [Param(name, str(value)) for name, value in given.items()]
    client.log_batch(run_id, metrics, params_given, [RunTag("mlflow.source.type", "LOCAL")])
    client.set_terminated(run_id, end_time=written)
    return run_id


def _add_rounds(client: Any, run_id: str, rounds: Sequence[RoundRecord], written: int) -> None:
    """Those that a run lacks: all where it was imported, or some that an outage of MLflow kept from it."""
    from mlflow.entities import Metric

    there = {point.step for point in client.get_metric_history(run_id, EVERY_ROUND)}
    metrics = [
        Metric(name, value, written, record.round)
        for record in rounds
        if record.round not in there
        for name, value in metrics_of(record).items()
    ]
    client.log_batch(run_id, metrics)


def _rounds(result: Path) -> list[RoundRecord]:
    """What ``distill`` recorded of a result's student, as far as this folder has it."""
    path, names = result.with_suffix(".rounds.jsonl"), [field.name for field in fields(RoundRecord)]
    if not path.exists():
        return []
    lines = read_json_lines(path, dict.fromkeys(names, object), again="run its distill stage")
    return [RoundRecord(**{name: line[name] for name in names}) for line in lines]


def parameters(result: Mapping[str, Any], settings: Params, made_with: Remembered) -> dict[str, Any]:
    """As the stage gives them: what is compared first, then all settings.

    Those that the student was made with; of one that DVC does not remember, today's.
    """
    threat = params.flatten(result["threat_model"])
    if result["student"] is None:
        return {"network": result["network"]} | threat
    benchmark, student, name, seed = (result[key] for key in ("benchmark", "student", "method", "seed"))
    then = made_with.settings_of(paths.student(benchmark, student, name, seed))
    method, schedule = settings.methods.get(name), settings.benchmark(benchmark).distillation
    with suppress(KeyError, FerdError):  # DVC does not remember it, or of another version
        key = f"benchmarks.{benchmark}.distillation"
        schedule = parse(DistillationSettings, then[key], key)
        method = parse(Method, then[f"methods.{name}"], f"methods.{name}")
    if method is None:  # it left params.yaml; its result is still there
        return {"method": name, "student": student, "seed": seed} | threat
    return tracking.student_parameters(student, name, seed, method, schedule, result["threat_model"])


def _log_dataset(client: Any, run_id: str, benchmark: Benchmark, result: Mapping[str, Any]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    kind = dataset(benchmark.data.dataset)
    judged_images = max(figures["n"] for figures in result["attacks"].values())
    images = paths.images(result["benchmark"], "test")
    digest = process.sha256(images)[:16] if images.exists() else "not at hand"
    judged = Dataset(
        name=f"{benchmark.data.name} test",
        digest=digest,
        source_type="local",
        source=json.dumps({"uri": str(images)}),
        profile=json.dumps({"images": judged_images, "classes": len(kind.class_names), "size": kind.size}),
    )
    client.log_inputs(run_id, [DatasetInput(judged, [InputTag("mlflow.data.context", "evaluation")])])


def _log_model(client: Any, run_id: str, network: Classifier, size: int) -> None:
    """The network with its signature: images (N, channels, H, W) float32 in [0, 1] -> logits (N, classes)."""
    import mlflow
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    shape = (network.channels, size, size)
    float32 = np.dtype("float32")
    signature = ModelSignature(
        Schema([TensorSpec(float32, (-1, *shape))]),
        Schema([TensorSpec(float32, (-1, network.classes))]),
    )
    mlflow.set_tracking_uri(client.tracking_uri)
    ended = client.get_run(run_id).info
    with mlflow.start_run(run_id=run_id):  # which ends it anew, now
        mlflow.pytorch.log_model(
            network.eval(),
            name="classifier",
            signature=signature,
            input_example=np.zeros((2, *shape), dtype=np.float32),
            pip_requirements=["ferd", "torch"],
        )
    client.set_terminated(run_id, ended.status, end_time=ended.end_time)


if __name__ == "__main__":
    main()
