"""The plan's figures: closed forms for one job, and the command on a workspace where some stages ran."""

import json
import re
import sys

import pytest
import torch

from ferd.datasets import Images, save_images
from tasks import params, plan
from tasks.cost_record import processor
from tasks.job import Job, job_of
from tasks.stage import Stage
from tests.conftest import run_in, tiny_params

SETTINGS = params.validate(tiny_params())
GIVEN = {"training": None, "weights": SETTINGS.benchmark("cifar10-small").teacher.weights}  # of a teacher


@pytest.fixture
def costs(monkeypatch):
    """Costs on a device that does a million floating-point operations a second."""
    monkeypatch.setattr(plan.cost, "attack_rate", lambda *_: 1e6)
    return plan.Costs("digits", SETTINGS, torch.device("cpu"))


def job(kind, method="ferd", student="resnet8-w8"):
    return Job(kind, "digits", student, method)


def test_seconds_are_the_work_at_the_measured_rate(costs):
    assert costs.seconds(job("distill")) == pytest.approx(costs.work(job("distill")).total / 1e6)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0.0 s"), (0.34, "0.3 s"), (59.4, "59 s"), (60, "1.0 min"), (754, "13 min"), (4_442_400, "1,234 h")],
)
def test_a_time_is_told_in_the_unit_that_it_has(seconds, said):
    assert plan.duration(seconds) == said


def test_each_kind_of_stage_is_timed_at_its_own_precision(costs, monkeypatch):
    rates = {"float32": 1e6, "bf16": 2e6}
    monkeypatch.setattr(plan.cost, "attack_rate", lambda *given: rates[given[3]])
    schedule = costs.benchmark.distillation.model_copy(update={"precision": "bf16"})
    costs.benchmark = costs.benchmark.model_copy(update={"distillation": schedule})
    for kind, rate in (("teacher", 1e6), ("distill", 2e6), ("evaluate", 1e6)):
        assert costs.seconds(job(kind)) == pytest.approx(costs.work(job(kind)).total / rate)


def test_each_network_is_timed_at_its_own_rate(costs, monkeypatch):
    rates = {8: 1e6, 16: 4e6}  # by the width of student and teacher
    monkeypatch.setattr(plan.cost, "attack_rate", lambda network, *_: rates[network.conv1.out_channels])
    work = costs.work(job("distill"))
    assert min(work.teacher, work.student, work.generator) > 0
    expected = work.teacher / 4e6 + (work.student + work.generator) / 1e6
    assert costs.seconds(job("distill")) == pytest.approx(expected)


def test_an_analysis_is_of_student_and_teacher_and_a_teachers_of_itself_alone(costs):
    student, teacher = job("analyse"), job("analyse", student=None, method="teacher")
    assert costs.work(teacher).student == 0 < costs.work(teacher).teacher
    assert min(costs.work(student).student, costs.work(student).teacher) > 0
    assert costs.seconds(student) == pytest.approx(costs.work(student).total / 1e6)
    assert costs.disk(student) == 0


def test_a_judge_is_a_classifier_of_its_own_settings(costs):
    judge, teacher = (job(kind, student=None, method="teacher") for kind in ("judge", "teacher"))
    settings = costs.benchmark.analysis.judge
    passes = costs._passes(settings.network)
    images = costs.benchmark.data.train_per_class * 10
    assert costs.work(judge).total == settings.training.epochs * images * passes.training
    costs.benchmark = costs.benchmark.model_copy(
        update={"teacher": costs.benchmark.teacher.model_copy(update=GIVEN)}
    )
    assert costs.work(teacher).total == 0 < costs.work(judge).total


def test_a_network_that_computes_nothing_is_not_calibrated(costs, monkeypatch):
    calibrated = []

    def rate(network, *_):
        calibrated.append(network.conv1.out_channels)
        return 1e6

    monkeypatch.setattr(plan.cost, "attack_rate", rate)
    assert costs.seconds(job("evaluate")) > 0
    assert calibrated == [8]  # the student's width, not the teacher's


