"""Every method of params.yaml, run and resumed, and how its pieces come together in the loop."""

import logging
from pathlib import Path

import pytest
import torch

from ferd.adversaries import AdaptiveUtaeAdversary, Adversary
from ferd.checkpoint import load_state, save_state
from ferd.config import Augmentation, DistillationSettings, Method
from ferd.distillation import Distillation
from ferd.errors import FerdError
from ferd.image_sources import ReplayedPool
from ferd.pool import Pool
from ferd.student_losses import Batch, Ikl
from tasks import params
from tests.ferd.test_distillation import SCHEDULE, equal, real_images, weights

CPU = torch.device("cpu")
METHODS = params.read(Path(__file__).parents[2] / "params.yaml").methods


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.ERROR)


@pytest.fixture
def make_run(make_network, threat, tmp_path):
    def make(name, folder, schedule: DistillationSettings = SCHEDULE):
        method = METHODS[name]
        given = real_images() if method.images == "real-data" else None
        if method.pool_of:
            given = tmp_path / "finished"
            if not given.exists():
                pool = Pool(given, 48, (1, 8, 8), CPU)
                images, labels = real_images(count=48)
                for number in range(3):
                    rows = slice(16 * number, 16 * number + 16)
                    pool.append(images[rows], labels[rows])
        crops = Augmentation(padding=1, flip=False)
        networks = make_network(), make_network(seed=1)
        target = tmp_path / folder
        return Distillation(*networks, (1, 8, 8), schedule, crops, method, threat, 0, target, CPU, given)

    return make


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_and_a_resumed_run_ends_at_the_same_bits(make_run, tmp_path, name):
    whole = make_run(name, "whole")
    records = list(whole.rounds())
    assert [len(record.student) for record in records] == [0, 2, 2]
    stopped = make_run(name, "stopped")
    rounds = stopped.rounds()
    next(rounds), next(rounds)
    save_state(tmp_path / "state.pt", stopped.state_dict())
    rest = make_run(name, "stopped")
    rest.load_state_dict(load_state(tmp_path / "state.pt"))
    assert list(rest.rounds()) == records[2:]
    assert equal(weights(rest.student), weights(whole.student))


@pytest.mark.parametrize("name", ["rslad", "fair-rslad", "absld"])
def test_a_loss_whose_source_weighs_its_parts_does_not_follow_the_schedule(make_run, name):
    students = []
    for share in (0.0, 1.0):
        student = SCHEDULE.student.model_copy(update={"adversarial_weight": share})
        run = make_run(name, f"pool-{share}", SCHEDULE.model_copy(update={"student": student}))
        list(run.rounds())
        students.append(weights(run.student))
    assert equal(*students)


@pytest.mark.parametrize(("name", "drawn"), [("dfhl-rs", [True, False, False]), ("ferd", [True] * 3)])
def test_the_generator_of_dfhl_rs_goes_on_over_all_rounds(make_run, monkeypatch, name, drawn):
    run = make_run(name, "pool")
    found, before = [], run.source.generator.reinitialise
    monkeypatch.setattr(
        run.source.generator, "reinitialise", lambda rng: (found.append(run.round), before(rng))
    )
    list(run.rounds())
    assert [number in found for number in range(3)] == drawn


@pytest.mark.parametrize(("name", "passes"), [("dfhl-rs", 1), ("ferd", 2)])
def test_the_student_sees_in_training_what_its_loss_looks_at(make_run, name, passes):
    run = make_run(name, "pool")
    rounds = run.rounds()
    next(rounds)
    seen = run.student.state_dict()["bn1.num_batches_tracked"].item()
    next(rounds)
    assert run.student.state_dict()["bn1.num_batches_tracked"] == seen + passes * SCHEDULE.student.steps


@pytest.mark.parametrize(
    ("precision", "trained_in"),
    [("float32", torch.float32), ("bf16-attacks", torch.float32), ("bf16", torch.bfloat16)],
)
def test_every_precision_trains_a_float32_student(make_run, precision, trained_in):
    run = make_run("ferd", "pool", SCHEDULE.model_copy(update={"precision": precision}))
    before = weights(run.student)
    trained, twins = set(), set()

    def note(module, inputs, output):
        if isinstance(module, torch.nn.Conv2d):
            (trained if module.training else twins).add(output.dtype)

    with torch.nn.modules.module.register_module_forward_hook(note):
        list(run.rounds())
    assert trained_in in trained and trained <= {trained_in, torch.float32}  # the generator's own
    assert (torch.bfloat16 in twins) is (precision != "float32")
    assert not equal(before, weights(run.student))
    assert run.student.conv1.weight.dtype == torch.float32


def test_a_replayed_pool_gives_each_round_its_images_and_refuses_another_schedule(tmp_path):
    pool = Pool(tmp_path, 40, (1, 8, 8), CPU)
    pool.append(*real_images())
    source = ReplayedPool(pool, 2, 20)
    images, labels, figures = source.draw(torch.ones(10), 1, torch.Generator())
    assert torch.equal(images, pool.images[20:]) and torch.equal(labels, pool.labels[20:])
    assert figures == {}
    with pytest.raises(FerdError, match="holds 40 images where 3 rounds of 20"):
        ReplayedPool(pool, 3, 20)
    with pytest.raises(FerdError, match="holds more than the 20 images of this schedule"):
        Pool(tmp_path, 20, (1, 8, 8), CPU)


