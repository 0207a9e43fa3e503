import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from ferd.losses import ikl
from ferd.student_losses import Absld, Batch, FairRslad, HardLabel, Ikl, Rslad, SoftCrossEntropy

CPU = torch.device("cpu")
THREE_TO_ONE, EVEN = [math.log(3), 0.0], [0.0, 0.0]
FROM_THREE_TO_ONE = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)  # KL((3/4, 1/4) ‖ (1/2, 1/2))
FROM_EVEN = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)  # KL((1/2, 1/2) ‖ (3/4, 1/4))


def batch_of(labels, teacher, student, student_adv, teacher_adv=None):
    """Of images that say which logits belong to them."""
    labels = torch.tensor(labels)
    clean, attacked = torch.zeros(len(labels), 1, 8, 8), torch.ones(len(labels), 1, 8, 8)

    def either(of_clean, of_attacked):
        return lambda images: of_attacked if images is attacked else of_clean

    return Batch(clean, attacked, labels, either(teacher, teacher_adv), either(student, student_adv))


def batch(labels=(0, 1), classes=3):
    source = torch.Generator().manual_seed(0)
    return batch_of(labels, *(torch.randn(len(labels), classes, generator=source) for _ in range(4)))


def two_class_batch():
    """An image of each class: clean, the student is off on the first alone; attacked, on the second alone."""
    teacher = torch.tensor([THREE_TO_ONE, EVEN])
    clean, attacked = torch.tensor([EVEN, EVEN]), torch.tensor([THREE_TO_ONE, THREE_TO_ONE])
    return batch_of([0, 1], teacher, clean, attacked)


def test_ikl_pulls_both_answers_to_the_teachers_on_clean_images():
    """By hand: a sample of class 0, prior (3/4, 1/4), 1 from the clean answer and 3 from the other."""
    teacher, clean, adversarial = ([[math.log(3), 0.0]], [[math.log(3), 1.0]], [[math.log(3), 3.0]])
    elsewhere = torch.tensor([[-9.0, 9.0]])  # the teacher under attack plays no part
    batch = batch_of([0], *map(torch.tensor, (teacher, clean, adversarial)), elsewhere)
    found = Ikl(2, CPU).losses(batch)
    for loss, gap in zip(found, (1, 3), strict=True):
        log_sum = math.log(3 + math.exp(gap))
        cross_entropy = 0.75 * (log_sum - math.log(3)) + 0.25 * (log_sum - gap)
        assert loss.item() == pytest.approx(0.5 * 0.75 * 0.25 * gap**2 + cross_entropy, rel=1e-5)


def test_the_released_loss_is_ikl_with_a_one_hot_prior():
    given = batch()
    found = SoftCrossEntropy().losses(given)
    one_hot = F.one_hot(given.labels, 3).float()
    for loss, student in zip(found, (given.student_logits, given.student_adv_logits), strict=True):
        assert loss.item() == pytest.approx(ikl(given.teacher_logits, student, one_hot).mean().item())


def test_five_sixths_of_rslad_and_what_came_of_it_are_adversarial():
    assert [loss.adversarial_weight for loss in (Rslad, FairRslad, Absld)] == [5 / 6] * 3


def test_rslad_is_the_mean_kl_from_the_teacher():
    clean, adversarial = Rslad().losses(two_class_batch())
    assert clean.item() == pytest.approx(FROM_THREE_TO_ONE / 2)
    assert adversarial.item() == pytest.approx(FROM_EVEN / 2)


def test_fair_rslad_weighs_by_the_inverse_square_of_kappa_between_its_bounds():
    loss = FairRslad(3, CPU)
    assert loss.weights().tolist() == [1.0, 1.0, 1.0]
    loss.kappa = torch.tensor([1.0, 2.0, torch.nan])  # the unseen class counts as 1.5
    raw = [1.0, 0.25, 1 / 2.25]
    mean = sum(raw) / 3
    assert loss.weights().tolist() == pytest.approx([raw[0] / mean, 5 / 6, 5 / 6])
    loss.kappa = torch.tensor([0.0, 0.1, 10.0])  # none right in the first: all that the bounds allow
    assert loss.weights().tolist() == pytest.approx([5 / 2, 5 / 6, 5 / 6])


