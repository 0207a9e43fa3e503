"""That the real steps compute what the plain references compute, and attack as strongly."""

import copy
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import reference
from benchmarks.steps import LAST_BLOCK, STEPS, Bench
from ferd.adversarial_training import AdversarialTraining
from ferd.assets import cifar10_teacher
from ferd.attacks import cross_entropy, pgd, random_start
from ferd.bottleneck import robust_channels
from ferd.config import Augmentation, Data, ThreatModel, Training
from ferd.cuda_graphs import Recorded
from ferd.dataset_readers import load_splits
from ferd.datasets import Images
from ferd.models.classifier import Classifier, fast_layout
from ferd.models.folding import Folded
from ferd.models.generator import Generator
from ferd.models.registry import build
from ferd.pixels import to_float
from ferd.synthesis import ferd_loss

STILL = 1e-30  # a step of an attack that moves no pixel
LEAST_COSINE = 0.9999  # of the generator's gradients, and of a step's changes to the weights
MOST_SIGNS = 0.002  # of an attack's step that differ: where the gradient is nearly 0, rounding decides
MOST_POINTS = 0.5  # of accuracy under attack
REAL_IMAGES = 500
CONTRAST = 3.0


@dataclass(frozen=True)
class Check:
    """What was compared, what was found, and whether it is as it must be."""

    what: str
    found: str
    passed: bool


@dataclass(frozen=True)
class RealImages:
    """A robust network, and images (N, channels, H, W) and labels (N,) that it was not trained on."""

    name: str
    network: Classifier
    inputs: Tensor
    labels: Tensor
    threat: ThreatModel


def checks_of_steps(bench: Bench) -> Iterator[Check]:
    """Generator gradients, bottleneck masks, attacks, and what student and teacher steps do to the weights.

    Of the steps that are measured at this size. Attacks and updates apart: where a sign falls the other way
    by rounding, so does all that comes after it.
    """
    where, steps = f"{bench.size.name}, float32", bench.size.steps or STEPS
    if "generator" in steps:
        ours, theirs = generator_gradients(bench)
        yield _cosine(f"gradient of the generator, {where}", ours, theirs, LEAST_COSINE)
    if "bottleneck" in steps:
        yield _masks(bench, where)
    for name, attacked in (("student", _attacked_for_student), ("teacher", _attacked_for_teacher)):
        if name in steps:
            what = f"first attack step of a {name} step, {where}"
            yield _signs(what, *attacked(_with_one_attack_step(bench)))
    for name, updates in (("student", _student_updates), ("teacher", _teacher_updates)):
        if name in steps:
            what = f"what a {name} step changes, {where}, its attack standing still"
            yield _cosine(what, *updates(_with_one_attack_step(bench, STILL)), LEAST_COSINE)


def checks_on_real_images(real: RealImages) -> Iterator[Check]:
    """Verdicts of the folded network, and the strength of PGD-20 on it, in float32 and bfloat16."""
    plain = reference.plain(real.network)
    rng = torch.Generator(real.inputs.device).manual_seed(0)
    start = reference.random_start(real.inputs, real.threat.epsilon, rng)
    adv_inputs = reference.attack_cross_entropy(plain, real.inputs, real.labels, real.threat, start)
    expected = _correct(plain, adv_inputs, real.labels)
    folded = _correct(Folded(real.network).network, adv_inputs, real.labels)
    different = int((folded != expected).sum())
    yield Check(
        f"verdicts of folded and unfolded network on the same adversarial images, {real.name}",
        f"{different} of {len(expected)} differ",
        different == 0,
    )
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        twin = Folded(real.network, dtype).network
        start = random_start(real.inputs, real.threat.epsilon, rng.manual_seed(0))
        found = _correct(
            plain, pgd(twin, real.inputs, cross_entropy(real.labels), real.threat, start), real.labels
        )
        robust, reference_robust = (100 * verdicts.double().mean().item() for verdicts in (found, expected))
        yield Check(
            f"PGD-20 on the {name} twin, judged in float32 on the unfolded network, {real.name}",
            f"{robust:.1f} % robust, by the reference {reference_robust:.1f} %",
            abs(robust - reference_robust) <= MOST_POINTS + 1e-9,
        )


