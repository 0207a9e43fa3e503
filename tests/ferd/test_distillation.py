import copy
import logging
import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ferd.distillation
from ferd.adversaries import UtaeAdversary
from ferd.checkpoint import load_state, save_state
from ferd.config import Augmentation, DistillationSettings, NonRobust, Utae
from ferd.datasets import Images
from ferd.distillation import Distillation
from ferd.errors import FerdError
from ferd.losses import BatchNormStatistics, kl_divergence
from ferd.models.classifier import Classifier
from ferd.models.registry import build
from ferd.paper import FERD
from ferd.pixels import to_float
from ferd.pool import Pool
from ferd.samplers import Sampler, UniformSampler
from ferd.student_losses import Rslad, StudentLoss
from ferd.synthesis import SynthesisResult

CPU = torch.device("cpu")
SCHEDULE = DistillationSettings.model_validate(
    {
        "precision": "float32",
        "rounds": 3,
        "warmup_rounds": 1,
        "batch_size": 16,
        "proportion_floor": 0.02,
        "utae_steps": 2,
        "synthesis": {
            "steps": 3,
            "latent_dim": 8,
            "generator_learning_rate": 2e-3,
            "latent_learning_rate": 0.015,
            "weights": {"adv": 0.1, "bn": 1.0, "oh": 5.0, "uni": 1.0},
            "bottleneck": {
                "threshold": "mean",
                "steps": 30,
                "learning_rate": 0.2,
                "beta": 0.3,
            },
        },
        "student": {
            "steps": 3,
            "learning_rate": 0.1,
            "weight_decay": 5e-4,
            "adversarial_weight": 0.5,
        },
        "threads": 1,
    }
)
SOURCES = ["generator", "untrained-generator", "uniform-noise", "real-data"]


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.ERROR)


@pytest.fixture
def make_run(make_network, threat, tmp_path):
    """A fresh distillation; ``changes`` are of the schedule, ``learning_rate`` of the student."""

    def make(folder="pool", channels=1, method=FERD, seed=0, given=None, **changes):
        student = changes.pop("student", {})
        settings = SCHEDULE.student.model_copy(update=student)
        return Distillation(
            changes.pop("teacher", None) or make_network(channels),
            make_network(channels, seed=1),
            (channels, 8, 8),
            SCHEDULE.model_copy(update={**changes, "student": settings}),
            Augmentation(padding=1, flip=False),
            method,
            threat,
            seed,
            tmp_path / folder,
            CPU,
            given,
        )

    return make


def method(**changes):
    return FERD.model_copy(update=changes)


def real_images(channels=1, count=40):
    source = torch.Generator().manual_seed(8)
    images = torch.randint(0, 256, (count, channels, 8, 8), generator=source).to(torch.uint8)
    return images, torch.arange(count) % 10


def weights(network):
    return {key: value.clone() for key, value in network.state_dict().items()}


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def shards(run):
    return {path.name: path.read_bytes() for path in run.pool.folder.iterdir()}


@pytest.mark.parametrize(
    ("source", "finished"),
    [
        ("generator", 1),
        ("generator", 2),
        ("untrained-generator", 2),
        ("uniform-noise", 1),
        ("real-data", 2),
    ],
)
def test_a_resumed_run_ends_at_the_same_bits(make_run, tmp_path, source, finished):
    given = real_images() if source == "real-data" else None
    arguments = {"method": method(images=source), "given": given}
    whole = make_run("whole", **arguments)
    records = list(whole.rounds())
    stopped = make_run("stopped", **arguments)
    rounds = stopped.rounds()
    for _ in range(finished):
        next(rounds)
    save_state(tmp_path / "state.pt", stopped.state_dict())
    next(rounds)  # a round that was made, but not saved
    rest = make_run("stopped", **arguments)
    rest.load_state_dict(load_state(tmp_path / "state.pt"))
    assert list(rest.rounds()) == records[finished:]
    assert equal(weights(rest.student), weights(whole.student))
    assert shards(rest) == shards(whole)


def test_another_seed_gives_other_images(make_run):
    runs = [make_run(str(seed), seed=seed) for seed in (0, 1)]
    for run in runs:
        next(run.rounds())
    assert not torch.equal(runs[0].pool.images, runs[1].pool.images)


@pytest.mark.parametrize("attacked", ["student", "teacher"])
def test_the_teacher_is_untouched_by_a_whole_run(make_run, untouched, attacked):
    run = make_run(method=method(utae=Utae(gamma=0.5, model=attacked)))
    with untouched(run.teacher):
        for _ in run.rounds():
            assert not any(module.training for module in run.teacher.modules())
    assert not any(module._forward_pre_hooks for module in run.teacher.modules())


def test_a_teacher_given_in_train_mode_is_put_in_eval_mode_with_the_statistics_that_it_had(
    make_run, make_network
):
    teacher = make_network().train()
    before = weights(teacher)
    run = make_run(teacher=teacher)
    assert run.teacher is teacher and equal(weights(teacher), before)
    assert not any(module.training for module in teacher.modules())
    assert not any(weight.requires_grad for weight in teacher.parameters())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_uint8_images_of_the_right_shape(make_run, source, channels):
    given = real_images(channels) if source == "real-data" else None
    run = make_run(channels=channels, method=method(images=source), given=given)
    records = list(run.rounds())
    assert run.pool.images.shape == (48, channels, 8, 8)
    assert run.pool.images.dtype == torch.uint8
    assert run.pool.images.float().std() > 1
    assert [record.round for record in records] == [1, 2, 3]
    assert bool(records[0].generator) == (source == "generator")


def test_noise_and_an_untrained_generator_are_labelled_by_the_teacher(make_run):
    for source in ("uniform-noise", "untrained-generator"):
        run = make_run(source, method=method(images=source))
        assert [record.agreement for record in run.rounds()] == [1.0, 1.0, 1.0]