def test_fair_rslad_weighs_both_parts():
    loss = FairRslad(2, CPU)
    loss.kappa = torch.tensor([2.0, 1.0])  # weights 2/5 and 8/5, the first clamped to 5/6
    clean, adversarial = loss.losses(replace(two_class_batch(), points_right=torch.tensor([0, 0])))
    assert clean.item() == pytest.approx(5 / 6 * FROM_THREE_TO_ONE / 2)
    assert adversarial.item() == pytest.approx(8 / 5 * FROM_EVEN / 2)


def test_fair_rslads_kappa_is_the_mean_over_a_rounds_images_of_a_class():
    loss = FairRslad(3, CPU)
    loss.kappa[:] = 7.0
    for points in ([10, 2], [5, 4]):
        loss.losses(replace(batch(), points_right=torch.tensor(points)))
    assert loss.kappa.tolist() == [7.0, 7.0, 7.0]  # until the round is over
    loss.end_round()
    assert loss.kappa.tolist() == [7.5, 3.0, 7.0]  # the third was not drawn
    loss.losses(replace(batch(), points_right=torch.tensor([1, 1])))
    loss.end_round()
    assert loss.kappa.tolist() == [1.0, 1.0, 7.0]


def test_absld_sharpens_the_labels_of_the_class_at_risk():
    loss = Absld(3, CPU)
    confident, wrong = torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([[0.0, 9.0, 0.0]])
    logits = torch.cat([confident, confident.roll(1, 1)])
    attacked = torch.cat([wrong, confident.roll(1, 1)])
    loss.losses(batch_of([0, 1], logits, logits, attacked))
    loss.end_round()
    assert loss.temperatures[0].tolist() == [1.0, 1.0, 1.0]  # without an attack both are as right
    assert loss.temperatures[1].tolist() == pytest.approx([0.9, 1.1, 1.0])
    sharper, softer = (torch.tensor(row).log_softmax(0) for row in ([10.0, 0.0, 0.0], [0.0, 9 / 1.1, 0.0]))
    targets = torch.stack([sharper, softer]).exp()
    assert torch.allclose(loss.attack_targets(logits, torch.tensor([0, 1])), targets)
    clean, adversarial = loss.losses(batch_of([0, 1], logits, logits, torch.zeros(2, 3)))
    assert clean.item() == pytest.approx(0, abs=1e-6)
    entropies = -(targets * targets.log()).sum(1)
    assert adversarial.item() == pytest.approx((math.log(3) - entropies).mean().item(), rel=1e-4)
    loss.end_round()
    other = Absld(3, CPU)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other.temperatures, loss.temperatures)
    for _ in range(60):
        loss.losses(batch_of([0, 1], logits, logits, attacked))
        loss.end_round()
    assert loss.temperatures[1].tolist() == pytest.approx([0.5, 5.0, 1.0])


def test_absld_steps_by_a_part_of_the_largest_gap_between_the_risks_of_one_round():
    loss, even, student = Absld(3, CPU), torch.zeros(4, 3), torch.zeros(4, 3)
    student[0, 0] = 1000.0  # risks 0, log 3 and log 3: gaps of −2/3, 1/3 and 1/3 of log 3
    loss.losses(batch_of([0, 1, 1, 2], even, student, student))
    loss.end_round()
    stepped = loss.temperatures.clone()
    assert stepped.tolist() == [pytest.approx([1.1, 0.95, 0.95])] * 2
    loss.losses(batch_of([0, 1, 1, 1], even, even, even))  # equal risks, and the third was not drawn
    loss.end_round()
    assert torch.equal(loss.temperatures, stepped)


def test_the_hard_label_loss_follows_the_teacher_on_the_attacked_images():
    given = batch()
    clean, adversarial = HardLabel().losses(given)
    assert clean is adversarial
    predicted = given.teacher_adv_logits.argmax(1)
    assert torch.equal(clean, F.cross_entropy(given.student_adv_logits, predicted))
