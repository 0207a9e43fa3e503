"""The plain references and the real steps compute the same, on a size that takes seconds."""

from pathlib import Path

import pytest
import torch

from benchmarks import reference
from benchmarks.equality import (
    LEAST_COSINE,
    checks_of_steps,
    checks_on_real_images,
    generator_gradients,
    real_images,
)
from benchmarks.steps import STEPS, Bench, Size

CPU = torch.device("cpu")
TINY = Size("digits", "resnet8-w16", "resnet8-w8", 8)
COLOURED = Size("cifar10", "resnet8-w16", "resnet8-w8", 4)  # several channels, and flips


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(TINY, "float32", tmp_path, CPU)


@pytest.mark.parametrize("size", [TINY, COLOURED], ids=lambda size: size.benchmark)
def test_the_real_steps_compute_what_the_references_compute(tmp_path, size):
    checks = list(checks_of_steps(Bench(size, "float32", tmp_path, CPU)))
    assert len(checks) == 6
    assert [check for check in checks if not check.passed] == []


def flat(network):
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


def test_whole_steps_of_the_student_go_where_those_of_the_reference_go(bench):
    """Attacked, with the teacher's targets; momentum and decay large enough to be seen in three steps."""
    schedule = bench.settings.distillation
    chosen = schedule.student.model_copy(update={"weight_decay": 2.0, "learning_rate": 0.01})
    schedule = schedule.model_copy(update={"student": chosen, "utae_steps": 2})
    bench.settings = bench.settings.model_copy(update={"distillation": schedule})
    distillation, plain = bench.distillation(), bench.reference_student()
    before = flat(plain.student)
    rng = torch.Generator()
    rng.set_state(distillation.rng.get_state())
    for _ in range(3):
        distillation._train_batch(bench.inputs, bench.labels)
        plain.step(bench.inputs, bench.labels, rng)
    found, expected = (flat(student) - before for student in (distillation.student, plain.student))
    assert torch.cosine_similarity(found, expected, 0) > LEAST_COSINE
    assert found.norm().item() == pytest.approx(expected.norm().item(), rel=2e-3)


@pytest.mark.parametrize("term", ["adv", "bn", "oh", "uni"])
def test_every_term_of_the_generator_has_the_gradient_of_the_reference(bench, term):
    weights = bench.settings.distillation.synthesis.weights
    only = weights.model_copy(update={key: float(key == term) for key in ("adv", "bn", "oh", "uni")})
    synthesis = bench.settings.distillation.synthesis.model_copy(update={"weights": only})
    schedule = bench.settings.distillation.model_copy(update={"synthesis": synthesis})
    bench.settings = bench.settings.model_copy(update={"distillation": schedule})
    found, expected = generator_gradients(bench)
    assert expected.norm() > 1e-3
    assert torch.cosine_similarity(found, expected, 0) > LEAST_COSINE
    assert found.norm().item() == pytest.approx(expected.norm().item(), rel=1e-3)


def test_a_step_that_computes_something_else_is_found(bench, monkeypatch):
    def without_noise(network, features, *_):
        return torch.zeros(features.shape[:2], dtype=torch.bool)

    monkeypatch.setattr(reference, "robust_channels", without_noise)
    gradients, masks, *_ = checks_of_steps(bench)
    assert not masks.passed
    assert not gradients.passed


def test_an_attack_on_something_else_is_found(bench, monkeypatch):
    monkeypatch.setattr(reference, "kl", lambda target_probs, logits: logits.logsumexp(1).sum())
    _, _, student_attack, teacher_attack, *_ = checks_of_steps(bench)
    assert not student_attack.passed
    assert teacher_attack.passed


def test_an_update_of_something_else_is_found(bench, monkeypatch):
    def without_prior(teacher_logits, student_logits, weights):
        return improved_kl(teacher_logits, student_logits, torch.ones_like(weights))

    improved_kl = reference.improved_kl
    monkeypatch.setattr(reference, "improved_kl", without_prior)
    *_, student_attack, teacher_attack, student_update, teacher_update = checks_of_steps(bench)
    assert student_attack.passed and teacher_attack.passed and teacher_update.passed
    assert not student_update.passed


def test_attacks_on_the_twins_are_as_strong_on_real_images(monkeypatch):
    monkeypatch.delenv("FERD_DATA", raising=False)
    (digits,) = real_images(CPU)
    assert len(digits.labels) == 500
    checks = list(checks_on_real_images(digits))
    assert len(checks) == 3
    assert [check for check in checks if not check.passed] == []


@pytest.mark.parametrize("name", STEPS)
def test_both_sides_of_every_step_run(bench, name):
    step = STEPS[name]
    step.reference(bench)()
    step.ours(bench)()