def test_real_images_come_with_their_own_labels_and_none_twice_a_round(make_run):
    images, labels = real_images()
    run = make_run(method=method(images="real-data"), given=(images, labels))
    next(run.rounds())
    rows = [(images == image).all((1, 2, 3)).nonzero().item() for image in run.pool.images]
    assert len(set(rows)) == 16
    assert torch.equal(labels[rows], run.pool.labels)


def test_without_reweighting_the_proportions_stay_uniform(make_run):
    for record in make_run(method=method(sampler="uniform")).rounds():
        assert record.proportions == pytest.approx([0.1] * 10)
        assert record.difficulty == [None] * 10


def test_with_reweighting_the_difficulty_of_a_round_sets_the_next_proportions(make_run):
    first, second, _ = make_run().rounds()
    assert first.proportions == pytest.approx([0.1] * 10)
    seen = [d for d in first.difficulty if d is not None]
    mean = sum(seen) / len(seen)
    filled = torch.tensor([mean if d is None else d for d in first.difficulty])
    expected = 0.02 + 0.8 * filled.softmax(0)
    assert second.proportions == pytest.approx(expected.tolist(), rel=1e-4)
    assert max(second.proportions) > 0.11


def test_labels_are_drawn_in_the_proportions(make_run):
    run = make_run(rounds=2, batch_size=400, student={"steps": 1})
    rounds = run.rounds()
    run.sampler.difficulty = torch.tensor([9.0] + [0.0] * 9)
    next(rounds)
    shares = run.pool.labels.bincount(minlength=10) / 400
    assert shares[0].item() == pytest.approx(0.82, abs=0.06)


def test_warm_up_rounds_leave_the_student_as_it_is(make_run):
    run = make_run(warmup_rounds=2)
    before = weights(run.student)
    rounds = run.rounds()
    for _ in range(2):
        record = next(rounds)
        assert record.student == {} and "adv" not in record.generator
        assert equal(weights(run.student), before)
    assert set(next(rounds).student) == {"clean_loss", "adversarial_loss"}
    assert not torch.equal(run.student.conv1.weight, before["conv1.weight"])


def test_the_generator_disagrees_with_the_student_only_once_it_is_trained(make_run):
    assert ["adv" in record.generator for record in make_run().rounds()] == [False, False, True]


def test_fae_off_leaves_the_uniform_term_out(make_run):
    assert "uni" in next(make_run("on").rounds()).generator
    assert "uni" not in next(make_run("off", method=method(synthesis="plain")).rounds()).generator


def test_gamma_and_the_attacked_network_change_the_student(make_run):
    choices = [(0.0, "student"), (0.5, "student"), (0.5, "teacher")]
    students = []
    for gamma, attacked in choices:
        chosen = method(images="uniform-noise", utae=Utae(gamma=gamma, model=attacked))
        run = make_run(f"{gamma}-{attacked}", method=chosen)
        list(run.rounds())
        students.append(weights(run.student))
    assert not equal(students[0], students[1])
    assert not equal(students[1], students[2])


def test_the_prior_of_a_run_is_the_mean_teacher_softmax_and_not_one_hot(make_run):
    run = make_run()
    list(run.rounds())
    assert run.student_loss.prior.counts.sum() == 2 * 3 * 16  # rounds that train, steps, batch
    present = run.student_loss.prior.counts.nonzero().squeeze(1)
    prior = run.student_loss.prior.weights(present)
    assert torch.allclose(prior.sum(1), torch.ones(len(present)), atol=1e-5)
    assert prior.max() < 0.999


def test_the_student_takes_the_weighted_sum_of_its_clean_and_adversarial_gradient(make_run):
    def step(share, attack_steps):
        student = {"adversarial_weight": share, "weight_decay": 0.0, "steps": 1}
        chosen = {"rounds": 2, "utae_steps": attack_steps, "student": student}
        run = make_run(f"{share}-{attack_steps}", method=method(images="uniform-noise"), **chosen)
        before = run.student.conv1.weight.detach().clone()
        list(run.rounds())
        return run.student.conv1.weight.detach() - before

    clean, adversarial, mixed = (step(share, 4) for share in (0.0, 1.0, 0.25))
    assert clean.abs().max() > 1e-3 and not torch.allclose(clean, adversarial, rtol=0.05)
    assert torch.allclose(mixed, 0.75 * clean + 0.25 * adversarial, atol=1e-5)
    assert torch.equal(clean, step(0.0, 1))  # without the attack's part


def test_the_learning_rate_is_a_cosine_over_all_rounds(make_run):
    rates = [record.learning_rate for record in make_run().rounds()]
    assert rates == pytest.approx([0.1, 0.075, 0.025])


def test_the_student_comes_nearer_to_the_teacher(make_run, digits):
    given = (digits["train"].images, digits["train"].labels)
    chosen = {"rounds": 4, "student": {"steps": 20}}
    run = make_run(method=method(images="real-data"), given=given, **chosen)
    inputs = to_float(given[0])

    def distance():
        with torch.no_grad():
            target = run.teacher(inputs).softmax(1)
            return kl_divergence(target, run.student.eval()(inputs)).mean().item()

    before = distance()
    list(run.rounds())
    assert distance() < 0.5 * before


@pytest.mark.parametrize(("source", "given"), [("real-data", False), ("generator", True)])
def test_real_images_belong_to_their_control_and_to_no_other_method(make_run, source, given):
    with pytest.raises(FerdError, match="given"):
        make_run(method=method(images=source), given=real_images() if given else None)


