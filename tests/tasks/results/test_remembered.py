"""A result says where it was made with other settings than there are now, by what DVC remembers."""

import hashlib
from pathlib import Path

import pytest
import yaml

from ferd.errors import FerdError
from tasks.results.remembered import Remembered

RESULT = "results/digits/resnet8-w8/ferd/s{}.json"
STUDENT = "checkpoints/digits/resnet8-w8/ferd/s{}.safetensors"
TEACHER = "checkpoints/digits/teacher.safetensors"
PARAMS = {
    "benchmarks": {"digits": {"evaluation": {"batch_size": 8}, "distillation": {"rounds": 3}}},
    "methods": {"ferd": {"utae": {"gamma": 0.5}}},
}


def md5(text):
    return hashlib.md5(text.encode()).hexdigest()


def stage(command, used, made, **settings):
    files = [[{"path": path, "md5": md5(text)} for path, text in group.items()] for group in (used, made)]
    return {
        "cmd": f"python -m {command}",
        "params": {"params.yaml": settings},
        "deps": files[0],
        "outs": files[1],
    }


def of_seed(seed, gamma=0.5, rounds=3, teacher="teacher"):
    student, result = STUDENT.format(seed), RESULT.format(seed)
    made_with = {
        "benchmarks.digits.distillation": {"rounds": rounds},
        "methods.ferd": {"utae": {"gamma": gamma}},
    }
    return {
        f"distill-s{seed}": stage(
            f"tasks.distill digits resnet8-w8 ferd s{seed}", {TEACHER: teacher}, {student: "w"}, **made_with
        ),
        f"evaluate-s{seed}": stage(
            f"tasks.evaluate {student}", {student: "w"}, {result: f"result {seed}"},
            **{"benchmarks.digits.evaluation": {"batch_size": 8}},
        ),
    }  # fmt: skip


@pytest.fixture
def remembered(tmp_path, monkeypatch):
    """``remembered(seed=facts, ...)``: the lines of results that were made so."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(PARAMS), encoding="utf-8")

    def outdated(*seeds):
        stages = {"teacher": stage("tasks.teacher digits", {}, {TEACHER: "teacher"})}
        results = {}
        for seed, facts in enumerate(seeds):
            stages |= of_seed(seed, **facts)
            results[seed] = Path(RESULT.format(seed))
            results[seed].parent.mkdir(parents=True, exist_ok=True)
            results[seed].write_text(f"result {seed}")
        Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}), encoding="utf-8")
        return Remembered().outdated(results)

    return outdated


def test_what_was_made_as_it_would_be_now_is_not_outdated(remembered):
    assert remembered({}, {}) == {}


def test_a_mean_over_two_settings_is_said(remembered):
    assert remembered({}, {"gamma": 0.3}, {"gamma": 0.3}) == {
        "made with methods.ferd.utae.gamma 0.3, where params.yaml has 0.5; run again before you compare": [
            1,
            2,
        ]
    }


def test_so_is_another_teacher_and_whatever_else_is_different(remembered):
    (reason,) = remembered({"teacher": "another", "gamma": 0.3, "rounds": 9})
    assert "distillation.rounds 9, where params.yaml has 3, methods.ferd.utae.gamma 0.3, where" in reason
    assert f"another {TEACHER} than there is now; run again" in reason


def test_a_lock_that_lost_the_student_s_stage_does_not_vouch_for_its_result(remembered):
    remembered({})
    lock = yaml.safe_load(Path("dvc.lock").read_text(encoding="utf-8"))
    del lock["stages"]["distill-s0"]
    Path("dvc.lock").write_text(yaml.safe_dump(lock), encoding="utf-8")
    (reason,) = Remembered().outdated({0: Path(RESULT.format(0))})
    assert reason.startswith(f"made with {STUDENT.format(0)}, of which dvc.lock has no stage")


def test_a_setting_that_is_gone_is_named(remembered):
    Path("params.yaml").write_text(yaml.safe_dump(PARAMS | {"methods": {}}), encoding="utf-8")
    assert "gamma 0.5, where params.yaml has none" in next(iter(remembered({})))


def test_a_file_that_dvc_did_not_write_has_settings_that_nobody_knows(remembered):
    remembered({}, {})
    results = {seed: Path(RESULT.format(seed)) for seed in (0, 1)}
    results[1].write_text("by hand")
    ((reason, seeds),) = Remembered().outdated(results).items()
    assert reason.startswith("not as DVC's stage wrote it") and seeds == [1]
    results[2] = Path(RESULT.format(2))
    assert [*Remembered().outdated(results)][1].startswith("dvc.lock has no stage that")
    Path("dvc.lock").unlink()  # then nothing is known, and nothing is said
    assert Remembered().outdated(results) == {}


@pytest.mark.parametrize(
    "content",
    [
        "- 1",
        "stages: 5",
        "stages: {a: {}}",
        "a: [",
        "stages: {a: {cmd: x, outs: [1]}}",
        "stages: {a: {cmd: x, deps: [{path: y}]}}",
        "stages: {a: {cmd: x, deps: }}",
        "stages: {a: {cmd: x, params: }}",
    ],
)
def test_a_damaged_lock_is_one_line(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    Path("dvc.lock").write_text(content, encoding="utf-8")
    with pytest.raises(FerdError, match=r"^dvc\.lock: cannot be read as DVC wrote it; `git checkout"):
        Remembered()
