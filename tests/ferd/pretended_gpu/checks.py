"""The method on a pretended GPU: no tensors of two devices, no waiting, graphs that compute what calls do.

Not collected with the other tests: the device has to be there before a process's first ``backward()``.
``tests/ferd/test_pretended_gpu.py`` runs them in a process of their own.
"""

# isort: off
from tests.ferd.pretended_gpu.device import GPU, pretended_gpu

# isort: on
import pytest
import torch

from ferd.adaptive_adversary import AdaptiveAdversary
from ferd.adversarial_training import AdversarialTraining
from ferd.adversaries import Adversary
from ferd.config import Augmentation, EvaluationSettings, NonRobust, Training
from ferd.cuda_graphs import Recorded
from ferd.datasets import Images
from ferd.distillation import Distillation
from ferd.errors import FerdError
from ferd.evaluation import Evaluation
from ferd.image_quality import TeacherEmbedding, image_quality
from ferd.image_sources import ImageSource
from ferd.samplers import UniformSampler
from ferd.utae_outcomes import UtaeOutcomes
from tests.ferd.test_distillation import FERD, SCHEDULE
from tests.ferd.test_gpu import METHODS, NEVER

CPU = torch.device("cpu")
SHORT = {"rounds": 2, "warmup_rounds": 0, "batch_size": 8}
BOTTLENECK = SCHEDULE.synthesis.bottleneck.model_copy(update={"steps": 6, "learning_rate": 1.0})
CROPS = Augmentation(padding=1, flip=True)
OTHERS = {
    "released": {
        "sampler": "released",
        "nonrobust": NonRobust(layer=-1, threshold_over="batch"),
        "student_loss": "soft-cross-entropy",
    },
    "mixed": {"sampler": "mixed", "student_loss": "rslad"},
}


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    with pretended_gpu(monkeypatch) as mode:
        yield mode


@pytest.fixture
def make_run(make_network, threat, tmp_path):
    def make(folder, method=FERD, steps=4, given=None, **changes):
        updated = SHORT | {
            "synthesis": SCHEDULE.synthesis.model_copy(update={"steps": steps, "bottleneck": BOTTLENECK}),
            "student": SCHEDULE.student.model_copy(update={"steps": steps}),
        }
        schedule = SCHEDULE.model_copy(update=updated | changes)
        teacher, student, shape = make_network(), make_network(seed=1), (1, 8, 8)
        pool = tmp_path / folder
        return Distillation(teacher, student, shape, schedule, CROPS, method, threat, 0, pool, GPU, given)

    return make


@pytest.fixture
def make_training(make_network, threat, digits):
    def make(method, images=20, epochs=2, precision="float32"):
        settings = Training(
            method=method,
            beta=2.0,
            attack_steps=2,
            attack_step_size=0.05,
            epochs=epochs,
            batch_size=4,
            learning_rate=0.1,
            weight_decay=5e-4,
            weight_average=0.9,
            precision=precision,
        )
        data = Images(digits["train"].images[:images], digits["train"].labels[:images])
        return AdversarialTraining(make_network(), data, settings, threat, CROPS, 0, GPU)

    return make


def require_same(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=0, atol=0, equal_nan=True, msg=key)


@pytest.mark.parametrize(
    ("name", "precision"),
    [("ferd", "bf16-attacks"), ("ferd", "bf16"), *((name, "float32") for name in METHODS | OTHERS)],
)
def test_recorded_rounds_end_at_the_bits_of_rounds_that_are_called(make_run, monkeypatch, name, precision):
    method = FERD.model_copy(update=(METHODS | OTHERS)[name])
    recorded = make_run("recorded", method, precision=precision)
    records = list(recorded.rounds())
    monkeypatch.setattr(Recorded, "WARM_UP", NEVER)
    called = make_run("called", method, precision=precision)
    assert records == list(called.rounds())
    assert torch.equal(recorded.pool.images, called.pool.images)
    state, expected = recorded.state_dict(), called.state_dict()
    for part in ("student", "student_loss", "adversary", "sampler"):
        require_same(state[part], expected[part])


def test_no_further_step_waits_for_the_host(make_run, gpu):
    def waits(steps):  # nor does any method's step: it could not be recorded
        rounds = make_run(f"of-{steps}", steps=steps).rounds()
        next(rounds)
        before = len(gpu.waits)
        next(rounds)
        return len(gpu.waits) - before

    assert 0 < waits(4) == waits(8)  # a round's own figures are read


def test_a_resumed_distillation_ends_at_the_bits_of_the_whole(make_run):
    whole, stopped = make_run("whole"), make_run("half")
    list(whole.rounds())
    next(stopped.rounds())
    state = stopped.state_dict()
    rest = make_run("half")
    rest.load_state_dict(state)
    list(rest.rounds())
    require_same(rest.student.state_dict(), whole.student.state_dict())