def test_real_images_of_another_size_are_refused_before_a_round(make_run):
    images, labels = real_images()
    larger = images.repeat(1, 1, 2, 2)
    with pytest.raises(FerdError, match=r"^real-data is given images of \(1, 16, 16\), not \(1, 8, 8\)$"):
        make_run(method=method(images="real-data"), given=(larger, labels))


def test_what_is_no_method_is_refused_in_one_line(make_run):
    with pytest.raises(FerdError, match=r"^wanted is a ferd\.config\.Method, found 'ferd'$"):
        make_run(method="ferd")


def test_real_images_may_be_given_as_images(make_run):
    runs = [
        make_run(folder, method=method(images="real-data"), given=given)
        for folder, given in (("one", real_images()), ("other", Images(*real_images())))
    ]
    assert runs[0].state_dict()["origin"] == runs[1].state_dict()["origin"]


def test_the_student_is_trained_on_cropped_images(make_run):
    run, seen = make_run(method=method(images="uniform-noise"), rounds=2), []
    train_batch = run._train_batch
    run._train_batch = lambda inputs, labels: seen.append(inputs) or train_batch(inputs, labels)
    list(run.rounds())
    pool = to_float(run.pool.images)
    whole = [any(torch.equal(image, other) for other in pool) for batch in seen for image in batch]
    assert len(whole) == 3 * 16
    assert 0 < sum(whole) < 24  # one crop in nine is the image itself
    for image, row in zip(seen[0], (not known for known in whole[:16]), strict=True):
        if row:  # a shift by one pixel leaves a black edge
            assert any(
                edge.eq(0).all() for edge in (image[0, 0], image[0, -1], image[0, :, 0], image[0, :, -1])
            )


def test_the_pool_of_an_earlier_run_is_not_deleted(make_run):
    list(make_run(method=method(images="uniform-noise")).rounds())
    again = make_run(method=method(images="uniform-noise"))
    before = shards(again)
    with pytest.raises(
        FerdError, match=r"pool: holds 3 rounds of an earlier run; delete it, choose another"
    ) as raised:
        next(again.rounds())
    assert "\n" not in str(raised.value)
    assert shards(again) == before


def test_a_round_that_was_interrupted_is_not_gone_on_with(make_run):
    run = make_run(method=method(images="uniform-noise"))
    next(run.rounds())
    state = copy.deepcopy(run.state_dict())
    expected = weights(run.student)
    run._train_batch = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        next(run.rounds())
    del run._train_batch
    for goes_on in (lambda: next(run.rounds()), run.state_dict):
        with pytest.raises(FerdError, match="round 2 was interrupted; load the state"):
            goes_on()
    run.load_state_dict(state)
    assert equal(weights(run.student), expected)
    assert [record.round for record in run.rounds()] == [2, 3]


def test_a_source_that_learns_goes_on_where_it_was(make_run):
    run = make_run(method=method(images="uniform-noise"))
    run.source.state_dict = lambda: {"memory": torch.tensor(7)}
    loaded = []
    run.source.load_state_dict = loaded.append
    run.load_state_dict(run.state_dict())
    assert loaded == [{"memory": torch.tensor(7)}]


def test_a_state_is_a_copy_and_goes_back_into_the_pieces_it_is_of(make_run):
    run = make_run()
    next(rounds := run.rounds())
    state = run.state_dict()
    kept = copy.deepcopy(state)
    next(rounds)
    for name in ("student", "sampler", "student_loss"):
        for key, value in kept[name].items():
            torch.testing.assert_close(state[name][key], value, rtol=0, atol=0, equal_nan=True)
    other = make_run(method=method(student_loss="rslad"))
    before = {key: value.clone() for key, value in other.student.state_dict().items()}
    with pytest.raises(FerdError, match=r"^settings: not what the state was saved with"):
        other.load_state_dict(state)
    assert other.round == 0
    assert all(torch.equal(value, before[key]) for key, value in other.student.state_dict().items())


def run_of(teacher, student, tmp_path, threat, shape=(1, 8, 8)):
    """With a folder and a device as plain text."""
    settings = SCHEDULE, Augmentation(padding=1, flip=False), FERD, threat, 0
    return Distillation(teacher, student, shape, *settings, str(tmp_path / "pool"), "cpu")


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_network_that_is_no_classifier_is_refused_with_what_it_lacks(make_network, threat, tmp_path, role):
    networks = {"teacher": make_network(), "student": make_network(seed=1)}
    networks[role] = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    said = rf"^{role}: a Sequential is no ferd\.models\.classifier\.Classifier; derive it from that"
    with pytest.raises(FerdError, match=said):
        run_of(**networks, tmp_path=tmp_path, threat=threat)


def test_a_student_of_fewer_classes_is_refused_before_the_first_round(make_network, threat, tmp_path):
    with pytest.raises(FerdError, match=r"^the student has 5 classes, the teacher 10; give one of as many$"):
        run_of(make_network(), make_network(classes=5), tmp_path, threat)
    assert not (tmp_path / "pool").exists()


@pytest.mark.parametrize("size", [6, 10, 31])
def test_images_of_a_size_that_is_no_multiple_of_four_are_refused(make_network, threat, tmp_path, size):
    with pytest.raises(FerdError, match=rf"^images of {size}×{size}: .* a multiple of 4; crop or pad them$"):
        run_of(make_network(), make_network(), tmp_path, threat, (1, size, size))


def test_a_frozen_student_is_trained_all_the_same(make_network, threat, tmp_path):
    student = make_network(seed=1).requires_grad_(False)  # as load_classifier gives it
    before = weights(student)
    assert len(list(run_of(make_network(), student, tmp_path, threat).rounds())) == 3
    assert not equal(weights(student), before)


def test_a_teacher_that_is_its_own_student_is_refused(make_network, threat, tmp_path):
    network = make_network()
    with pytest.raises(FerdError, match=r"^the teacher is to be the student, too; give a network of its own"):
        run_of(network, network, tmp_path, threat)


