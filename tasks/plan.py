"""What is out of date and what it will cost, before anything is spent: ``python -m tasks.plan``.

FLOPs are counted on the real networks (``ferd.cost``), hours follow from a short calibration of this
machine's device, and what earlier stages really took is set against what is predicted for them.
"""

import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from math import prod
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError, safe_open

from ferd import cost
from ferd.config import Benchmark, Precision, Teacher
from ferd.datasets import Dataset, dataset
from ferd.errors import FerdError
from ferd.models.classifier import Classifier
from ferd.models.generator import Generator
from ferd.models.registry import build
from tasks import params, paths
from tasks.command import as_command, command_line
from tasks.cost_record import processor
from tasks.device import device_name, device_type
from tasks.dvc_pipeline import Pipeline
from tasks.job import TEACHERS, Job, job_of
from tasks.results.stored import own_seconds, read_cost
from tasks.stage import Stage

TEST_IMAGES = {"digits": 500}
USUAL_TEST_IMAGES = 10_000
UNITS = (("h", 3600), ("min", 60), ("s", 1))


@dataclass(frozen=True)
class Planned:
    """A job, and whether its stage must run."""

    job: Job
    stale: bool


def planned_jobs(stages: Iterable[Stage]) -> list[Planned]:
    """The stages of dvc.yaml that train, distil, evaluate or analyse."""
    found = [(job_of(stage.command), stage.stale) for stage in stages]
    return [Planned(job, stale) for job, stale in found if job and job.kind != "data"]


class Costs:
    """Work, seconds and bytes of a benchmark's jobs on this machine's device."""

    def __init__(self, name: str, settings: params.Params, device: torch.device) -> None:
        self.name, self.settings, self.device = name, settings, device
        self.benchmark: Benchmark = settings.benchmark(name)
        self.data: Dataset = dataset(self.benchmark.data.dataset)
        self.shape = self.data.shape

    def work(self, job: Job) -> cost.Work:
        """FLOPs of a job."""
        teacher = self._passes(self._given(job).network)
        if job.kind in TEACHERS:
            training = self._given(job).training
            return cost.training_work(training, self._training_images, teacher) if training else cost.Work()
        student = self._passes(job.student) if job.student else teacher
        if job.kind == "evaluate":
            return cost.evaluation_work(self.benchmark.evaluation, self._test_images, student)
        if job.kind == "analyse":
            analysis, utae_steps = self.benchmark.analysis, self.benchmark.distillation.utae_steps
            classes = len(self.data.class_names)
            return cost.analysis_work(
                analysis, utae_steps, classes, teacher, student if job.student else None
            )
        schedule, method = self.benchmark.distillation, self.settings.method(job.method)
        return cost.distillation_work(
            schedule,
            method,
            teacher,
            student,
            self._generator,
            self._bottleneck_step(method.nonrobust.layer),
            self.benchmark.threat_model.steps,
        )

    def seconds(self, job: Job) -> float:
        """Each network's FLOPs at the rate that it reached in the calibration, at the job's precision."""
        precision, work, teacher = self._precision(job), self.work(job), self._given(job).network
        student = job.student or teacher
        parts = ((work.teacher, teacher), (work.student, student), (work.generator, student))
        return sum(flops / self._rate(network, precision) for flops, network in parts if flops)

    def memory(self, job: Job) -> int:
        """Bytes on the device at the largest moment."""
        teacher = self._meta(self._given(job).network)
        student = self._meta(job.student) if job.student else teacher
        if job.kind == "distill":
            return cost.distillation_memory(self.benchmark.distillation, teacher, student, self.shape)
        training = self._given(job).training
        if job.kind in TEACHERS and training:
            return cost.teacher_memory(training, self._training_images, teacher, self.shape)
        if job.kind == "analyse":
            batch = self.benchmark.analysis.batch_size
            return max(cost.training_memory(network, batch, self.shape) for network in (teacher, student))
        return cost.training_memory(student, self.benchmark.evaluation.batch_size, self.shape)

    def disk(self, job: Job) -> int:
        """Bytes of a job's checkpoint and pool, twice: DVC's cache holds a copy."""
        if job.kind in ("evaluate", "analyse"):
            return 0
        network = self._meta(job.student or self._given(job).network)
        size = cost.weights_bytes(network)
        if job.kind == "distill":
            schedule = self.benchmark.distillation
            size += schedule.rounds * schedule.batch_size * prod(self.shape)
        return 2 * size

    def _given(self, job: Job) -> Teacher:
        """The teacher's settings; those of the judge for the job that makes it."""
        return self.benchmark.analysis.judge if job.kind == "judge" else self.benchmark.teacher

    @property
    def _training_images(self) -> int:
        return self.benchmark.data.train_per_class * len(self.data.class_names)

    @property
    def _test_images(self) -> int:
        made = paths.images(self.name, "test")
        if made.exists():  # of a damaged file, what the settings say
            with suppress(SafetensorError), safe_open(made, framework="pt") as file:
                return int(file.get_slice("labels").get_shape()[0])
        per_class = self.benchmark.data.test_per_class
        everything = TEST_IMAGES.get(self.benchmark.data.name, USUAL_TEST_IMAGES)
        return per_class * len(self.data.class_names) or everything

    @cache  # noqa: B019 - lives as long as the command
    def _meta(self, network: str) -> Classifier:
        return self._build(network).to("meta")

    @cache  # noqa: B019
    def _passes(self, network: str) -> cost.Passes:
        return cost.passes(self._meta(network), torch.empty(2, *self.shape, device="meta"))

    @cache  # noqa: B019
    def _bottleneck_step(self, layer: int) -> float:
        teacher = self._meta(self.benchmark.teacher.network)
        return cost.bottleneck_flops(teacher, layer, torch.empty(2, *self.shape, device="meta"))

    @cached_property
    def _generator(self) -> cost.Passes:
        latent = self.benchmark.distillation.synthesis.latent_dim
        with torch.device("meta"):
            generator = Generator(latent, self.shape[0], self.shape[1])
        return cost.passes(generator, torch.empty(2, latent, device="meta"))

    def _precision(self, job: Job) -> Precision:
        """What its attacks compute in; reported robustness is always judged in float32."""
        training = self._given(job).training
        if job.kind in TEACHERS and training:
            return training.precision
        return self.benchmark.distillation.precision if job.kind == "distill" else "float32"

    @cache  # noqa: B019
    def _rate(self, network: str, precision: Precision) -> float:
        where = f"{network}, {self.shape[1]}×{self.shape[2]}, {precision}"
        print(f"calibrating {where} ...", file=sys.stderr, flush=True)
        torch.set_num_threads(self.benchmark.distillation.threads)
        batch = self.benchmark.distillation.batch_size
        return cost.attack_rate(self._build(network), self.shape, batch, precision, self.device)

    def _build(self, network: str) -> Classifier:
        return build(network, classes=len(self.data.class_names), channels=self.data.channels)