def test_test_images_are_counted_where_they_are(costs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    by_the_settings = costs._test_images
    path = plan.paths.images("digits", "test")
    save_images(path, Images(torch.zeros(7, 1, 8, 8, dtype=torch.uint8), torch.arange(7)))
    assert costs._test_images == 7 != by_the_settings
    path.write_bytes(path.read_bytes()[:20])
    assert costs._test_images == by_the_settings


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """``ran(job, stale=..., ...)``: a stage that took four seconds."""
    monkeypatch.chdir(tmp_path)

    def took(job, *, stale=False, **more):
        job.spent.parent.mkdir(parents=True, exist_ok=True)
        job.spent.write_text(json.dumps({"seconds": 4.0, "device": "cpu", "threads": 1, **more}))
        return plan.Planned(job, stale)

    return took


def test_only_what_is_up_to_date_and_of_this_processor_is_compared(costs, ran):
    evaluations = [
        job_of(["tasks.evaluate", f"checkpoints/digits/resnet8-w8/ferd/s{seed}.safetensors"])
        for seed in range(4)
    ]
    done = [
        ran(evaluations[0], processor=processor()),
        ran(evaluations[1], processor=processor(), stale=True),
        ran(evaluations[2], processor="another"),
        ran(evaluations[3]),
    ]
    assert plan.compared(done, costs, torch.device("cpu")) == [4.0 / costs.seconds(evaluations[0])]


def test_a_student_takes_its_weights_and_its_images_on_disk(costs):
    float32_and_counters = 4 * 20_146 + 8 * 9  # parameters and running statistics; a counter a BatchNorm
    images = 3 * 16 * 8 * 8  # rounds of uint8
    assert costs.disk(job("distill")) == 2 * (float32_and_counters + images)  # and in DVC's cache
    assert costs.disk(job("evaluate")) == 0


def test_a_trained_teacher_holds_its_training_images(costs):
    few = costs.memory(job("teacher", student=None))
    images = costs.benchmark.data.train_per_class
    more = costs.benchmark.data.model_copy(update={"train_per_class": images + 7})
    costs.benchmark = costs.benchmark.model_copy(update={"data": more})
    assert costs.memory(job("teacher", student=None)) - few == 7 * 10 * 8 * 8


def test_a_teacher_that_is_only_loaded_is_not_compared(costs, ran):
    commands = (["tasks.teacher", "digits"], ["tasks.evaluate", "checkpoints/digits/teacher.safetensors"])
    teacher, evaluation = (ran(job_of(command), processor=processor()) for command in commands)
    costs.benchmark = costs.benchmark.model_copy(
        update={"teacher": costs.benchmark.teacher.model_copy(update=GIVEN)}
    )
    cpu = torch.device("cpu")
    assert plan.compared([teacher, evaluation], costs, cpu) == [4.0 / costs.seconds(evaluation.job)]


def test_the_time_in_all_is_that_of_every_seed(monkeypatch, capsys):
    taken = {"evaluate": 100.0, "distill": 1000.0}
    monkeypatch.setattr(plan.Costs, "seconds", lambda _, job: taken[job.kind])
    commands = [("tasks.distill", "digits", "resnet8-w8", "ferd", f"s{seed}") for seed in range(2)]
    commands += [
        ("tasks.evaluate", f"checkpoints/digits/resnet8-w8/ferd/s{seed}.safetensors") for seed in range(3)
    ]
    plan.print_plan(["digits"], SETTINGS, [Stage(" ".join(each), (), True, each, ()) for each in commands])
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")] for line in printed.splitlines()]
    assert [row[5] for row in rows if len(row) == 9] == ["33 min", "5.0 min"]
    assert "2 kinds of stages are out of date: 38 min of one device in all" in printed


def test_the_command_lists_what_is_out_of_date_and_compares_what_ran(finished):
    answer = run_in(finished, sys.executable, "-m", "tasks.plan", "digits")
    assert answer.returncode == 0, answer.stderr
    lines = answer.stdout.splitlines()
    rows = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in lines if line.count("│") == 8}
    assert rows["distill digits resnet8-w8 ferd"] == "2"  # seed 0 ran
    assert rows["distill digits resnet8-w8 no-fae"] == "3"
    assert not any(name.startswith("teacher") for name in rows)
    assert rows["judge digits"] == "1"
    assert rows["analyse digits resnet8-w8 ferd"] == "1"
    assert re.search(r"digits: \d+ stages that ran before took \d+\.\d\d times", answer.stdout)


def test_an_unknown_benchmark_is_one_line(workspace):
    answer = run_in(workspace, sys.executable, "-m", "tasks.plan", "nowhere")
    assert answer.returncode != 0
    assert answer.stderr.startswith("plan: benchmark 'nowhere' is unknown; choose from digits")
    assert len(answer.stderr.splitlines()) == 1