def test_networks_of_other_channels_are_refused(make_network, threat, tmp_path):
    for channels, role in (((3, 1), "teacher"), ((1, 3), "student")):
        with pytest.raises(FerdError, match=f"^the {role} takes 3 channels, not the 1 of the images$"):
            run_of(*(make_network(number) for number in channels), tmp_path, threat)


@pytest.mark.parametrize(
    ("labels", "said"),
    [(torch.arange(40) % 13, "images of class 10, but"), (torch.arange(39) % 10, "wanted are uint8 images")],
)
def test_real_images_whose_labels_do_not_fit_are_refused(make_run, labels, said):
    with pytest.raises(FerdError, match=said):
        make_run(method=method(images="real-data"), given=(real_images()[0], labels))


def test_the_state_of_another_student_is_refused(make_run, make_network, threat, tmp_path):
    state = make_run().state_dict()
    other = build("resnet8-w16", classes=10, channels=1)
    run = run_of(make_network(), other, tmp_path, threat)
    with pytest.raises(FerdError, match=r"^the state is of another student; give the network that"):
        run.load_state_dict(state)
    assert run.round == 0


def test_images_that_are_not_square_are_refused(make_network, threat, tmp_path):
    crops = Augmentation(padding=1, flip=False)
    with pytest.raises(FerdError, match="images of 8×6: the generator makes square ones"):
        Distillation(
            make_network(), make_network(), (1, 8, 6), SCHEDULE, crops, FERD, threat, 0, tmp_path, CPU
        )


def test_a_floor_above_an_equal_share_is_refused(make_run):
    with pytest.raises(FerdError, match=r"distillation\.proportion_floor: 0\.11 .*1/10") as raised:
        make_run(proportion_floor=0.11)
    assert "\n" not in str(raised.value)


def assert_diverges(run):
    with pytest.raises(FerdError, match=r"round 2") as raised:
        list(run.rounds())
    assert "\n" not in str(raised.value)


def test_a_student_that_diverges_is_refused_in_one_line_naming_the_round(make_run):
    assert_diverges(make_run(student={"learning_rate": 1e30}))


def test_a_student_that_diverges_in_the_very_last_step_is_refused_too(make_run):
    assert_diverges(make_run(rounds=2, student={"learning_rate": 1e30, "steps": 1}))


def test_a_mask_that_holds_everything_is_warned_of(make_run, caplog):
    caplog.set_level(logging.WARNING)
    bottleneck = SCHEDULE.synthesis.bottleneck.model_copy(update={"steps": 1})
    synthesis = SCHEDULE.synthesis.model_copy(update={"bottleneck": bottleneck})
    record = next(make_run(synthesis=synthesis).rounds())
    assert record.generator["robust_fraction"] == 1
    assert "round 1" in caplog.text and "bottleneck.threshold" in caplog.text


def test_the_global_generator_is_left_alone(make_network, threat, tmp_path):
    networks = make_network(), make_network(seed=1)
    before = torch.get_rng_state()
    list(run_of(*networks, tmp_path, threat).rounds())
    assert torch.equal(torch.get_rng_state(), before)


class Recording(Sampler):
    """A library user's piece: even shares; keeps the students that it is shown."""

    def __init__(self):
        super().__init__(10, CPU)
        self.weights = []

    def proportions(self):
        return torch.full((10,), 1 / 10)

    def observe(self, teacher, student, images, labels, rng):
        assert not teacher.training and not student.training
        self.weights.append(student.linear.weight.detach().clone())


def test_a_sampler_sees_the_student_as_the_round_before_left_it(make_run):
    run = make_run()
    run.sampler = Recording()
    left = [run.student.linear.weight.detach().clone()]
    for _ in run.rounds():
        left.append(run.student.linear.weight.detach().clone())
    assert len(run.sampler.weights) == 3
    for seen, expected in zip(run.sampler.weights, left[:-1], strict=True):
        torch.testing.assert_close(seen, expected)
    assert not torch.equal(left[2], left[3])


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ([0.1] * 10, r"must be a tensor \(10,\), not \[0.1"),
        (torch.full((12,), 1 / 12), r"must be a tensor \(10,\)"),
        (torch.full((10,), 0.2), "add up to 1"),
        (torch.tensor([1.5, -0.5] + [0.0] * 8), "0 or more"),
        (torch.full((10,), math.nan), "0 or more"),
    ],
)
def test_a_sampler_whose_proportions_are_none_is_named(make_run, monkeypatch, shares, said):
    run = make_run()
    monkeypatch.setattr(run.sampler, "proportions", lambda: shares)
    with pytest.raises(FerdError, match=f"^sampler: proportions .*{said}"):
        next(run.rounds())


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("studentloss", Rslad(), "studentloss: a Distillation has none; its pieces are source, sampler"),
        ("student_loss", Rslad, "student_loss: is the class Rslad, no object of a class derived from ferd"),
        ("student_loss", print, "student_loss: is a builtin_function_or_method, no object"),
        ("sampler", Rslad(), "sampler: is a Rslad, no object of a class derived from ferd.samplers.Sampler"),
    ],
)
def test_what_is_no_piece_is_refused_when_it_is_put_in(make_run, name, value, said):
    with pytest.raises(FerdError, match=f"^{said}"):
        setattr(make_run(), name, value)


def test_a_sampler_without_difficulty_is_refused_when_it_is_put_in(make_run):
    class Bare(UniformSampler):
        def __init__(self):
            pass

    with pytest.raises(FerdError, match=r"^sampler: has no difficulty; have its __init__ call Sampler's$"):
        make_run().sampler = Bare()


