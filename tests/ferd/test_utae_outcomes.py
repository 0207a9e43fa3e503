import pytest
import torch

from ferd.attacks import utae
from ferd.checkpoint import load_state, save_state
from ferd.datasets import Images
from ferd.errors import FerdError
from ferd.losses import kl_from_uniform
from ferd.models.folding import Folded
from ferd.randomness import stream
from ferd.utae_outcomes import UtaeOutcomes, collision_probability

CPU = torch.device("cpu")


def seen_tf32(network, monkeypatch):
    """The caller allows it; -> whether it still is allowed, as of each forward pass to come."""
    cudnn, seen = torch.backends.cudnn, []
    monkeypatch.setattr(cudnn, "allow_tf32", True)
    network.register_forward_pre_hook(lambda *_: seen.append(cudnn.allow_tf32))
    return seen


@pytest.fixture
def outcomes(trained, teacher, digits, threat):
    def make(
        gammas=(0.0, 0.5), student=trained, teacher=teacher, data=digits["test"], batch_size=8, threat=threat
    ):
        return UtaeOutcomes(student, teacher, data, gammas, threat, batch_size, 0, CPU)

    return make


def test_figures_derive_from_predictions_and_divergences(outcomes, digits):
    labels = torch.tensor([0, 0, 1, 1])
    some = Images(digits["test"].images[:4], labels)
    run = outcomes(gammas=(0.3,), data=some)
    run.load_state_dict(
        run.state_dict()
        | {
            "clean": [labels],
            "predicted": [torch.tensor([0, 1, 1, 1])],
            "divergences": [torch.tensor([1.0, 2.0, 3.0, 4.0])],
        }
    )
    (figures,) = run.figures()
    assert figures["gamma"] == 0.3
    assert figures["n"] == 4
    assert figures["correct"] == 0.75
    assert figures["kl_from_uniform"] == 2.5
    assert figures["distribution"] == [0.25, 0.75, *[0.0] * 8]
    assert [row[:2] for row in figures["counts"][:2]] == [[1, 1], [0, 2]]
    assert figures["entropy"] == pytest.approx(0.562335 / 2.302585, abs=1e-6)


@pytest.mark.parametrize(
    ("ends", "fooled", "same_end"),
    [([0, 0, 0, 1], 0, None), ([7, 0, 0, 1], 1, None), ([7, 7, 9, 0], 4, 1 / 3), ([7, 7, 7, 1], 3, 1)],
)
def test_the_fooled_are_those_that_an_attack_made_wrong(outcomes, digits, ends, fooled, same_end):
    """Three images of class 0 and one of class 1 that are right, and one of class 0 that never was."""
    some = Images(digits["test"].images[:5], torch.tensor([0, 0, 0, 1, 0]))
    run = outcomes(gammas=(0.3,), data=some)
    state = {"predicted": [torch.tensor([*ends, 7])], "divergences": [torch.zeros(5)]}
    run.load_state_dict(run.state_dict() | state | {"clean": [torch.tensor([0, 0, 0, 1, 7])]})
    (figures,) = run.figures()
    assert figures["fooled"] == fooled
    assert figures["same_end"] == pytest.approx(same_end)


def test_two_ends_are_the_same_by_the_chance_of_a_pair():
    assert collision_probability(torch.tensor([[0, 4], [0, 0]])) == 1
    assert collision_probability(torch.tensor([[1, 1, 1]])) == 0
    assert collision_probability(torch.tensor([[2, 2], [1, 0]])) == pytest.approx(4 / 12)
    assert collision_probability(torch.tensor([[1, 0], [0, 1]])) is None


def test_the_chance_of_the_same_end_does_not_depend_on_how_few_are_counted():
    rng, shares = torch.Generator().manual_seed(0), torch.tensor([0.5, 0.3, 0.2]).expand(4000, 3)
    few = torch.nn.functional.one_hot(shares.multinomial(3, replacement=True, generator=rng), 3).sum(1)
    assert collision_probability(few) == pytest.approx(0.25 + 0.09 + 0.04, abs=0.02)


def test_clean_predictions_are_the_students(outcomes, trained, digits):
    expected = trained(digits["test"].images / 255).argmax(1)
    run = outcomes(batch_size=7)
    next(run.batches())
    assert torch.equal(run.clean, expected)


def test_a_state_of_other_gammas_or_another_threat_model_is_refused(outcomes, threat):
    for what, given in (("γ", {"gammas": (0.3,)}), ("threat model", {"threat": threat.with_steps(3)})):
        with pytest.raises(FerdError, match=rf"^{what}: not what the state was saved with"):
            outcomes().load_state_dict(outcomes(**given).state_dict())


