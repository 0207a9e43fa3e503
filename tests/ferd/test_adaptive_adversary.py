"""On a network of which each class has pixels of its own, every targeted attack's end is known."""

import pytest
import torch
from torch import nn

import ferd.adaptive_adversary
from ferd.adaptive_adversary import AdaptiveAdversary, weakest, worst_pairs
from ferd.attacks import toward
from ferd.checkpoint import load_state, save_state
from ferd.config import ThreatModel
from ferd.dataset_readers import read
from ferd.datasets import Images
from ferd.errors import FerdError
from ferd.models.classifier import Classifier
from tests.ferd.test_utae_outcomes import seen_tf32

CPU = torch.device("cpu")
PIXELS = 4  # that speak for a class


class Blocks(Classifier):
    """f(x)_c = the sum of class c's own pixels: an attack toward t raises t's and lowers all others."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes, 1)
        self.linear = nn.Linear(64, classes, bias=False)
        rows = torch.eye(classes).repeat_interleave(PIXELS, 1)
        self.linear.weight.data = nn.functional.pad(rows, (0, 64 - rows.shape[1]))
        self.requires_grad_(False)

    def stem(self, inputs):
        return inputs.flatten(1)[:, :, None, None]

    def blocks(self):
        return [nn.Identity()]


def bright(rows: list[list[int]]) -> torch.Tensor:
    """Images whose pixels of class c have the brightness ``rows[n][c]``."""
    values = torch.tensor(rows, dtype=torch.uint8).repeat_interleave(PIXELS, 1)
    return nn.functional.pad(values, (0, 64 - values.shape[1]), value=128).view(-1, 1, 8, 8)


@pytest.fixture
def ball():
    """ε is 25.5 of 255: a class leads by less than 51 where an attack can turn it."""
    return ThreatModel(norm="linf", epsilon=0.1, step_size=0.025, steps=10)


@pytest.fixture
def known(ball):
    """Two images of each of three classes; 20 apart falls, 80 apart stands."""
    rows = [[200, 180, 120], [200, 180, 180], [120, 200, 120], [120, 200, 180], [40, 120, 200], [40, 40, 200]]
    data = Images(bright(rows), torch.tensor([0, 0, 1, 1, 2, 2]))
    adversary = AdaptiveAdversary(Blocks(3), data, ball, 4, 0, CPU)
    assert list(adversary.batches()) == [(4, 6), (6, 6)]
    return adversary


@pytest.fixture
def adversary(teacher, digits, threat):
    return lambda: AdaptiveAdversary(teacher, digits["test"], threat, 8, 0, CPU)


def test_the_objective_toward_a_class_is_its_log_probability():
    logits = torch.tensor([[0.0, 0.0], [3.0, 3.0]])
    assert toward(torch.tensor([0, 1]))(logits).tolist() == pytest.approx([-0.693147, -0.693147])
    unsure, sure = toward(torch.tensor([1, 1]))(torch.tensor([[0.0, 1.0], [0.0, 5.0]]))
    assert unsure < sure < 0


def test_the_matrix_holds_the_share_that_ends_in_each_target(known):
    figures = known.figures()
    assert figures["success"] == [[None, 1.0, 0.5], [0.0, None, 0.5], [0.0, 0.0, None]]
    assert figures["turned"] == [[0, 2, 1], [0, 0, 1], [0, 0, 0]]
    assert figures["attacked"] == [[0, 2, 2], [2, 0, 2], [2, 2, 0]]
    assert (figures["n"], figures["targets_per_image"], figures["steps"]) == (6, 2, 10)


def test_pairs_that_fail_most_come_first(known):
    assert known.figures()["worst_pairs"] == [
        {"source": 0, "target": 1, "turned": 2, "attacked": 2, "success": 1.0},
        {"source": 0, "target": 2, "turned": 1, "attacked": 2, "success": 0.5},
        {"source": 1, "target": 2, "turned": 1, "attacked": 2, "success": 0.5},
    ]


def test_of_pairs_the_more_images_come_before_the_larger_share():
    sources = [{"turned": [0, 3, 1], "attacked": [0, 10, 10]}, {"turned": [1, 0, 0], "attacked": [1, 0, 1]}]
    pairs = [(pair["source"], pair["target"]) for pair in worst_pairs(sources)]
    assert pairs == [(0, 1), (1, 0), (0, 2)]


def test_at_most_ten_pairs_are_listed():
    assert len(worst_pairs(5 * [{"turned": 5 * [1], "attacked": 5 * [2]}])) == 10


def test_an_image_that_is_wrong_anyway_is_no_success_of_an_attack(ball):
    """Of class 0: one taken for class 1 from the first, one that falls; of class 2 none is right."""
    data = Images(bright([[120, 200, 40], [200, 180, 40], [40, 200, 40]]), torch.tensor([0, 0, 2]))
    adversary = AdaptiveAdversary(Blocks(3), data, ball, 4, 0, CPU)
    list(adversary.batches())
    assert adversary.clean.tolist() == [1, 0, 1]
    source = adversary.source(0)
    assert (source["attacked"], source["turned"]) == ([0, 1, 1], [0, 1, 0])
    assert (source["clean_accuracy"], source["union_accuracy"]) == (0.5, 0.0)
    nothing = adversary.source(2)
    assert nothing["success"] == [None] * 3
    assert nothing["best_target"] is None and nothing["best_success"] is None


def test_union_accuracy_is_of_images_that_every_target_leaves_correct(known):
    union = known.figures()["union"]
    assert union["per_class"] == [0.0, 0.5, 1.0]
    assert union["average"] == 0.5
    assert union["worst"] == 0.0
    assert union["nsd"] == pytest.approx((2 / 3) ** 0.5)


def test_each_class_has_a_best_target(known):
    assert known.figures()["best_targets"][:2] == [
        {"target": 1, "success": 1.0},
        {"target": 2, "success": 0.5},
    ]


def test_an_image_that_leaves_its_class_for_a_third_one_is_not_correct(ball):
    data = Images(bright([[200, 190, 40]]), torch.tensor([0]))
    adversary = AdaptiveAdversary(Blocks(3), data, ball, 4, 0, CPU)
    state = {"clean": [0], "targets": [[2, 1]], "outcomes": [[1, 0]]}
    found = {key: torch.tensor(value) for key, value in state.items()}
    adversary.load_state_dict(adversary.state_dict() | found)
    source = adversary.source(0)
    assert source["success"] == [None, 0.0, 0.0]
    assert source["union_accuracy"] == 0.0


def test_of_many_classes_the_nine_likeliest_are_targets(ball):
    brightness = [[120 + 2 * label for label in range(12)]]
    adversary = AdaptiveAdversary(Blocks(12), Images(bright(brightness), torch.tensor([11])), ball, 4, 0, CPU)
    list(adversary.batches())
    assert adversary.targets.tolist() == [[10, 9, 8, 7, 6, 5, 4, 3, 2]]
    source = adversary.source(11)
    assert source["success"] == [None, None, *[1.0] * 9, None]
    assert source["union_accuracy"] == 0.0


def test_the_weakest_classes_are_a_tenth_and_at_least_one():
    assert weakest([0.5, 0.25, 0.75], [0.5] * 3) == [1]
    assert weakest([(7 * label % 20) / 20 for label in range(20)], [1.0] * 20) == [0, 3]


def test_of_equally_weak_classes_the_one_that_is_worse_without_an_attack_comes_first():
    assert weakest([0.0, 0.0, 0.1], [0.5, 0.25, 0.0]) == [1]


@pytest.mark.parametrize("stop", [1, 2])
def test_a_resumed_adversary_finds_the_same(adversary, tmp_path, stop):
    whole, stopped, rest = adversary(), adversary(), adversary()
    list(whole.batches())
    batches = stopped.batches()
    for _ in range(stop):
        next(batches)
    save_state(tmp_path / "state.pt", stopped.state_dict())
    rest.load_state_dict(load_state(tmp_path / "state.pt"))
    assert next(rest.batches())[0] > 8 * stop
    list(rest.batches())
    assert rest.figures() == whole.figures()
    assert torch.equal(rest.outcomes, whole.outcomes)


def test_a_batch_finds_the_same_whatever_ran_before_it(adversary):
    whole, last = adversary(), adversary()
    list(whole.batches())
    state = whole.state_dict()
    first = {key: state[key][:16] for key in ("clean", "targets", "outcomes")}
    last.load_state_dict(state | first)
    list(last.batches())
    assert torch.equal(last.outcomes, whole.outcomes)


def test_on_a_trained_network_some_images_stand_and_many_fall(trained, digits, threat):
    some = Images(digits["train"].images[:200], digits["train"].labels[:200])
    adversary = AdaptiveAdversary(trained, some, threat.with_steps(10), 100, 0, CPU)
    list(adversary.batches())
    figures = adversary.figures()
    with torch.no_grad():
        clean = (trained(some.images / 255).argmax(1) == some.labels).double().mean().item()
    assert 0.05 < figures["union"]["average"] < clean - 0.2
    for label, row in enumerate(figures["success"]):
        assert row[label] is None
        best = max(share for share in row if share is not None)
        assert best == figures["best_targets"][label]["success"]
        assert best + figures["union"]["per_class"][label] <= 1 + 1e-12


def test_network_and_global_generator_are_left_alone(adversary, teacher, untouched):
    before = torch.get_rng_state()
    with untouched(teacher):
        list(adversary().batches())
    assert torch.equal(torch.get_rng_state(), before)


def test_there_are_no_figures_before_every_image_is_attacked(adversary):
    run = adversary()
    for figures in (run.figures, lambda: run.source(0)):
        with pytest.raises(FerdError, match=r"^0 of 20 images are attacked; go through batches\(\) first$"):
            figures()


def test_figures_of_images_that_lack_a_class_are_refused(ball):
    data = Images(bright([[200, 180, 120], [120, 200, 120]]), torch.tensor([0, 1]))
    run = AdaptiveAdversary(Blocks(3), data, ball, 4, 0, "cpu")
    list(run.batches())
    assert run.source(0)["clean_accuracy"] == 1
    with pytest.raises(FerdError, match="there is no image of class 2 of 0 to 2"):
        run.figures()
    with pytest.raises(FerdError, match=r"^there is no image of class 2; give some, or ask for another$"):
        run.source(2)


def test_each_attack_starts_at_random_in_the_ball(teacher, digits, monkeypatch, threat):
    """Those of a second batch of the same images elsewhere than those of the first."""
    images, labels = digits["test"].images[:8], digits["test"].labels[:8]
    twice, starts = Images(images.repeat(2, 1, 1, 1), labels.repeat(2)), []
    real = ferd.adaptive_adversary.pgd

    def spy(network, inputs, objective, ball, start):
        starts.append(start - inputs)
        return real(network, inputs, objective, ball, start)

    monkeypatch.setattr(ferd.adaptive_adversary, "pgd", spy)
    list(AdaptiveAdversary(teacher, twice, threat, 8, 0, CPU).batches())
    assert len(starts) == 18
    assert all(0.8 * threat.epsilon < start.abs().max() <= threat.epsilon + 1e-6 for start in starts)
    assert not any(torch.equal(starts[0], start) for start in starts[1:])


def test_on_a_gpu_network_and_twin_run_in_float32_whatever_the_caller_has_set(
    make_network, digits, threat, monkeypatch
):
    run = AdaptiveAdversary(make_network(), digits["test"], threat, 10, 0, CPU)
    seen = [seen_tf32(network, monkeypatch) for network in (run.network, run.attacked)]
    list(run.batches())
    assert all(seen) and not any(map(any, seen))


@pytest.mark.parametrize("batch_size", [0, -5])
def test_a_batch_of_nothing_is_refused(make_network, threat, batch_size):
    data = Images(torch.zeros(10, 1, 8, 8, dtype=torch.uint8), torch.arange(10))
    with pytest.raises(FerdError, match=f"^batch_size {batch_size}: must be 1 or more"):
        AdaptiveAdversary(make_network(), data, threat, batch_size, 0, "cpu")


def test_no_images_are_refused(make_network, threat):
    data = Images(torch.zeros(0, 1, 8, 8, dtype=torch.uint8), torch.arange(0))
    with pytest.raises(FerdError, match=r"^there are no images; give some, of a benchmark by its data"):
        AdaptiveAdversary(make_network(), data, threat, 4, 0, "cpu")


def test_other_images_and_networks_are_refused_by_their_kind(make_network, threat):
    part, _ = read("digits", None)
    with pytest.raises(FerdError, match=r"^a Part is no ferd.datasets.Images; take rows of it"):
        AdaptiveAdversary(make_network(), part, threat, 5, 0, "cpu")
    with pytest.raises(FerdError, match=r"^network: a Linear is no ferd.models.classifier.Classifier"):
        AdaptiveAdversary(torch.nn.Linear(2, 2), part.take(torch.arange(5)), threat, 5, 0, "cpu")


@pytest.mark.parametrize("what", ["weights", "images", "seed", "threat model"])
def test_a_state_of_another_network_or_other_images_is_refused(teacher, make_network, digits, threat, what):
    data = digits["test"]
    given = {"network": teacher, "data": data, "threat": threat, "batch_size": 8, "seed": 0, "device": CPU}
    other = {
        "weights": {"network": make_network(seed=5)},
        "images": {"data": Images(255 - data.images, data.labels)},
        "seed": {"seed": 1},
        "threat model": {"threat": threat.with_steps(3)},
    }
    state = AdaptiveAdversary(**given).state_dict()
    with pytest.raises(FerdError, match=f"^{what}: not what the state was saved with; give that, or begin"):
        AdaptiveAdversary(**given | other[what]).load_state_dict(state)
    with pytest.raises(FerdError, match=r"^the state is of another version; begin anew$"):
        AdaptiveAdversary(**given).load_state_dict({key: state[key] for key in ("clean", "targets")})


def test_outcomes_of_earlier_weights_are_not_added_to(make_network, digits, threat):
    run = AdaptiveAdversary(make_network(), digits["test"], threat, 8, 0, CPU)
    next(run.batches())
    with torch.no_grad():
        run.network.linear.bias[0] += 1
    with pytest.raises(FerdError, match=r"^weights: not what there are results of already"):
        next(run.batches())