def print_plan(benchmarks: Sequence[str], settings: params.Params, stages: Sequence[Stage]) -> None:
    """The stages that are out of date, a line for all seeds of each, and how far predictions were off."""
    device = torch.device(device_type())
    everything = planned_jobs(stages)
    table = Table(title=f"out of date, and what it costs on {device_name(device)}")
    table.add_column("stage", no_wrap=True)
    for heading in ("stages", "PFLOP each", "time each", "time", "memory GB", "disk MB each"):
        table.add_column(heading, justify="right")
    ratios_of: dict[str, list[float]] = {}
    total = 0.0
    for benchmark in benchmarks:
        costs = Costs(benchmark, settings, device)
        own = [planned for planned in everything if planned.job.benchmark == benchmark]
        for job, count in _stale_groups(own):
            seconds = costs.seconds(job)
            total += count * seconds
            table.add_row(
                " ".join(part for part in _group(job) if part),
                str(count),
                f"{costs.work(job).total / 1e15:,.3g}",
                duration(seconds),
                duration(count * seconds),
                f"{costs.memory(job) / 1e9:.2f}",
                f"{costs.disk(job) / 1e6:,.0f}",
            )
        ratios_of[benchmark] = compared(own, costs, device)
    console = Console(width=None if Console().is_terminal else 120)
    if table.row_count:
        console.print(table)
    print(
        f"{table.row_count} kinds of stages are out of date: {duration(total)} of one device in all "
        "(not counted: data and report)"
    )
    for benchmark, ratios in ratios_of.items():
        if ratios:
            print(
                f"{benchmark}: {len(ratios)} stages that ran before took {median(ratios):.2f} times what is "
                f"predicted on this device (median; {min(ratios):.2f} to {max(ratios):.2f})"
            )


def duration(seconds: float) -> str:
    """Such as ``0.3 s``, ``12 min`` or ``1,234 h``: two digits, or all before the point."""
    unit, length = next((pair for pair in UNITS if seconds >= pair[1]), UNITS[-1])
    value = seconds / length
    return f"{value:,.1f} {unit}" if value < 9.95 else f"{value:,.0f} {unit}"


def compared(own: Sequence[Planned], costs: Costs, device: torch.device) -> list[float]:
    """What a stage took over what is predicted, of each that is up to date and computed on such a device."""
    current = [planned.job for planned in own if not planned.stale]
    current = [job for job in current if costs.work(job).total]  # a teacher's file costs none
    took = {job: _spent(job, device) for job in current}
    return [seconds / costs.seconds(job) for job, seconds in took.items() if seconds is not None]


def _stale_groups(own: Sequence[Planned]) -> list[tuple[Job, int]]:
    groups: dict[tuple[str, ...], list[Job]] = {}
    for planned in own:
        if planned.stale:
            groups.setdefault(_group(planned.job), []).append(planned.job)
    return [(members[0], len(members)) for members in groups.values()]


def _group(job: Job) -> tuple[str, ...]:
    """What jobs of other seeds share."""
    return job.kind, job.benchmark, job.student or "", job.method


def _spent(job: Job, device: torch.device) -> float | None:
    """Seconds that the stage took by itself, where it ran on such a device and in one go."""
    record = read_cost(job.spent)
    if not record or record["device"] != device_name(device):
        return None
    alike = device.type != "cpu" or record.get("processor") == processor()
    return own_seconds(record) if alike else None


def main() -> None:
    """Parse the command line, ask DVC, print."""
    parser = command_line(__doc__)
    parser.add_argument("benchmarks", nargs="*", help="by default all of params.yaml")
    args = parser.parse_args()
    with as_command("plan"):
        settings = params.read()
        chosen = args.benchmarks or list(settings.benchmarks)
        for benchmark in chosen:
            settings.benchmark(benchmark)
        try:
            print_plan(chosen, settings, Pipeline().plan())
        except OSError as error:
            reason = "DVC must be able to write to this folder, even to read its pipeline"
            raise FerdError(f"{error}; {reason}") from None


if __name__ == "__main__":
    main()