def test_a_piece_is_put_in_before_the_first_round_alone(make_run):
    run = make_run()
    next(run.rounds())
    with pytest.raises(FerdError, match=r"^student_loss: round 1 is over"):
        run.student_loss = Rslad()


@pytest.mark.parametrize(
    "drawn", [None, torch.zeros(16), (torch.zeros(16), torch.zeros(16)), (torch.zeros(16), [1], {})]
)
def test_a_source_that_draws_no_images_labels_and_terms_is_named(make_run, monkeypatch, drawn):
    run = make_run()
    monkeypatch.setattr(run.source, "draw", lambda *_: drawn)
    with pytest.raises(FerdError, match=r"^source: draw\(\) must give \(images, labels, loss terms\)"):
        next(run.rounds())
    assert not run.pool.rounds


@pytest.mark.parametrize("losses", [torch.zeros(()), (torch.zeros(16), torch.zeros(16)), (torch.zeros(()),)])
def test_a_loss_that_gives_no_two_means_is_named(make_run, monkeypatch, losses):
    run = make_run()
    monkeypatch.setattr(run.student_loss, "losses", lambda batch: losses)
    with pytest.raises(FerdError, match=r"^student_loss: losses\(\) must give two means"):
        list(run.rounds())


def test_a_state_of_another_piece_or_teacher_or_of_nothing_is_refused(make_run, make_network):
    """Pieces whose states have the same names, and one number of the teacher."""
    saved = make_run("one")
    next(saved.rounds())
    state = saved.state_dict()
    other = make_run("two")
    other.sampler = UniformSampler(10, CPU)
    with pytest.raises(FerdError, match=r"^sampler: not what the state was saved with"):
        other.load_state_dict(state)
    teacher = make_network()
    with torch.no_grad():
        teacher.conv1.weight[0, 0, 0, 0] += 0.01
    with pytest.raises(FerdError, match=r"^teacher weights: not what the state was saved with"):
        make_run("one", teacher=teacher).load_state_dict(state)
    with pytest.raises(FerdError, match=r"^no state of a distillation: it lacks adversary, optimiser"):
        other.load_state_dict({})


def test_the_student_can_be_used_between_rounds(make_run):
    run = make_run()
    assert not any(module.training for module in run.student.modules())
    for _ in run.rounds():
        assert not any(module.training for module in run.student.modules())


def test_a_student_loss_that_is_put_in_brings_its_own_weight(make_run):
    class Heavy(StudentLoss):
        adversarial_weight = 0.9

        def losses(self, batch):
            return batch.student_logits.square().mean(), batch.student_adv_logits.square().mean()

    run = make_run()
    assert run.adversarial_weight == 0.5
    run.student_loss = Heavy()
    assert run.adversarial_weight == 0.9
    assert len(list(run.rounds())) == 3


class FarImages(StudentLoss):
    """A library user's piece: looks at the images, and at a value on the host."""

    recordable = False

    def __init__(self):
        self.farthest = []

    def losses(self, batch):
        self.farthest.append((batch.adv_inputs - batch.inputs).abs().max().item())
        return batch.student_logits.square().mean(), batch.student_adv_logits.square().mean()


def test_a_student_loss_sees_the_images_and_those_that_are_attacked(make_run, threat):
    run = make_run(utae_steps=10)  # enough for the edge of the ball
    run.student_loss = FarImages()
    list(run.rounds())
    assert run.student_loss.farthest == pytest.approx([threat.epsilon] * 6, abs=1e-6)


@pytest.mark.parametrize("piece", ["student_loss", "adversary"])
def test_steps_with_a_piece_that_cannot_be_recorded_are_called(make_run, monkeypatch, piece):
    recorded = []
    monkeypatch.setattr("ferd.distillation.Recorded", lambda step, _: recorded.append(step) or step)
    run = make_run()
    next(rounds := run.rounds())  # warm-up
    next(rounds)
    assert len(recorded) == 1
    getattr(run, piece).recordable = False
    next(rounds)
    assert len(recorded) == 1


def test_steps_of_a_source_that_cannot_be_recorded_are_called(make_run, monkeypatch):
    recorded = []
    monkeypatch.setattr("ferd.synthesis.Recorded", lambda step, _: recorded.append(step) or step)
    run = make_run()
    next(rounds := run.rounds())
    assert len(recorded) == 1
    run.source.recordable = False
    next(rounds)
    assert len(recorded) == 1


def test_difficulty_and_agreement_are_of_the_images_that_go_into_the_pool(make_run):
    run = make_run()
    seen, observe = [], run.sampler.observe
    run.sampler.observe = lambda t, s, inputs, *rest: seen.append(inputs) or observe(t, s, inputs, *rest)
    for number, record in enumerate(run.rounds()):
        rows = slice(16 * number, 16 * number + 16)
        inputs = to_float(run.pool.images[rows])
        assert torch.equal(seen[number], inputs)
        right = run.teacher(inputs).argmax(1) == run.pool.labels[rows]
        assert record.agreement == pytest.approx(right.float().mean().item())


def test_pool_images_are_rounded_to_the_nearest_byte(make_run, monkeypatch):
    almost_white = SynthesisResult(torch.full((16, 1, 8, 8), 0.999), {})
    monkeypatch.setattr("ferd.image_sources.synthesise", lambda *_, **__: almost_white)
    run = make_run()
    next(run.rounds())
    assert run.pool.images.unique().tolist() == [255]  # 254.7


class Wrapped(Classifier):
    """The same network, as a beginning of another."""

    def __init__(self, inner):
        super().__init__(inner.classes, inner.channels)
        self.inner, self.linear = inner, inner.linear

    def stem(self, inputs):
        return self.inner.stem(inputs)

    def blocks(self):
        return self.inner.blocks()


