"""Every method of params.yaml, and the pieces that the baselines bring."""

import logging
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ferd.adversaries import AdaptiveUtaeAdversary, HighEntropyAdversary
from ferd.attacks import entropy, least_steps, utae
from ferd.checkpoint import load_state, save_state
from ferd.config import Augmentation, DistillationSettings
from ferd.distillation import Distillation
from ferd.errors import FerdError
from ferd.image_sources import ReplayedPool
from ferd.losses import ikl
from ferd.pool import Pool
from ferd.reweighting import adversarial_margins, released_proportions
from ferd.samplers import MarginSampler, build_sampler
from ferd.student_losses import Absld, Batch, FairRslad, HardLabel, Ikl, Rslad, SoftCrossEntropy
from ferd.synthesis import dfhl_rs_loss, diversity_loss
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


def test_margins_are_of_attacks_on_the_teacher(make_network, images, labels, threat):
    teacher, student = make_network().requires_grad_(False), make_network(seed=1)
    sampler = MarginSampler(10, CPU, threat, 0.0)
    sampler.observe(teacher, student, images, labels, torch.Generator().manual_seed(4))
    margin = adversarial_margins(teacher, images, labels, threat, torch.Generator().manual_seed(4))
    of_class = [-margin[labels == label].mean().item() for label in range(10)]
    assert sampler.difficulty.tolist() == pytest.approx(of_class, rel=1e-5)
    of_student = adversarial_margins(student, images, labels, threat, torch.Generator().manual_seed(4))
    assert not torch.allclose(margin, of_student, atol=0.1)


def test_a_mixed_sampler_is_half_softmax_and_half_even(threat):
    sampler = MarginSampler(4, CPU, threat, 0.0, 0.5)
    sampler.difficulty = torch.tensor([3.0, 0.0, 1.0, -1.0])
    expected = 0.5 * sampler.difficulty.softmax(0) + 0.125
    assert torch.allclose(sampler.proportions(), expected)


def test_mixed_reweighting_names_the_mixed_sampler(threat):
    method = METHODS["mixed-reweighting"]
    sampler = build_sampler(method, SCHEDULE, threat, Augmentation(padding=1, flip=False), 4, CPU)
    sampler.difficulty = torch.tensor([100.0, 0.0, 0.0, 0.0])  # all of the softmax in one class
    floor = (SCHEDULE.proportion_floor + 0.25) / 2
    assert sampler.proportions().tolist() == pytest.approx([1 - 3 * floor, floor, floor, floor])


def test_the_released_sampler_forgets_the_batch_before(teacher, images, threat, rng):
    crops = Augmentation(padding=1, flip=False)
    sampler = build_sampler(METHODS["ferd-released"], SCHEDULE, threat, crops, 10, CPU)
    sampler.observe(teacher, teacher, images, torch.zeros(16, dtype=torch.int64), rng)
    assert sampler.difficulty[0] != 0
    sampler.observe(teacher, teacher, images, torch.ones(16, dtype=torch.int64), rng)
    assert sampler.difficulty[0] == 0 and sampler.difficulty[1] != 0


def test_released_proportions_are_rescaled_and_even_before_any_margin():
    found = released_proportions(torch.tensor([-1.0, 0.0, 1.0]))
    assert found.tolist() == pytest.approx([0.05 / 0.375, 0.125 / 0.375, 0.2 / 0.375])
    assert released_proportions(torch.full((4,), torch.nan)).tolist() == pytest.approx([0.25] * 4)


def test_adaptive_gamma_rises_from_0_to_gamma_as_outcomes_concentrate(threat):
    adversary = AdaptiveUtaeAdversary(0.5, threat, 4, CPU)
    assert adversary.gammas().tolist() == pytest.approx([0.0] * 4, abs=1e-6)
    adversary.outcomes = torch.tensor(
        [[0.0, 8.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 1.0], [5.0, 0.0, 0.0, 0.0]]
    )
    half = 0.5 * (1 - math.log(2) / math.log(3))
    assert adversary.gammas().tolist() == pytest.approx([0.5, half, 0.0, 0.5], abs=1e-6)


def test_adaptive_gamma_counts_only_what_left_its_class(threat):
    adversary = AdaptiveUtaeAdversary(0.5, threat, 3, CPU)
    adversary.observe(torch.tensor([0, 0, 1]), torch.eye(3)[[1, 0, 2]])
    expected = 0.99 * (1 - torch.eye(3))
    expected[0, 1] += 1
    expected[1, 2] += 1
    assert torch.allclose(adversary.outcomes, expected)


def test_the_adaptive_attack_has_the_gamma_of_each_images_class(teacher, images, labels, threat):
    adversary = AdaptiveUtaeAdversary(0.5, threat, 10, CPU)
    adversary.outcomes = torch.eye(10).roll(1, 1)  # of every class, all in the next
    adversary.outcomes[labels[0]] = 1 - torch.eye(10)[labels[0]]
    gamma = adversary.gammas()[labels]
    assert gamma.tolist() == pytest.approx([0.0 if label == labels[0] else 0.5 for label in labels], abs=1e-6)
    probs = teacher(images).softmax(1)
    given = adversary.attack(teacher, images, labels, probs, torch.Generator().manual_seed(0))
    expected = utae(teacher, images, probs, gamma, threat, torch.Generator().manual_seed(0))
    assert torch.equal(given, expected)