def real_images(device: torch.device) -> Iterator[RealImages]:
    """Digits, their teacher trained for seconds; below ``FERD_DATA`` CIFAR-10 with the package's teacher."""
    data = Data(dataset="digits", train_per_class=100, validation_per_class=0, test_per_class=0)
    splits = load_splits(data, None)
    yield _taken(
        "digits",
        digits_teacher(splits["train"], device),
        splits["test"],
        ThreatModel(norm="linf", epsilon=0.1, step_size=0.025, steps=20),
        device,
    )
    if folder := os.environ.get("FERD_DATA"):
        data = Data(dataset="cifar10", train_per_class=1, validation_per_class=0, test_per_class=50)
        yield _taken(
            "CIFAR-10",
            cifar10_teacher(),
            load_splits(data, Path(folder))["test"],
            ThreatModel(norm="linf", epsilon=8 / 255, step_size=2 / 255, steps=20),
            device,
        )


def _taken(
    name: str, network: Classifier, images: Images, threat: ThreatModel, device: torch.device
) -> RealImages:
    inputs, labels = to_float(images.images[:REAL_IMAGES]).to(device), images.labels[:REAL_IMAGES].to(device)
    return RealImages(f"{len(labels)} images of {name}", network.to(device), inputs, labels, threat)


def digits_teacher(train: Images, device: torch.device) -> Classifier:
    """A ResNet-8 after three epochs of PGD-AT: right on most digits, robust on some."""
    settings = Training(
        method="pgd-at",
        beta=0.0,
        attack_steps=1,
        attack_step_size=0.1,
        epochs=3,
        batch_size=64,
        learning_rate=0.2,
        weight_decay=5e-4,
        weight_average=0.0,
        precision="float32",
    )
    network = build("resnet8-w8", classes=10, channels=1)
    threat = ThreatModel(norm="linf", epsilon=0.1, step_size=0.1, steps=1)
    crops = Augmentation(padding=1, flip=False)
    training = AdversarialTraining(network, train, settings, threat, crops, 0, device)
    list(training.epochs())
    return training.network.eval()


