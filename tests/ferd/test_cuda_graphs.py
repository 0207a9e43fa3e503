"""Steps recorded on a GPU compute what they compute when they are called; elsewhere they are called."""

import pytest
import torch

from ferd import adversarial_training, distillation, synthesis
from ferd.adversarial_training import AdversarialTraining
from ferd.config import Augmentation, Training
from ferd.cuda_graphs import Draws, Recorded
from ferd.distillation import Distillation
from ferd.errors import FerdError
from tests.ferd.test_distillation import FERD, SCHEDULE

CALLS = 8
CPU = torch.device("cpu")


class Answered(Recorded):
    """In place of a graph the function itself, which is given its random numbers as a graph is."""

    def __call__(self, *inputs):
        self._calls += 1
        if self._calls <= self.WARM_UP:
            with self._draws.noting():
                return self._function(*inputs)
        self._draws.draw()
        with self._draws.answering():
            return self._function(*inputs)


@pytest.fixture
def answered(monkeypatch):
    def replace():
        for module in (adversarial_training, distillation, synthesis):
            monkeypatch.setattr(module, "Recorded", Answered)

    return replace


def test_elsewhere_than_on_a_gpu_each_call_is_a_call():
    seen = []
    double = Recorded(lambda number: seen.append(number) or 2 * number, CPU)
    assert [double(torch.tensor(number)).item() for number in range(5)] == [0, 2, 4, 6, 8]
    assert len(seen) == 5


def test_drawn_before_it_runs_a_function_has_the_numbers_that_it_draws():
    def draw(rng):
        wide = torch.empty(3, 4, 5, 6).to(memory_format=torch.channels_last)
        return [
            wide.normal_(0.0, 0.1, generator=rng),
            torch.randint(0, 9, (2, 7), generator=rng),
            torch.rand(3, generator=rng),
            torch.empty(4).uniform_(-1, 1, generator=rng),
        ]

    called, rng = (torch.Generator().manual_seed(1) for _ in range(2))
    draws = Draws()
    with draws.noting():
        first = draw(rng)
    assert all(map(torch.equal, first, draw(called)))
    for _ in range(3):
        draws.draw()
        with draws.answering():
            answered = draw(rng)
        assert all(map(torch.equal, answered, draw(called)))


def test_a_call_that_draws_otherwise_than_noted_is_refused(rng):
    draws = Draws()
    with draws.noting():
        torch.rand(3, generator=rng)
    draws.draw()
    with draws.answering(), pytest.raises(FerdError, match=r"randint.*rand.* was noted"):
        torch.randint(0, 9, (3,), generator=rng)
    with draws.answering():
        torch.rand(3, generator=rng)
        with pytest.raises(FerdError, match="None was noted"):
            torch.rand(3, generator=rng)


def test_a_draw_that_depends_on_a_tensor_is_refused(rng):
    shares = torch.tensor([0.5, 0.5])
    with Draws().noting(), pytest.raises(FerdError, match=r"multinomial.*recordable = False$"):
        torch.multinomial(shares, 1, generator=rng)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"student_loss": "hard-label", "adversary": "high-entropy", "synthesis": "dfhl-rs"},
        {"nonrobust": FERD.nonrobust.model_copy(update={"layer": -2})},
    ],
    ids=["ferd", "dfhl-rs", "second-last-block"],
)
def test_a_distillation_whose_numbers_are_drawn_before_ends_at_the_same_bits(
    make_network, threat, tmp_path, answered, changes
):
    longer = {"steps": 5}
    schedule = SCHEDULE.model_copy(
        update={
            "synthesis": SCHEDULE.synthesis.model_copy(update=longer),
            "student": SCHEDULE.student.model_copy(update=longer),
        }
    )

    def distilled(folder):
        teacher, student = make_network(), make_network(seed=1)
        crops, method = Augmentation(padding=1, flip=True), FERD.model_copy(update=changes)
        shape, pool = (1, 8, 8), tmp_path / folder
        run = Distillation(teacher, student, shape, schedule, crops, method, threat, 0, pool, CPU)
        return list(run.rounds()), run

    expected_records, expected = distilled("called")
    answered()
    records, run = distilled("answered")
    assert records == expected_records
    assert torch.equal(run.pool.images, expected.pool.images)
    for key, value in expected.student.state_dict().items():
        assert torch.equal(run.student.state_dict()[key], value), key


@pytest.mark.parametrize("method", ["pgd-at", "trades"])
def test_a_training_whose_numbers_are_drawn_before_ends_at_the_same_bits(
    make_network, threat, digits, answered, method
):
    settings = Training(
        method=method,
        beta=2.0,
        attack_steps=1,
        attack_step_size=0.1,
        epochs=1,
        batch_size=100,
        learning_rate=0.1,
        weight_decay=5e-4,
        weight_average=0.0,
        precision="float32",
    )

    def trained():
        crops = Augmentation(padding=1, flip=False)
        training = AdversarialTraining(make_network(), digits["train"], settings, threat, crops, 0, CPU)
        return list(training.epochs())

    expected = trained()
    answered()
    assert trained() == expected


@pytest.mark.gpu
def test_replays_have_the_numbers_that_calls_draw():
    gpu = torch.device("cuda")
    called, rng = (torch.Generator(gpu).manual_seed(3) for _ in range(2))

    def draw(rng, scale):
        return torch.randn(100, generator=rng, device=gpu) * scale

    recorded = Recorded(lambda scale: draw(rng, scale), gpu)
    for number in range(CALLS):
        scale = torch.tensor(1.0 + number, device=gpu)
        assert torch.equal(recorded(scale), draw(called, scale))
    assert torch.equal(rng.get_state(), called.get_state())


@pytest.mark.gpu
def test_it_is_called_no_more_once_it_is_recorded_but_for_other_shapes():
    gpu, seen = torch.device("cuda"), []
    negative = Recorded(lambda values: seen.append(values.shape) or -values, gpu)
    for number in range(CALLS):
        values = torch.full((4,), float(number), device=gpu)
        assert torch.equal(negative(values), -values)
    assert len(seen) == Recorded.WARM_UP + 1
    assert torch.equal(negative(torch.ones(2, device=gpu)), -torch.ones(2, device=gpu))
    assert torch.equal(negative(torch.ones(4, device=gpu)), -torch.ones(4, device=gpu))
    assert len(seen) == Recorded.WARM_UP + 2