def test_autocast_is_of_networks_and_not_of_losses(make_network, digits):
    network = make_network().to(GPU)
    with torch.autocast(GPU.type, torch.bfloat16):
        logits = network(digits["test"].images.to(GPU).float() / 255)
        probs = logits.log_softmax(1)
    assert (logits.dtype, probs.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("images", ["real-data", "uniform-noise", "untrained-generator"])
def test_controls_are_distilled(make_run, digits, images):
    given = digits["train"] if images == "real-data" else None
    method = FERD.model_copy(update={"images": images})
    assert len(list(make_run("pool", method, given=given).rounds())) == SHORT["rounds"]


def test_a_pool_is_replayed(make_run, tmp_path):
    first = make_run("first")
    list(first.rounds())
    replayed = make_run(
        "second", FERD.model_copy(update={"images": "pool-of-ferd"}), given=tmp_path / "first"
    )
    list(replayed.rounds())
    assert torch.equal(replayed.pool.images, first.pool.images)


class OnHost(ImageSource, UniformSampler):
    """A library user's pieces, who thinks of no device."""

    def __init__(self):
        self.difficulty = torch.zeros(10)

    def proportions(self):
        return torch.full((10,), 0.1)

    def draw(self, shares, number, rng):
        labels = torch.arange(8) % 10
        return torch.full((8, 1, 8, 8), 100, dtype=torch.uint8), labels, {}


@pytest.mark.parametrize("piece", ["source", "sampler"])
def test_what_ones_own_piece_makes_on_the_processor_is_moved(make_run, piece):
    run = make_run("pool")
    setattr(run, piece, OnHost())
    assert len(list(run.rounds())) == SHORT["rounds"]


def test_images_that_ones_own_attack_leaves_on_the_processor_are_refused(make_run):
    class Away(Adversary):
        recordable = False

        def attack(self, attacked, inputs, labels, teacher_probs, rng):
            return inputs.cpu()

    run = make_run("pool")
    run.adversary = Away()
    with pytest.raises(
        FerdError, match=r"on pretended:0, like its inputs, not \(8, 1, 8, 8\) torch\.float32$"
    ):
        next(run.rounds())


def test_a_teacher_that_is_on_the_gpu_is_normalised_there(make_network):
    network = make_network().to(GPU)
    network.normalise_by(torch.tensor([0.5]), torch.tensor([0.25]))
    assert network(torch.rand(2, 1, 8, 8, device=GPU)).shape == (2, 10)


def test_images_on_the_gpu_are_judged(make_network, threat, digits):
    settings = EvaluationSettings(
        batch_size=10, attacks={"clean": "all", "fgsm": 10}, other_balls=[], threads=1
    )
    data = Images(digits["test"].images.to(GPU), digits["test"].labels.to(GPU))
    evaluation = Evaluation(make_network(), data, settings, threat, 0, GPU)
    list(evaluation.batches())
    assert evaluation.figures()["all"]["n"] == 10


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("method", ["standard", "pgd-at", "trades"])
def test_a_recorded_training_ends_at_the_bits_of_one_that_is_called(
    make_training, monkeypatch, method, precision
):
    recorded = make_training(method, precision=precision)
    records = list(recorded.epochs())
    monkeypatch.setattr(Recorded, "WARM_UP", NEVER)
    called = make_training(method, precision=precision)
    assert records == list(called.epochs())
    require_same(recorded.network.state_dict(), called.network.state_dict())


@pytest.mark.parametrize("method", ["standard", "pgd-at", "trades"])
def test_no_further_batch_of_a_training_waits_for_the_host(make_training, gpu, method):
    def waits(images):
        epochs = make_training(method, images).epochs()
        next(epochs)
        before = len(gpu.waits)
        next(epochs)
        return len(gpu.waits) - before

    assert 0 < waits(20) == waits(40)


def test_attacks_are_judged_as_on_the_processor(make_network, threat, digits):
    settings = EvaluationSettings(
        batch_size=10,
        attacks={"clean": "all", "fgsm": 20, "pgd20": 20, "cw30": 20},
        other_balls=[],
        threads=1,
    )
    verdicts = {}
    for device in (CPU, GPU):
        evaluation = Evaluation(make_network(), digits["test"], settings, threat, 0, device)
        list(evaluation.batches())
        verdicts[device] = evaluation.verdicts
    require_same(verdicts[CPU], verdicts[GPU])


def test_analyses_are_made(make_network, threat, digits):
    data = digits["test"]
    student, teacher = make_network(), make_network(seed=1)
    outcomes = UtaeOutcomes(student, teacher, data, [0.0, 0.5], threat, 10, 0, GPU)
    adversary = AdaptiveAdversary(student, data, threat, 10, 0, GPU)
    for analysis in (outcomes, adversary):
        list(analysis.batches())
        assert analysis.figures()
    assert image_quality(data, data, teacher, student, TeacherEmbedding(teacher, GPU), 10, GPU)["n"] == 20