class NormalisesInForward(Wrapped):
    """What somebody's model often does, and what losses on its features would not see."""

    def forward(self, inputs):
        return super().forward((inputs - 0.5) / 0.2)


class AnswersAtRandom(Wrapped):
    """Dropout that forgets to ask whether the network is trained."""

    def classify(self, pooled):
        return super().classify(F.dropout(pooled, 0.3))


@pytest.mark.parametrize(
    ("role", "change", "said"),
    [
        (
            "teacher",
            NormalisesInForward,
            r"its forward is not head\(features\(x\)\) at layer -1, .* into normalise_by$",
        ),
        (
            "student",
            NormalisesInForward,
            r"its forward is not head\(features\(x\)\) at layer -1, .* into normalise_by$",
        ),
        ("student", AnswersAtRandom, r"gives other logits each time, in eval mode, too; have its dropout"),
        (
            "teacher",
            lambda network: network.double(),
            r"its weights or buffers are torch\.float64; call \.float\(\) on it",
        ),
        (
            "student",
            lambda network: network.half(),
            r"its weights or buffers are torch\.float16; call \.float\(\) on it",
        ),
    ],
)
def test_a_network_that_would_be_distilled_wrongly_is_refused(
    make_network, threat, tmp_path, role, change, said
):
    networks = {"teacher": make_network(), "student": make_network(seed=1)}
    networks[role] = change(networks[role])
    with pytest.raises(FerdError, match=f"^{role}: {said}"):
        run_of(**networks, tmp_path=tmp_path, threat=threat)
    assert not (tmp_path / "pool").exists()


def test_a_network_of_one_class_is_refused(make_network, threat, tmp_path):
    with pytest.raises(FerdError, match=r"^teacher: has 1 class; give a network of two or more$"):
        run_of(make_network(classes=1), make_network(classes=1, seed=1), tmp_path, threat)


def test_a_teacher_whose_batchnorms_keep_no_statistics_is_refused(make_network, threat, tmp_path):
    teacher = make_network()
    teacher.bn1 = torch.nn.BatchNorm2d(8, track_running_stats=False)
    with pytest.raises(FerdError, match="a BatchNorm without running statistics cannot be folded"):
        run_of(teacher, make_network(seed=1), tmp_path, threat)
    with pytest.raises(FerdError, match="the teacher has a BatchNorm without running statistics"):
        BatchNormStatistics(teacher)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("settings", {"method": method(utae=Utae(gamma=0.1, model="student"))}),
        ("settings", {"utae_steps": 3}),
        ("seed", {"seed": 5}),
    ],
)
def test_a_state_does_not_go_on_with_what_is_of_another_run(make_run, what, change):
    run = make_run()
    next(run.rounds())
    state = run.state_dict()
    other = make_run(**change)
    before = weights(other.student)
    with pytest.raises(FerdError, match=rf"^{what}: not what the state was saved with"):
        other.load_state_dict(state)
    assert equal(weights(other.student), before)


def test_a_state_does_not_go_on_with_a_pool_of_other_images(make_run):
    """As many, of the same labels."""
    run = make_run("one")
    next(run.rounds())
    state = run.state_dict()
    other = make_run("two")
    other.pool.append(255 - run.pool.images, run.pool.labels)
    with pytest.raises(FerdError, match=r"^pool images: not what the state was saved with"):
        other.load_state_dict(state)
    same = make_run("three")
    same.pool.append(run.pool.images, run.pool.labels)
    same.load_state_dict(state)
    assert same.round == 1


def test_a_state_does_not_go_on_with_a_piece_of_other_settings(make_run, threat):
    run, other = make_run("one"), make_run("two")
    other.adversary.threat = threat.model_copy(update={"epsilon": 0.2})
    with pytest.raises(FerdError, match=r"^adversary: not what the state was saved with"):
        other.load_state_dict(run.state_dict())


def test_a_state_does_not_go_on_with_other_real_images(make_run, digits):
    data = digits["train"]
    real = method(images="real-data")
    state = make_run("one", method=real, given=(data.images, data.labels)).state_dict()
    with pytest.raises(FerdError, match=r"^given images: not what the state was saved with"):
        make_run("two", method=real, given=(255 - data.images, data.labels)).load_state_dict(state)


def test_a_state_does_not_go_on_with_another_replayed_pool(make_run, tmp_path):
    rounds, batch = SCHEDULE.rounds, SCHEDULE.batch_size
    for name in ("pool-a", "pool-b"):
        pool = Pool(tmp_path / name, rounds * batch, (1, 8, 8), CPU)
        images, labels = real_images(count=rounds * batch)
        for rows in torch.arange(rounds * batch).split(batch):
            pool.append(images[rows] if name == "pool-a" else 255 - images[rows], labels[rows])
    replayed = method(images="pool-of-ferd")
    state = make_run("one", method=replayed, given=tmp_path / "pool-a").state_dict()
    make_run("two", method=replayed, given=tmp_path / "pool-a").load_state_dict(state)
    with pytest.raises(FerdError, match=r"^given images: not what the state was saved with"):
        make_run("three", method=replayed, given=tmp_path / "pool-b").load_state_dict(state)


def test_rounds_may_be_gone_through_where_gradients_are_switched_off(make_run):
    runs = make_run("one"), make_run("two")
    list(runs[0].rounds())
    with torch.no_grad():
        list(runs[1].rounds())
    assert equal(*(weights(run.student) for run in runs))


@pytest.mark.parametrize("name", ["threat", "student", "schedule", "device", "optimiser", "rng", "pool"])
def test_what_is_settled_cannot_be_changed_afterwards(make_run, name):
    run = make_run()
    with pytest.raises(FerdError, match=rf"^{name}: is settled when a Distillation is built; build another"):
        setattr(run, name, getattr(run, name))


