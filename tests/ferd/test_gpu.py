"""The method on a GPU: recorded steps, precisions, resuming, and that no step waits for the host."""

import warnings

import pytest
import torch

from benchmarks.equality import checks_of_steps, checks_on_real_images, digits_teacher, real_images
from benchmarks.steps import Bench, Size
from ferd.adversarial_training import AdversarialTraining
from ferd.config import Augmentation, Data, EvaluationSettings, Training
from ferd.cuda_graphs import Recorded
from ferd.dataset_readers import load_splits
from ferd.distillation import Distillation
from ferd.evaluation import Evaluation
from ferd.losses import channel_moments
from tests.ferd.test_distillation import FERD, SCHEDULE

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda")
STEPS = {"rounds": 2, "warmup_rounds": 0, "precision": "bf16"}
NEVER = 10**9


@pytest.fixture(autouse=True)
def plain_float32():
    """As stages have it, and the same algorithms in each run."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


@pytest.fixture
def make_run(make_network, threat, tmp_path):
    def make(folder, method=FERD, steps=6, **changes):
        schedule = SCHEDULE.model_copy(
            update={
                **STEPS,
                **changes,
                "synthesis": SCHEDULE.synthesis.model_copy(update={"steps": steps}),
                "student": SCHEDULE.student.model_copy(update={"steps": steps, "learning_rate": 0.01}),
            }
        )
        return Distillation(
            make_network(),
            make_network(seed=1),
            (1, 8, 8),
            schedule,
            Augmentation(padding=1, flip=False),
            method,
            threat,
            0,
            tmp_path / folder,
            GPU,
        )

    return make


def weights(network):
    return torch.cat(
        [value.flatten() for value in network.state_dict().values() if value.is_floating_point()]
    )


def cosine(one, other, start):
    return torch.cosine_similarity(one - start, other - start, 0).item()


METHODS = {
    "ferd": {},
    "adaptive": {"adversary": "adaptive-utae"},
    "absld": {"student_loss": "absld"},
    "fair-rslad": {"student_loss": "fair-rslad"},
    "dfhl-rs": {
        "student_loss": "hard-label",
        "adversary": "high-entropy",
        "synthesis": "dfhl-rs",
        "sampler": "uniform",
    },
    "second-last-block": {"nonrobust": FERD.nonrobust.model_copy(update={"layer": -2})},
}


@pytest.mark.parametrize(
    ("name", "precision"),
    [(name, "float32") for name in METHODS]
    + [("ferd", precision) for precision in ("bf16-attacks", "bf16", "auto")],
)
def test_recorded_rounds_are_as_rounds_that_are_called(make_run, monkeypatch, name, precision):
    tolerance = {"float32": 0.95}.get(precision, 0.6)  # signs of gradients turn with the rounding
    method = FERD.model_copy(update=METHODS[name])
    recorded = make_run("recorded", method, precision=precision)
    start = weights(recorded.student)
    records = list(recorded.rounds())
    monkeypatch.setattr(Recorded, "WARM_UP", NEVER)
    called = make_run("called", method, precision=precision)
    expected = list(called.rounds())
    assert torch.equal(recorded.pool.labels[:16], called.pool.labels[:16])  # before rounding can tell
    assert recorded.rng.get_state().equal(called.rng.get_state())
    difference = (recorded.pool.images[:16].int() - called.pool.images[:16].int()).abs().float().mean()
    assert difference < 8  # of 255 levels
    assert cosine(weights(recorded.student), weights(called.student), start) > tolerance
    for part in ("student_loss", "adversary", "sampler"):  # what they learn goes on while steps are replayed
        state, expected_state = recorded.state_dict()[part], called.state_dict()[part]
        for key, value in expected_state.items():
            if key == "outcomes":  # counts: a prediction that turns by rounding moves two of them by 1
                assert (state[key] - value).abs().sum() <= 0.1 * value.sum() + 2
            else:
                torch.testing.assert_close(state[key], value, rtol=0.1, atol=0.1, equal_nan=True)
    assert records[-1].student["clean_loss"] == pytest.approx(expected[-1].student["clean_loss"], rel=0.1)


def test_a_resumed_distillation_goes_on_as_the_whole(make_run):
    whole, stopped = make_run("whole", precision="float32"), make_run("half", precision="float32")
    start = weights(whole.student)
    list(whole.rounds())
    next(stopped.rounds())
    rest = make_run("half", precision="float32")
    rest.load_state_dict(stopped.state_dict())
    list(rest.rounds())
    assert rest.rng.get_state().equal(whole.rng.get_state())
    assert cosine(weights(rest.student), weights(whole.student), start) > 0.95


def test_no_step_waits_for_the_host(make_run):
    def waits(steps):
        run = make_run(f"pool-{steps}", steps=steps)
        rounds = run.rounds()
        next(rounds)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            next(rounds)
            torch.cuda.set_sync_debug_mode("default")
        return len([warning for warning in caught if "synchronizing" in str(warning.message)])

    few, many = waits(10), waits(40)
    assert few > 0  # the round's own figures are read
    assert many - few < 15  # of 30 more steps of each kind


def test_channel_moments_and_their_gradient():
    rng = torch.Generator(GPU).manual_seed(0)
    inputs = 3 + 2 * torch.randn(32, 5, 8, 8, generator=rng, device=GPU)
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    weights = torch.randn(2, 5, generator=rng, device=GPU)

    def moments_and_gradient(inputs):
        inputs = inputs.detach().requires_grad_()
        mean, var = channel_moments(inputs)
        (weights.to(mean) * torch.stack([mean, var])).sum().backward()
        return torch.stack([mean, var]).detach().double().cpu(), inputs.grad.double().cpu()

    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.02)):
        weights, rounded = weights.to(GPU), inputs.to(dtype)
        moments, gradient = moments_and_gradient(rounded)
        weights = weights.cpu()
        expected_moments, expected_gradient = moments_and_gradient(rounded.cpu().double())
        assert torch.allclose(moments, expected_moments, rtol=1e-5)
        assert (gradient - expected_gradient).norm() < tolerance * expected_gradient.norm()


@pytest.mark.parametrize("method", ["standard", "pgd-at", "trades"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_recorded_training_is_as_one_that_is_called(
    make_network, threat, digits, monkeypatch, method, precision
):
    settings = Training(
        method=method,
        beta=2.0,
        attack_steps=2,
        attack_step_size=0.05,
        epochs=1,
        batch_size=64,
        learning_rate=0.01,
        weight_decay=5e-4,
        weight_average=0.9,
        precision=precision,
    )

    def trained():
        training = AdversarialTraining(
            make_network(), digits["train"], settings, threat, Augmentation(padding=1, flip=False), 0, GPU
        )
        start = weights(training.network)
        list(training.epochs())
        return weights(training.network), start

    recorded, start = trained()
    monkeypatch.setattr(Recorded, "WARM_UP", NEVER)
    called, _ = trained()
    assert cosine(recorded, called, start) > 0.98


def test_the_real_steps_compute_what_the_references_compute(tmp_path):
    size = Size("cifar10", "resnet8-w16", "resnet8-w8", 8)
    checks = list(checks_of_steps(Bench(size, "float32", tmp_path, GPU)))
    assert [check for check in checks if not check.passed] == []


def test_attacks_in_bfloat16_are_as_strong(monkeypatch):
    monkeypatch.delenv("FERD_DATA", raising=False)
    (digits_and_network,) = real_images(GPU)
    checks = list(checks_on_real_images(digits_and_network))
    assert [check for check in checks if not check.passed] == []


def test_verdicts_are_those_of_the_processor(threat):
    data = load_splits(
        Data(dataset="digits", train_per_class=100, validation_per_class=0, test_per_class=20), None
    )
    network = digits_teacher(data["train"], torch.device("cpu")).requires_grad_(False)
    settings = EvaluationSettings(
        batch_size=50, attacks={"clean": "all", "fgsm": "all"}, other_balls=[], threads=1
    )
    verdicts = {}
    for device in ("cpu", "cuda"):
        evaluator = Evaluation(network, data["test"], settings, threat, 0, torch.device(device))
        list(evaluator.batches())
        verdicts[device] = evaluator.verdicts
    for attack, found in verdicts["cuda"].items():
        assert (found == verdicts["cpu"][attack]).float().mean() >= 0.98
    assert torch.equal(verdicts["cuda"]["clean"], verdicts["cpu"]["clean"])