def _correct(network: Classifier, inputs: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        predicted: Tensor = network(inputs).argmax(1)
    return predicted == labels


def generator_gradients(bench: Bench) -> tuple[Tensor, Tensor]:
    """d L / d weights of one generator step, ours and the reference's."""
    settings, crops = bench.settings.distillation.synthesis, bench.settings.augmentation
    latents = torch.randn(bench.size.batch, settings.latent_dim, generator=torch.Generator().manual_seed(0))
    latents = latents.to(bench.device)

    def gradient(loss: Callable[[Tensor], Tensor], generator: Generator) -> Tensor:
        loss(generator.train()(latents)).backward()
        return torch.cat(
            [weight.grad.flatten() for weight in generator.parameters() if weight.grad is not None]
        )

    def new() -> Generator:
        generator = Generator(settings.latent_dim, bench.shape[0], bench.shape[1]).to(bench.device)
        generator.reinitialise(bench.rng())  # before any change of layout, in whose order numbers are drawn
        with torch.no_grad():  # images of some contrast, so that some channels are robust and others not
            for layer in generator.convolutions:
                if isinstance(layer, nn.Conv2d):
                    layer.weight.mul_(CONTRAST)
        return generator

    theirs = [reference.plain(bench.network(name)) for name in (bench.size.teacher, bench.size.student)]
    rng = bench.rng()
    expected = gradient(
        lambda images: reference.generator_loss(
            theirs[0], theirs[1], reference.augment(images, crops, rng), bench.labels, settings, rng
        ),
        new(),
    )
    teacher = fast_layout(bench.network(bench.size.teacher), bench.device)
    student = Folded(bench.network(bench.size.student)).network
    rng = bench.rng()
    with ferd_loss(teacher, student, bench.labels, LAST_BLOCK, settings, rng) as terms:
        found = gradient(
            lambda images: terms(reference.augment(images, crops, rng))["loss"],
            fast_layout(new(), bench.device),
        )
    return found, expected


def _masks(bench: Bench, where: str) -> Check:
    settings = bench.settings.distillation.synthesis.bottleneck
    network = bench.network(bench.size.teacher)
    with torch.no_grad():
        features = network.features(bench.inputs)
    expected = reference.robust_channels(
        reference.plain(network), features, bench.labels, settings, bench.rng()
    )
    teacher = fast_layout(network, bench.device).requires_grad_(False)
    found = robust_channels(teacher, features, bench.labels, LAST_BLOCK, settings, bench.rng())
    different = int((found != expected).sum())
    share = 100 * expected.double().mean().item()
    return Check(
        f"masks of the bottleneck, {where}",
        f"{different} of {expected.numel()} channels differ, {share:.0f} % are robust",
        different == 0,
    )


def _with_one_attack_step(bench: Bench, step_size: float | None = None) -> Bench:
    """The same bench with attacks of one step; of one that is lost in rounding, they end where they start."""
    short, settings = copy.copy(bench), bench.settings
    assert settings.teacher.training is not None
    size = {"step_size": step_size} if step_size else {}
    attack = {"attack_steps": 1} | ({"attack_step_size": step_size} if step_size else {})
    training = settings.teacher.training.model_copy(update=attack)
    short.settings = settings.model_copy(
        update={
            "distillation": settings.distillation.model_copy(update={"utae_steps": 1}),
            "teacher": settings.teacher.model_copy(update={"training": training}),
            "threat_model": settings.threat_model.model_copy(update=size),
        }
    )
    return short


def _attacked_for_student(bench: Bench) -> tuple[Tensor, Tensor]:
    """Our adversarial images and the reference's."""
    ours, theirs = bench.distillation(), bench.reference_student()
    ours.rng.set_state(bench.rng().get_state())
    with torch.no_grad():
        logits = theirs.teacher(bench.inputs)
    found, _ = ours._attack(bench.inputs, bench.labels, lambda _: logits)
    return found, theirs._attack(bench.inputs, logits.softmax(1), bench.rng())


def _attacked_for_teacher(bench: Bench) -> tuple[Tensor, Tensor]:
    """Our adversarial images and the reference's, of a teacher's step."""
    ours, (theirs, _) = bench.training(), bench.reference_training()
    ours.rng.set_state(bench.rng().get_state())
    found = ours._attacked(bench.inputs, bench.labels)
    start = reference.random_start(bench.inputs, ours.threat.epsilon, bench.rng())
    return found, reference.attack_cross_entropy(theirs, bench.inputs, bench.labels, ours.threat, start)


def _student_updates(bench: Bench) -> tuple[Tensor, Tensor]:
    """What our step and the reference's change of the student."""
    before = _weights(bench.network(bench.size.student).state_dict())
    ours, theirs = bench.distillation(), bench.reference_student()
    ours.rng.set_state(bench.rng().get_state())
    ours._train_batch(bench.inputs, bench.labels)
    theirs.step(bench.inputs, bench.labels, bench.rng())
    return _weights(ours.student.state_dict()) - before, _weights(theirs.student.state_dict()) - before


def _teacher_updates(bench: Bench) -> tuple[Tensor, Tensor]:
    """What our step and the reference's change of the teacher."""
    before = _weights(bench.network(bench.size.teacher).state_dict())
    ours, (theirs, step) = bench.training(), bench.reference_training()
    ours.rng.set_state(bench.rng().get_state())
    ours._train_batch(bench.inputs, bench.labels, Recorded(ours._attacked, bench.device))
    step()
    return _weights(ours.network.state_dict()) - before, _weights(theirs.state_dict()) - before


def _weights(state: Mapping[str, Tensor]) -> Tensor:
    """All numbers of a network in one row, step counters aside."""
    return torch.cat([value.flatten() for value in state.values() if value.is_floating_point()])


def _signs(what: str, ours: Tensor, theirs: Tensor) -> Check:
    """A pixel whose sign is another lies two steps apart; one whose sign is the same, a rounding."""
    share = (ours - theirs).abs().gt(1e-4).double().mean().item()
    return Check(what, f"{share:.3%} of pixels differ, at most {MOST_SIGNS:.1%}", share <= MOST_SIGNS)


def _cosine(what: str, ours: Tensor, theirs: Tensor, least: float) -> Check:
    cosine = torch.cosine_similarity(ours.double(), theirs.double(), 0).item()
    return Check(what, f"cosine {cosine:.6f}, at least {least:.4g}", cosine >= least)