class Unfit(UtaeAdversary):
    def __init__(self, spoil):
        self.spoil = spoil

    def attack(self, attacked, inputs, labels, teacher_probs, rng):
        return self.spoil(inputs)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda inputs: 255 * inputs, r"some of its images in round 2 have pixels outside \[0, 1\], or that"),
        (lambda inputs: inputs / 0, r"some of its images in round 2 have pixels outside"),
        (lambda inputs: inputs[:, :, ::2, ::2], r"attack\(\) must give \(16, 1, 8, 8\) torch.float32, like"),
        (lambda inputs: inputs.double(), r"attack\(\) must give .* not \(16, 1, 8, 8\) torch.float64$"),
        (lambda inputs: None, r"attack\(\) must give .* not a NoneType$"),
    ],
)
def test_adversarial_images_that_are_none_are_refused(make_run, spoil, said):
    run = make_run()
    run.adversary = Unfit(spoil)
    with pytest.raises(FerdError, match=f"^adversary: {said}"):
        list(run.rounds())


def test_an_adversary_that_changes_its_inputs_changes_no_clean_image(make_run, monkeypatch):
    run = make_run()
    run.adversary = Unfit(lambda inputs: inputs.fill_(0.5))
    seen = []
    monkeypatch.setattr(run.student_loss, "losses", lambda batch: seen.append(batch) or (torch.zeros(()),))
    with pytest.raises(FerdError, match="two means"):
        list(run.rounds())
    assert (seen[0].adv_inputs == 0.5).all() and not (seen[0].inputs == 0.5).all()


def test_an_adversary_that_writes_into_the_labels_changes_those_of_no_loss(make_run, monkeypatch):
    class Relabels(UtaeAdversary):
        def attack(self, attacked, inputs, labels, *given):
            labels.fill_(11)
            return inputs

    run = make_run()
    run.adversary = Relabels(0.5, run.threat)
    seen = []
    monkeypatch.setattr(run.student_loss, "losses", lambda batch: seen.append(batch) or (torch.zeros(()),))
    with pytest.raises(FerdError, match="two means"):
        list(run.rounds())
    assert seen[0].labels.max() < 10


def test_an_adversary_that_attacks_a_part_at_a_time_is_told_where_its_points_are_counted(make_run):
    class Halves(UtaeAdversary):
        def attack(self, attacked, inputs, labels, teacher_probs, rng):
            halves = zip(inputs.split(8), labels.split(8), teacher_probs.split(8), strict=True)
            return torch.cat([super(Halves, self).attack(attacked, *half, rng) for half in halves])

    for loss in ("rslad", "fair-rslad"):
        run = make_run(loss, method=method(student_loss=loss))
        run.adversary = Halves(0.5, run.threat)
        with (
            nullcontext()
            if loss == "rslad"
            else pytest.raises(FerdError, match="took 8 of 16 images; it must")
        ):
            list(run.rounds())


def test_a_state_does_not_go_on_with_another_teacher(make_run, make_network, threat, tmp_path):
    run = run_of(make_network(), make_network(seed=1), tmp_path, threat)
    next(run.rounds())
    other = run_of(make_network(seed=7), make_network(seed=1), tmp_path, threat)
    with pytest.raises(FerdError, match=r"^teacher weights: not what the state was saved with"):
        other.load_state_dict(run.state_dict())


def test_a_student_that_shares_a_layer_with_the_teacher_is_refused(make_network, threat, tmp_path):
    teacher, student = make_network(), make_network(seed=1)
    student.linear = teacher.linear
    said = r"^the student's linear\.weight is the teacher's own, which stays frozen; give a copy of it$"
    with pytest.raises(FerdError, match=said):
        run_of(teacher, student, tmp_path, threat)


def test_labels_that_the_networks_lack_are_refused_before_they_are_in_the_pool(make_run):
    run = make_run(method=method(images="uniform-noise"))
    draw = run.source.draw
    run.source.draw = lambda *given: (draw(*given)[0], torch.full((16,), 10), {})
    with pytest.raises(FerdError, match=r"^there are images of class 10, but the network has"):
        next(run.rounds())
    assert not run.pool.size


def test_figures_of_a_source_may_be_plain_numbers(make_run):
    run = make_run(method=method(images="uniform-noise"))
    draw = run.source.draw
    run.source.draw = lambda *given: (*draw(*given)[:2], {"mine": 0.5})
    assert next(run.rounds()).generator == {"mine": 0.5}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda images, labels, _: (images, labels, {"mine": torch.zeros(2)}),
            "^source: its loss term 'mine' must",
        ),
        (lambda images, labels, terms: (images[:0], labels[:0], terms), "takes an image a round or more"),
    ],
)
def test_a_source_that_gives_no_images_or_no_number_is_told_so(make_run, spoil, said):
    run = make_run(method=method(images="uniform-noise"))
    draw = run.source.draw
    run.source.draw = lambda *given: spoil(*draw(*given))
    with pytest.raises(FerdError, match=said):
        next(run.rounds())
    assert not run.pool.size


class CleanAlone(StudentLoss):
    def losses(self, batch):
        loss = batch.student_logits.square().mean()
        return loss, loss


@pytest.mark.parametrize(("observed", "passes"), [(False, 3), (True, 6)])
def test_the_student_answers_attacked_images_only_where_somebody_asks(make_run, observed, passes):
    class Watching(UtaeAdversary):
        def observe(self, labels, adv_logits):
            seen.append(adv_logits.shape)

    run, seen = make_run(method=method(images="uniform-noise"), warmup_rounds=0), []
    if observed:
        run.adversary = Watching(0.5, run.threat)
    run.student_loss = CleanAlone()
    tracked = run.student.state_dict()
    counted = next(key for key in tracked if key.endswith("num_batches_tracked"))
    before = tracked[counted].item()
    next(run.rounds())
    assert run.student.state_dict()[counted].item() - before == passes
    assert seen == [(16, 10)] * (3 if observed else 0)