def test_the_loop_shows_the_adversary_what_became_of_its_images(make_run):
    run = make_run("adaptive-gamma", "pool")
    before = run.state_dict()["adversary"]["outcomes"].clone()
    list(run.rounds())
    assert not torch.equal(run.state_dict()["adversary"]["outcomes"], before)


def test_one_gamma_a_sample_is_the_attack_with_that_gamma(teacher, images, threat):
    probs = teacher(images).softmax(1)
    one = utae(teacher, images, probs, 0.5, threat, torch.Generator().manual_seed(0))
    each = utae(teacher, images, probs, torch.full((16,), 0.5), threat, torch.Generator().manual_seed(0))
    assert torch.equal(one, each)


def test_high_entropy_examples_raise_every_entropy_and_stay_images(teacher, images, labels, rng):
    adversary = HighEntropyAdversary(10)
    adv_inputs = adversary.attack(teacher, images, labels, torch.empty(0), rng)
    gained = entropy(teacher(adv_inputs)) - entropy(teacher(images))
    assert (gained > 0).all() and gained.mean() > 0.01
    assert adv_inputs.min() >= 0 and adv_inputs.max() <= 1
    assert (adv_inputs - images).abs().max() > 0.15


def test_least_steps_counts_the_points_that_were_still_right(teacher, images, threat):
    predicted = teacher(images).argmax(1)
    wrong = least_steps(teacher, images, (predicted + 1) % 10, threat, images)
    assert wrong.tolist() == [0] * 16
    survived = least_steps(teacher, images, predicted, threat, images)
    assert (survived >= 1).all() and (survived <= threat.steps).all()
    still = threat.model_copy(update={"epsilon": 1e-9})
    assert least_steps(teacher, images, predicted, still, images).tolist() == [threat.steps] * 16


def batch(labels=(0, 1), classes=3):
    source = torch.Generator().manual_seed(0)
    logits = [torch.randn(len(labels), classes, generator=source) for _ in range(4)]
    return Batch(torch.tensor(labels), *logits)


# In two classes the logits (log 3, 0) are the probabilities (3/4, 1/4).
THREE_TO_ONE, EVEN = [math.log(3), 0.0], [0.0, 0.0]
FROM_THREE_TO_ONE = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)  # KL((3/4, 1/4) ‖ (1/2, 1/2))
FROM_EVEN = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)  # KL((1/2, 1/2) ‖ (3/4, 1/4))


def two_class_batch():
    """An image of each class: clean, the student is off on the first alone; attacked, on the second alone."""
    teacher = torch.tensor([THREE_TO_ONE, EVEN])
    clean, attacked = torch.tensor([EVEN, EVEN]), torch.tensor([THREE_TO_ONE, THREE_TO_ONE])
    return Batch(torch.tensor([0, 1]), teacher, clean, attacked)


def test_rslad_is_the_mean_kl_from_the_teacher():
    clean, adversarial = Rslad().losses(two_class_batch())
    assert clean.item() == pytest.approx(FROM_THREE_TO_ONE / 2)
    assert adversarial.item() == pytest.approx(FROM_EVEN / 2)


def test_ikl_pulls_both_answers_to_the_teachers_on_clean_images():
    """By hand: a sample of class 0, prior (3/4, 1/4), 1 from the clean answer and 3 from the other."""
    teacher, clean, adversarial = ([[math.log(3), 0.0]], [[math.log(3), 1.0]], [[math.log(3), 3.0]])
    elsewhere = torch.tensor([[-9.0, 9.0]])  # the teacher under attack plays no part
    batch = Batch(torch.tensor([0]), *map(torch.tensor, (teacher, clean, adversarial)), elsewhere)
    found = Ikl(2, CPU).losses(batch)
    for loss, gap in zip(found, (1, 3), strict=True):
        log_sum = math.log(3 + math.exp(gap))
        cross_entropy = 0.75 * (log_sum - math.log(3)) + 0.25 * (log_sum - gap)
        assert loss.item() == pytest.approx(0.5 * 0.75 * 0.25 * gap**2 + cross_entropy, rel=1e-5)


def test_what_a_loaded_state_becomes_leaves_the_state_alone(threat):
    """Two runs may go on from one state in memory."""
    labels, logits = torch.tensor([0, 1]), torch.tensor([[2.0, 0.0, 1.0], [0.0, 2.0, 1.0]])
    batch = Batch(labels, logits, logits, logits.flip(1))
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


def test_the_adaptive_attack_needs_more_than_one_class_to_end_in(threat):
    with pytest.raises(FerdError, match="adaptive-utae needs 3 classes, not 2; take utae"):
        AdaptiveUtaeAdversary(0.5, threat, 2, CPU)