def test_a_gamma_below_0_is_refused_before_anything_is_attacked(outcomes):
    with pytest.raises(FerdError, match=r"^gamma -0.5: must be 0 or more"):
        outcomes((0.0, -0.5))


def test_every_gamma_attacks_every_image(outcomes):
    run = outcomes()
    assert list(run.batches()) == [(8, 40), (16, 40), (20, 40), (28, 40), (36, 40), (40, 40)]
    for figures in run.figures():
        assert sum(map(sum, figures["counts"])) == 20
        assert [sum(row) for row in figures["counts"]] == [2] * 10
        assert sum(figures["distribution"]) == pytest.approx(1)


def test_they_are_the_utaes_of_the_student_with_the_teachers_prediction(
    outcomes, trained, teacher, digits, threat
):
    """Those of each batch by random numbers of its own, the same for every γ."""
    run = outcomes(gammas=(0.0, 0.5), batch_size=10)
    list(run.batches())
    twin, images = Folded(trained).network, digits["test"].images / 255
    for index, gamma in enumerate(run.gammas):
        expected = []
        for done in (0, 10):
            batch, rng = images[done : done + 10], stream(0, "utae-outcomes", done, device=CPU)
            expected.append(trained(utae(twin, batch, teacher(batch).softmax(1), gamma, threat, rng)))
        logits = torch.cat(expected)
        assert torch.equal(run.predicted[index], logits.argmax(1))
        assert torch.equal(run.divergences[index], kl_from_uniform(logits))


def test_a_larger_gamma_leaves_predictions_nearer_to_uniform(outcomes, trained, digits):
    some = Images(digits["train"].images[:200], digits["train"].labels[:200])
    run = outcomes(gammas=(0.0, 0.5, 0.9), teacher=trained, data=some, batch_size=100)
    list(run.batches())
    plain, half, most = (figures["kl_from_uniform"] for figures in run.figures())
    assert 0 < most < half < plain


@pytest.mark.parametrize("stop", [1, 4])
def test_resumed_outcomes_are_the_same(outcomes, tmp_path, stop):
    whole, stopped, rest = outcomes(), outcomes(), outcomes()
    expected = list(whole.batches())
    batches = stopped.batches()
    progress = [next(batches) for _ in range(stop)]
    save_state(tmp_path / "state.pt", stopped.state_dict())
    rest.load_state_dict(load_state(tmp_path / "state.pt"))
    assert progress + list(rest.batches()) == expected
    assert rest.figures() == whole.figures()


def test_networks_and_global_generator_are_left_alone(outcomes, make_network, teacher, untouched):
    student, before = make_network(seed=1), torch.get_rng_state()
    with untouched(student), untouched(teacher):
        list(outcomes(student=student).batches())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_teacher_that_is_in_training_mode_by_then_answers_in_eval_mode(outcomes, make_network):
    plain, other = (outcomes(gammas=(0.5,), teacher=make_network(seed=1)) for _ in range(2))
    other.teacher.train()
    for run in (plain, other):
        list(run.batches())
    assert torch.equal(plain.divergences[0], other.divergences[0])


def test_on_a_gpu_all_three_networks_run_in_float32_whatever_the_caller_has_set(
    outcomes, make_network, monkeypatch
):
    run = outcomes(gammas=(0.5,), student=make_network(), teacher=make_network(seed=1))
    seen = [seen_tf32(network, monkeypatch) for network in (run.student, run.teacher, run.attacked)]
    list(run.batches())
    assert all(seen) and not any(map(any, seen))


def test_there_are_no_figures_before_every_image_is_attacked(outcomes):
    with pytest.raises(FerdError, match=r"go through batches\(\) first$"):
        outcomes().figures()


@pytest.mark.parametrize(("role", "what"), [("student", "weights"), ("teacher", "teacher weights")])
def test_outcomes_of_earlier_weights_are_not_added_to(outcomes, make_network, role, what):
    networks = {"student": make_network(), "teacher": make_network(seed=1)}
    run = outcomes(**networks)
    next(run.batches())
    with torch.no_grad():
        networks[role].linear.bias[0] += 1
    with pytest.raises(FerdError, match=rf"^{what}: not what there are results of already"):
        next(run.batches())


@pytest.mark.parametrize(("given", "said"), [({"classes": 5}, "classes"), ({"channels": 3}, "channels")])
def test_a_teacher_of_other_classes_or_channels_is_refused(outcomes, make_network, given, said):
    with pytest.raises(FerdError, match=rf"^the student has \d+ {said}, the teacher {given[said]}$"):
        outcomes(teacher=make_network(**given))