def test_a_state_of_another_precision_is_refused(make_run, monkeypatch):
    """``auto`` is another on another machine."""
    run = make_run("one", method=method(images="uniform-noise"), precision="auto")
    next(run.rounds())
    state = run.state_dict()
    other = "float32" if state["origin"]["precision"] != "float32" else "bf16-attacks"
    monkeypatch.setattr(ferd.distillation, "settled", lambda *_: other)
    with pytest.raises(FerdError, match=r"^precision: not what the state was saved with"):
        make_run("one", method=method(images="uniform-noise"), precision="auto").load_state_dict(state)


def test_a_state_of_another_kind_of_device_is_refused_and_nothing_is_taken(make_run):
    run = make_run("one", method=method(images="uniform-noise"))
    next(run.rounds())
    state = run.state_dict() | {"rng": torch.zeros(16, dtype=torch.uint8)}
    again = make_run("one", method=method(images="uniform-noise"))
    before = weights(again.student)
    with pytest.raises(FerdError, match=r"^rng: the state was saved on another kind of device"):
        again.load_state_dict(state)
    assert again.round == 0 and equal(weights(again.student), before)


@pytest.mark.parametrize("loss", ["ikl", "fair-rslad", "absld"])
def test_a_run_that_goes_on_after_an_interrupted_round_ends_at_the_same_bits(make_run, loss):
    """In the same object, whose pieces have counted a part of the round."""
    arguments = {"method": method(images="real-data", student_loss=loss), "given": real_images()}
    whole = make_run("whole", **arguments)
    list(whole.rounds())
    run = make_run("interrupted", **arguments)
    next(rounds := run.rounds())
    state = run.state_dict()
    train_batch, left = run._train_batch, iter([True, True])

    def interrupted(*batch):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return train_batch(*batch)

    run._train_batch = interrupted
    with pytest.raises(KeyboardInterrupt):
        next(rounds)
    del run._train_batch
    run.load_state_dict(state)
    assert not any(module.training for module in run.student.modules())
    list(run.rounds())
    assert equal(weights(run.student), weights(whole.student))
    pieces = [piece.student_loss.state_dict() for piece in (run, whole)]
    assert all(torch.equal(pieces[0][key], pieces[1][key]) for key in pieces[1])


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_network_that_is_changed_after_it_was_given_is_refused(make_run, role):
    run = make_run()
    getattr(run, role).normalise_by(torch.tensor([0.4]), torch.tensor([0.2]))
    with pytest.raises(FerdError, match=rf"^{role}: was changed after its twin for attacks had been made"):
        next(run.rounds())
    assert run.pool.rounds == 0


class HeadOfItsOwn(Wrapped):
    """Right for features of the last block, whatever layer it is asked for."""

    def head(self, features, layer=-1):
        return self.linear(F.adaptive_avg_pool2d(features, 1).flatten(1)[:, : self.linear.in_features])


class Tokens(HeadOfItsOwn):
    """Features (B, H·W, K), as a vision transformer has them."""

    def features(self, inputs, layer=-1):
        return super().features(inputs, layer).flatten(2).mT

    def head(self, features, layer=-1):
        return self.linear(features.mean(1))


def test_a_seam_that_holds_at_the_last_layer_alone_is_refused_where_another_is_asked_for(
    make_run, make_network
):
    """The second last block has half the channels, of which the head of its own takes what there are."""
    teacher = HeadOfItsOwn(make_network())
    teacher.blocks = lambda: [*teacher.inner.blocks(), nn.Tanh()]
    make_run(teacher=teacher)
    layer = NonRobust(layer=-2, threshold_over="sample")
    with pytest.raises(FerdError, match=r"^teacher: its forward is not head\(features\(x\)\) at layer -2"):
        make_run("other", teacher=teacher, method=method(nonrobust=layer))
    make_run("plain", teacher=teacher, method=method(nonrobust=layer, synthesis="plain"))


def test_features_that_are_no_maps_are_refused_where_the_bottleneck_needs_them(make_run, make_network):
    with pytest.raises(FerdError, match=r"^teacher: its features at layer -1 are \(1, 4, 32\)"):
        make_run(teacher=Tokens(make_network()))
    next(make_run("plain", teacher=Tokens(make_network()), method=method(synthesis="plain")).rounds())


def test_a_teacher_without_batchnorm_is_refused_at_once_unless_its_statistics_have_no_weight(
    make_run, make_network
):
    teacher = make_network()
    for name, module in [*teacher.named_modules()]:
        if isinstance(module, nn.BatchNorm2d):
            parent, _, child = name.rpartition(".")
            setattr(teacher.get_submodule(parent), child, nn.GroupNorm(2, module.num_features))
    with pytest.raises(FerdError, match="the teacher has no BatchNorm layer"):
        make_run(teacher=teacher)
    without = SCHEDULE.synthesis.weights.model_copy(update={"bn": 0.0})
    run = make_run(
        "other", teacher=teacher, synthesis=SCHEDULE.synthesis.model_copy(update={"weights": without})
    )
    record = next(run.rounds())
    assert set(record.generator) == {"loss", "oh", "uni", "robust_fraction"}


@pytest.mark.parametrize(("few", "adversary"), [(True, "utae"), (False, "high-entropy")])
def test_steps_that_stay_within_the_ball_are_warned_of_where_the_attack_takes_them(
    make_run, caplog, few, adversary
):
    caplog.set_level(logging.WARNING)
    make_run(method=method(adversary=adversary), utae_steps=1)
    assert [("stays within ε" in record.message) for record in caplog.records] == [True] * few