def test_the_released_loss_is_ikl_with_a_one_hot_prior():
    given = batch()
    clean, _ = SoftCrossEntropy().losses(given)
    one_hot = F.one_hot(given.labels, 3).float()
    assert clean.item() == pytest.approx(
        ikl(given.teacher_logits, given.student_logits, one_hot).mean().item()
    )


def test_fair_rslad_weighs_by_the_inverse_square_of_kappa_between_its_bounds(threat):
    loss = FairRslad(3, threat, CPU)
    assert loss.weights().tolist() == [1.0, 1.0, 1.0]
    loss.kappa = torch.tensor([1.0, 2.0, torch.nan])  # the unseen class counts as 1.5
    raw = [1.0, 0.25, 1 / 2.25]
    mean = sum(raw) / 3
    assert loss.weights().tolist() == pytest.approx([raw[0] / mean, 5 / 6, 5 / 6])
    loss.kappa = torch.tensor([1.0, 10.0, 10.0])
    assert loss.weights()[0].item() == pytest.approx(5 / 2)


def test_fair_rslad_weighs_the_adversarial_part_alone(threat):
    loss = FairRslad(2, threat, CPU)
    loss.kappa = torch.tensor([2.0, 1.0])  # weights 2/5 and 8/5, the first clamped to 5/6
    clean, adversarial = loss.losses(two_class_batch())
    assert clean.item() == pytest.approx(FROM_THREE_TO_ONE / 2)
    assert adversarial.item() == pytest.approx(8 / 5 * FROM_EVEN / 2)


def test_fair_rslad_measures_kappa_of_the_classes_it_sees(teacher, images, threat, rng):
    loss = FairRslad(10, threat, CPU)
    loss.kappa[:] = 7.0
    predicted = teacher(images).argmax(1)
    labels = (predicted + 1) % 10
    near = threat.model_copy(update={"epsilon": 1e-9})
    loss.threat = near  # the random start and the attack change nothing
    loss.end_round(teacher, images, labels, rng)
    seen = torch.zeros(10, dtype=torch.bool).index_fill_(0, labels, True)
    assert seen.any() and not seen.all()
    assert torch.equal(loss.kappa, torch.where(seen, 1.0, 7.0))  # wrong before any step
    loss.end_round(teacher, images, predicted, rng)
    assert loss.kappa[predicted].tolist() == [1.0 + threat.steps] * 16  # right after all of them


def test_absld_sharpens_the_labels_of_the_class_at_risk(teacher, images, labels, rng):
    loss = Absld(3, CPU)
    confident, wrong = torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([[0.0, 9.0, 0.0]])
    logits = torch.cat([confident, confident.roll(1, 1)])
    attacked = torch.cat([wrong, confident.roll(1, 1)])
    loss.losses(Batch(torch.tensor([0, 1]), logits, logits, attacked))
    loss.end_round(teacher, images, labels, rng)
    assert loss.temperatures[1].tolist() == pytest.approx([0.9, 1.1, 1.0])
    sharper, softer = (torch.tensor(row).log_softmax(0) for row in ([10.0, 0.0, 0.0], [0.0, 9 / 1.1, 0.0]))
    targets = torch.stack([sharper, softer]).exp()
    _, adversarial = loss.losses(Batch(torch.tensor([0, 1]), logits, logits, torch.zeros(2, 3)))
    entropies = -(targets * targets.log()).sum(1)
    assert adversarial.item() == pytest.approx((math.log(3) - entropies).mean().item(), rel=1e-4)
    loss.end_round(teacher, images, labels, rng)
    other = Absld(3, CPU)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other.temperatures, loss.temperatures)
    for _ in range(60):
        loss.losses(Batch(torch.tensor([0, 1]), logits, logits, attacked))
        loss.end_round(teacher, images, labels, rng)
    assert loss.temperatures[1].tolist() == pytest.approx([0.5, 5.0, 1.0])


def test_the_hard_label_loss_follows_the_teacher_on_the_attacked_images():
    given = batch()
    clean, adversarial = HardLabel().losses(given)
    assert clean is adversarial
    predicted = given.teacher_adv_logits.argmax(1)
    assert torch.equal(clean, F.cross_entropy(given.student_adv_logits, predicted))


def test_dfhl_rs_smooths_labels_to_four_fifths_for_the_true_one_of_ten(make_network, images):
    student = make_network().eval()
    labels = student(images).argmax(1)
    targets = torch.full((16, 10), 0.2 / 9).scatter_(1, labels.unsqueeze(1), 0.8)
    with dfhl_rs_loss(student, labels) as loss:
        found = loss(images)
    assert found["loss"].item() == pytest.approx((found["oh"] + 3 * found["diversity"]).item())
    assert found["oh"].item() == pytest.approx(F.cross_entropy(student(images), targets).item(), rel=1e-5)


def test_diversity_is_least_where_classes_are_even():
    assert diversity_loss(torch.zeros(4, 10)).item() == pytest.approx(-1.0)
    assert diversity_loss(100 * torch.eye(10)[[3, 3]]).item() == pytest.approx(0.0, abs=1e-6)