def test_the_loop_shows_the_adversary_what_became_of_its_images(make_run):
    run = make_run("adaptive-gamma", "pool")
    before = run.state_dict()["adversary"]["outcomes"].clone()
    list(run.rounds())
    assert not torch.equal(run.state_dict()["adversary"]["outcomes"], before)


def test_what_a_loaded_state_becomes_leaves_the_state_alone(threat):
    """Two runs may go on from one state in memory."""
    labels, logits = torch.tensor([0, 1]), torch.tensor([[2.0, 0.0, 1.0], [0.0, 2.0, 1.0]])
    images = torch.zeros(2, 1, 8, 8)
    batch = Batch(images, images, labels, lambda _: logits, lambda _: logits.flip(1))
    for piece, use in (
        (Ikl(3, CPU), lambda piece: piece.losses(batch)),
        (AdaptiveUtaeAdversary(0.5, threat, 3, CPU), lambda piece: piece.observe(labels, logits.flip(1))),
    ):
        state = {key: value.clone() for key, value in piece.state_dict().items()}
        before = {key: value.clone() for key, value in state.items()}
        piece.load_state_dict(state)
        use(piece)
        assert equal(state, before)
        assert not equal(piece.state_dict(), before)


@pytest.mark.parametrize(("name", "on_clean"), [("dfhl-rs", 0), ("ferd", 1), ("rslad", 1)])
def test_the_teacher_sees_clean_images_only_where_they_are_looked_at(make_run, monkeypatch, name, on_clean):
    run, seen = make_run(name, "pool"), []
    targets = run._targets
    monkeypatch.setattr(run, "_targets", lambda inputs: seen.append(inputs) or targets(inputs))
    inputs, labels = torch.rand(4, *run.shape), torch.arange(4)
    run._train_batch(inputs, labels)
    assert sum(torch.equal(given, inputs) for given in seen) == on_clean
    assert len(seen) == 1


class TwoPasses(Adversary):
    """Leaves images as they are, after two looks at the attacked network's predictions."""

    def attack(self, attacked, inputs, labels, teacher_probs, rng):
        self.predicted = [attacked(inputs).argmax(1) for _ in range(2)]
        return inputs


def test_fair_rslads_kappa_is_the_mean_count_of_right_points_a_class(make_run):
    run = make_run("fair-rslad", "pool")
    run.adversary = adversary = TwoPasses()
    counted, losses = [], run.student_loss.losses

    def count(batch):
        right = sum((predicted == batch.labels).float() for predicted in adversary.predicted)
        assert torch.equal(batch.points_right.float(), right)
        counted.append((batch.labels, right))
        return losses(batch)

    run.student_loss.losses = count
    rounds = run.rounds()
    next(rounds), next(rounds)  # the first warms up
    labels, right = (torch.cat(part) for part in zip(*counted, strict=True))
    for label in range(10):
        expected = right[labels == label].mean() if (labels == label).any() else torch.tensor(torch.nan)
        torch.testing.assert_close(run.student_loss.kappa[label], expected, equal_nan=True)


def test_absld_adjusts_its_temperatures_after_a_round_of_training(make_run):
    run = make_run("absld", "pool")
    changed = [bool((run.student_loss.temperatures != 1).any()) for _ in run.rounds()]
    assert changed == [False, True, True]


@pytest.mark.parametrize(("precision", "exact"), [("float32", True), ("bf16-attacks", True), ("bf16", False)])
def test_targets_are_in_bfloat16_only_where_training_is(make_run, images, precision, exact):
    run = make_run("ferd", "pool", SCHEDULE.model_copy(update={"precision": precision}))
    seen, losses = [], run.student_loss.losses
    run.student_loss.losses = lambda batch: seen.append((batch.inputs, batch.teacher_logits)) or losses(batch)
    list(run.rounds())
    with torch.no_grad():
        off = max((run.teacher(inputs) - logits).abs().max().item() for inputs, logits in seen)
    assert (off < 1e-4) is exact


def test_classes_are_reweighted_by_the_threat_models_steps_and_students_attacked_by_the_schedules(make_run):
    run = make_run("ferd", "pool")
    assert (run.sampler.threat.steps, run.adversary.threat.steps) == (5, 2)


@pytest.mark.parametrize("piece", ["images", "sampler", "synthesis", "adversary", "student_loss"])
def test_a_name_for_which_nothing_is_built_is_refused(make_network, threat, tmp_path, piece):
    """As of one that was put into ``ferd.config`` alone."""
    method = Method.model_construct(**dict(METHODS["ferd"]) | {piece: "mine"})
    networks, crops = (make_network(), make_network(seed=1)), Augmentation(padding=1, flip=False)
    with pytest.raises(FerdError, match=rf"^{piece} 'mine': is in ferd.config.Method, and nothing builds it"):
        list(Distillation(*networks, (1, 8, 8), SCHEDULE, crops, method, threat, 0, tmp_path, CPU).rounds())
