"""The paper's loop: each round takes a batch of images, reweights the classes and trains the student.

A method is a composition of five pieces: an image source, a label sampler, a synthesis loss, an
adversary and a student loss. This file holds what they share.
"""

import copy
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from ferd.adversaries import Adversary, build_adversary
from ferd.attacks import points_right
from ferd.augmentation import augment
from ferd.config import (
    Augmentation,
    DistillationSettings,
    Method,
    SynthesisWeights,
    ThreatModel,
    fingerprint,
    require_settings,
)
from ferd.cuda_graphs import Recorded
from ferd.datasets import Images, require_known
from ferd.errors import FerdError
from ferd.image_sources import Drawn, ImageSource, ReplayedPool, build_source
from ferd.losses import BatchNormStatistics
from ferd.models.classifier import (
    Classifier,
    diverged,
    fast_layout,
    frozen,
    require_classifier,
    require_sound,
    shapes,
    usable,
)
from ferd.models.folding import Folded, attack_dtype, require_foldable, settled
from ferd.models.generator import SIZE_MULTIPLE
from ferd.origin import hash_of, hash_of_weights, require_same
from ferd.pixels import kind_of, to_float
from ferd.pool import Pool
from ferd.randomness import stream
from ferd.samplers import Sampler, build_sampler
from ferd.schedule import set_cosine_rate
from ferd.student_losses import Batch, StudentLoss, build_student_loss
from ferd.tf32 import tf32_convolutions

LOGGER = logging.getLogger(__name__)
PIECES: dict[str, type] = {  # with a state of their own
    "source": ImageSource,
    "sampler": Sampler,
    "adversary": Adversary,
    "student_loss": StudentLoss,
}
SETTLED = {
    "teacher", "student", "shape", "schedule", "augmentation", "method", "threat", "device",
    "optimiser", "pool", "rng",
}  # fmt: skip
ABOUT_ONE = 1e-4  # how far from 1 float32 proportions may add up


@dataclass(frozen=True)
class RoundRecord:
    """What one round did.

    ``proportions`` are the class shares that were asked for (controls and replayed pools have their own
    labels), ``difficulty`` D after it
    (None for a class never seen), ``agreement`` the share of its images that the teacher gives the
    requested label; ``generator`` holds the loss terms of the kept step (of a control or a replayed pool,
    none), ``student`` the mean losses over the round's steps (in warm-up, none).
    """

    round: int
    learning_rate: float
    agreement: float
    proportions: list[float]
    difficulty: list[float | None]
    generator: dict[str, float]
    student: dict[str, float]


class Distillation:
    """A student and everything that its training depends on; resumable between two rounds.

    ``source``, ``sampler``, ``adversary`` and ``student_loss`` are the pieces that ``method`` names; one of
    your own may be put in place of each before the first round.

    Args:
        teacher: frozen and in eval mode, always.
        student: trained in place, on ``device``, all of its weights; in eval mode between two rounds.
        shape: (channels, H, W) of an image; H = W, a multiple of 4.
        schedule: rounds, steps, rates and weights; ``ferd.paper.SCHEDULE`` is the paper's.
        augmentation: of generated images before their loss, and of pool images in training.
        method: which pieces are put together.
        threat: ε and step size in [0, 1] pixels; its steps are those of the reweighting's attack.
        seed: of all that is drawn; not of the student's first weights, nor of a dropout of its own, which
            draws from torch's global numbers: such runs are not repeated, nor resumed, to the bit.
        pool_folder: where the images of all rounds are kept.
        given: the images of a method that does not make its own: real ones, ``Images`` or as a tuple uint8
            (N, channels, H, W) with labels (N,), or the folder of the pool that is replayed.

    Raises:
        FerdError: a network is no ``Classifier`` or its twin another function, the two are one, or
            differ in classes or channels, the generator makes no images of that shape, the floor of the
            proportions is not below an equal share, ``given`` is not what the method needs or has labels
            that the networks lack, settings are of another kind, or the device cannot be used.
    """

    def __init__(
        self,
        teacher: Classifier,
        student: Classifier,
        shape: tuple[int, int, int],
        schedule: DistillationSettings,
        augmentation: Augmentation,
        method: Method,
        threat: ThreatModel,
        seed: int,
        pool_folder: Path | str,
        device: torch.device | str,
        given: Images | tuple[Tensor, Tensor] | Path | str | None = None,
    ) -> None:
        require_settings(
            (schedule, DistillationSettings),
            (augmentation, Augmentation),
            (method, Method),
            (threat, ThreatModel),
        )
        given = (given.images, given.labels) if isinstance(given, Images) else given
        _require_fitting(teacher, student, shape)
        _require_invertible(teacher, shape, method, schedule.synthesis.weights)
        device, classes = usable(device), teacher.classes
        schedule.require_fitting(classes)
        self.teacher = fast_layout(teacher, device).eval().requires_grad_(False)
        self.student = fast_layout(student, device).eval().requires_grad_(True)
        self.schedule, self.augmentation, self.method = schedule, augmentation, method
        self.threat = threat
        self.shape, self.device = shape, device
        self.rng = stream(seed, "distillation", device=device)
        self._bf16 = settled(schedule.precision, device) == "bf16"
        self._fold(attack_dtype(schedule.precision, device))
        self.source = build_source(
            method,
            schedule,
            augmentation,
            shape,
            device,
            given,
            teacher=self.teacher,
            teacher_twin=self._teacher_twin.network,
            student_twin=self._student_twin.network,
            bf16=self._bf16,
        )
        self.pool = Pool(Path(pool_folder), schedule.rounds * schedule.batch_size, shape, device)
        self.sampler = build_sampler(method, schedule, threat, augmentation, classes, device)
        student_threat = threat.with_steps(schedule.utae_steps)
        if method.adversary != "high-entropy" and not student_threat.reached_by(student_threat.steps):
            LOGGER.warning(
                "the student's attack of %d steps of %g stays within ε = %g; raise utae_steps or step_size",
                student_threat.steps,
                threat.step_size,
                threat.epsilon,
            )
        self.adversary = build_adversary(method, student_threat, classes, device)
        self.student_loss = build_student_loss(method, classes, device)
        self.optimiser = torch.optim.SGD(
            student.parameters(),
            schedule.student.learning_rate,
            momentum=0.9,
            weight_decay=schedule.student.weight_decay,
            fused=device.type == "cuda",
        )
        self.round = 0
        self._at_round_end = True
        self._origin = {
            "seed": str(seed),
            "settings": fingerprint(schedule, augmentation, method, threat),
            "precision": settled(schedule.precision, device),
            "teacher weights": hash_of_weights(self.teacher),
            "given images": self._hash_of_given(given),
        }
        self._complete = True

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse a piece under another name, of another kind or in the middle of a run; and the settled."""
        if "_complete" in self.__dict__ and not hasattr(self, name):
            raise FerdError(f"{name}: a Distillation has none; its pieces are {', '.join(PIECES)}")
        if "_complete" in self.__dict__ and name in SETTLED:
            raise FerdError(f"{name}: is settled when a Distillation is built; build another with it")
        if name in PIECES and not isinstance(value, PIECES[name]):
            given = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
            kind = f"{PIECES[name].__module__}.{PIECES[name].__name__}"
            raise FerdError(f"{name}: is {given}, no object of a class derived from {kind}")
        if isinstance(value, Sampler) and not hasattr(value, "difficulty"):
            raise FerdError(f"{name}: has no difficulty; have its __init__ call Sampler's")
        if name in PIECES and self.__dict__.get("round"):
            raise FerdError(f"{name}: round {self.round} is over; put pieces in place before the first")
        super().__setattr__(name, value)

    @property
    def adversarial_weight(self) -> float:
        """The share of the adversarial loss: the student loss's own, or the schedule's."""
        own = self.student_loss.adversarial_weight
        return self.schedule.student.adversarial_weight if own is None else own

    def rounds(self) -> Iterator[RoundRecord]:
        """Run the remaining rounds, one record each; the state may be saved between two.

        Raises:
            FerdError: the pool's folder has rounds of another run, a round was left half-way, or a network
                was changed since its twins were made.
        """
        self._require_round_end()
        if self.pool.rounds and not self.round:
            raise FerdError(
                f"{self.pool.folder}: holds {self.pool.rounds} rounds of an earlier run; delete it, choose "
                "another pool_folder, or load that run's state"
            )
        self.pool.keep_rounds(self.round)
        self._require_following()
        while self.round < self.schedule.rounds:
            self._at_round_end = False
            record = self._run_round()
            self.round += 1
            self._at_round_end = True
            yield record

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that the remaining rounds depend on, but for the pool, which is on disk.

        Raises:
            FerdError: a round was left half-way.
        """
        self._require_round_end()
        state = {
            "round": self.round,
            "student": self.student.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "rng": self.rng.get_state(),
            "origin": self._origin | self._own_origin(self.round),
            **{name: getattr(self, name).state_dict() for name in PIECES},
        }
        return copy.deepcopy(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken, with the same pieces.

        Raises:
            FerdError: the state is of other pieces, settings, networks or images; nothing of it was taken.
        """
        if missing := {"round", "student", "optimiser", "rng", "origin", *PIECES} - state.keys():
            raise FerdError(f"no state of a distillation: it lacks {', '.join(sorted(missing))}")
        if shapes(state["student"]) != shapes(self.student.state_dict()):
            raise FerdError("the state is of another student; give the network that it was saved with")
        require_same(state["origin"], self._origin | self._own_origin(state["round"]))
        if state["rng"].shape != self.rng.get_state().shape:
            raise FerdError("rng: the state was saved on another kind of device; go on there, or begin anew")
        self.round = state["round"]
        self.student.load_state_dict(state["student"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.student.eval()
        for name in PIECES:
            getattr(self, name).load_state_dict(state[name])
        self.rng.set_state(state["rng"])
        self._at_round_end = True

    def _hash_of_given(self, given: tuple[Tensor, Tensor] | Path | str | None) -> str:
        """Of the images that were given, or of those of the replayed pool; empty where there are none."""
        if isinstance(self.source, ReplayedPool):
            return self.source.pool.hash(self.schedule.rounds)
        return hash_of(*given) if isinstance(given, tuple) else ""

    def _own_origin(self, rounds: int) -> dict[str, str]:
        """What a state of so many rounds belongs to beside what was given: pieces, and the pool.

        A pool that lacks some of these rounds is refused elsewhere (``Pool.keep_rounds``).
        """
        pieces = {name: _described(getattr(self, name)) for name in PIECES}
        return pieces | ({"pool images": self.pool.hash(rounds)} if self.pool.rounds >= rounds else {})

    def _require_round_end(self) -> None:
        if not self._at_round_end:
            raise FerdError(
                f"round {self.round + 1} was interrupted; load the state that was saved before it"
            )

    def _require_following(self) -> None:
        """Refuse networks that became other functions than their twins since these were made."""
        inputs = torch.rand(2, *self.shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        self.student.eval()
        for twin in (self._student_twin, self._attacked_student):
            twin.refresh()
            twin.require_following("student", inputs)
        for twin in (self._teacher_twin, self._attacked_teacher):
            twin.require_following("teacher", inputs)

    def _fold(self, dtype: torch.dtype) -> None:
        """Twins in float32, for the teacher's targets and L_adv's student, and in ``dtype``, to be attacked.

        Margins, and so D, are computed on the attacked twins. With precision ``bf16`` the teacher's targets
        are those of its bfloat16 twin.
        """
        self._teacher_twin, self._student_twin = Folded(self.teacher), Folded(self.student)
        self._attacked_teacher, self._attacked_student = self._teacher_twin, self._student_twin
        if dtype is not torch.float32:
            self._attacked_teacher, self._attacked_student = (
                Folded(self.teacher, dtype),
                Folded(self.student, dtype),
            )
        self._target_teacher = self._attacked_teacher if self._bf16 else self._teacher_twin

    @torch.enable_grad()
    @tf32_convolutions(False)
    def _run_round(self) -> RoundRecord:
        self._student_twin.refresh()
        shares = self._shares()
        images, labels, figures = self._drawn(shares)
        require_known(labels, self.teacher.classes)
        self.pool.append(images, labels)
        inputs = to_float(images)
        with torch.no_grad():
            agreement = (self._teacher_twin.network(inputs).argmax(1) == labels).float().mean()
        self._attacked_student.refresh()
        attacked = self._attacked_teacher.network, self._attacked_student.network
        self.sampler.observe(*attacked, inputs, labels, self.rng)
        rate = set_cosine_rate(
            self.optimiser, self.schedule.student.learning_rate, self.round / self.schedule.rounds
        )
        losses: dict[str, float] = {}
        if self.round >= self.schedule.warmup_rounds:
            losses = self._train_student()
            self.student_loss.end_round()
        return RoundRecord(
            round=self.round + 1,
            learning_rate=rate,
            agreement=agreement.item(),
            proportions=shares.tolist(),
            difficulty=[None if math.isnan(d) else d for d in self.sampler.difficulty.tolist()],
            generator={key: float(value) for key, value in figures.items()},
            student=losses,
        )

    def _shares(self) -> Tensor:
        """The sampler's proportions p (C,)."""
        shares, classes = self.sampler.proportions(), self.teacher.classes
        if not isinstance(shares, Tensor) or shares.shape != (classes,):
            raise FerdError(f"sampler: proportions must be a tensor ({classes},), not {shares}")
        if not (shares.isfinite().all() and shares.min() >= 0 and abs(shares.sum() - 1) < ABOUT_ONE):
            raise FerdError(f"sampler: proportions must be 0 or more and add up to 1, not {shares.tolist()}")
        return shares.to(self.device)

    def _drawn(self, shares: Tensor) -> Drawn:
        """The round's images, labels and loss terms; the pool looks at what kind the first two are."""
        drawn = self.source.draw(shares, self.round, self.rng)
        kinds = (Tensor, Tensor, dict)
        if not isinstance(drawn, tuple) or len(drawn) != len(kinds) or not all(map(isinstance, drawn, kinds)):
            raise FerdError("source: draw() must give (images, labels, loss terms): two tensors and a dict")
        for name, value in drawn[2].items():
            if torch.as_tensor(value).numel() != 1:
                raise FerdError(f"source: its loss term {name!r} must be one number, not {value}")
        images, labels, figures = drawn
        return images.to(self.device), labels.to(self.device), figures

    def _train_student(self) -> dict[str, float]:
        steps = self.schedule.student.steps
        recordable = self.adversary.recordable and self.student_loss.recordable
        train_batch = Recorded(self._train_batch, self.device) if recordable else self._train_batch
        sums = torch.zeros(3, device=self.device)
        for _ in range(steps):
            images, labels = self.pool.sample(self.schedule.batch_size, self.rng)
            inputs = augment(images, self.augmentation, self.rng)
            sums += train_batch(inputs, labels) / steps
        clean, adversarial, unfit = sums.tolist()
        if unfit:
            raise FerdError(
                f"adversary: some of its images in round {self.round + 1} have pixels outside [0, 1], or "
                "that are no number; clamp them"
            )
        if not math.isfinite(clean + adversarial) or diverged(self.student, inputs):
            raise FerdError(
                f"student: the loss is not finite in round {self.round + 1} (clean {clean}, "
                f"adversarial {adversarial}); lower student.learning_rate"
            )
        self.optimiser.zero_grad()  # or the gradients keep a recorded step's memory
        self.student.eval()
        return {"clean_loss": clean, "adversarial_loss": adversarial}

    def _train_batch(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """One step on Eq. 12; -> its clean and adversarial loss, 1 where an attacked image is unfit (3,)."""
        teacher = cache(self._targets)  # the attack and the loss look at the same logits
        adv_inputs, points = self._attack(inputs, labels, teacher)
        self.student.train()
        batch = Batch(inputs, adv_inputs, labels, teacher, self._answers, points)
        losses = self.student_loss.losses(batch)
        if not isinstance(losses, tuple) or [loss.ndim for loss in losses] != [0, 0]:
            raise FerdError("student_loss: losses() must give two means over the batch, (clean, adversarial)")
        clean, adversarial = losses
        if type(self.adversary).observe is not Adversary.observe:  # else nobody asks for the logits
            self.adversary.observe(labels, batch.student_adv_logits.detach())
        share = self.adversarial_weight
        self.optimiser.zero_grad()
        ((1 - share) * clean + share * adversarial).backward()
        self.optimiser.step()
        unfit = ~((adv_inputs >= 0) & (adv_inputs <= 1)).all()
        return torch.stack([clean, adversarial, unfit.to(clean)]).detach()

    @torch.no_grad()
    def _targets(self, inputs: Tensor) -> Tensor:
        """The teacher's logits (B, C)."""
        logits: Tensor = self._target_teacher.network(inputs)
        return logits

    def _answers(self, inputs: Tensor) -> Tensor:
        """The student's logits (B, C)."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            logits: Tensor = self.student(inputs)
        return logits.float()

    def _attack(
        self, inputs: Tensor, labels: Tensor, teacher: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """Adversarial images of the batch, made on a twin of the network that the method attacks.

        And how many points of each attack that twin got right (B,), where the student's loss asks for it.
        """
        twin = self._attacked_teacher
        if self.method.utae.model == "student":
            twin = self._attacked_student
            twin.refresh()
        targets = inputs.new_empty((0, self.teacher.classes))
        if self.adversary.needs_teacher:
            targets = self.student_loss.attack_targets(teacher(inputs), labels)
        counted = (
            points_right(twin.network, labels) if self.student_loss.needs_points_right else nullcontext()
        )
        with counted as points:
            adv_inputs = self.adversary.attack(
                twin.network, inputs.clone(), labels.clone(), targets, self.rng
            )
        if kind_of(adv_inputs) != kind_of(inputs):
            raise FerdError(
                f"adversary: attack() must give {kind_of(inputs)}, like its inputs, not {kind_of(adv_inputs)}"
            )
        return adv_inputs.detach(), points


def _described(piece: object) -> str:
    """Its class, and the settings that it holds as such (pydantic models)."""
    settings = {key: value for key, value in vars(piece).items() if isinstance(value, BaseModel)}
    named = fingerprint(sorted(settings), *(settings[key] for key in sorted(settings)))
    return f"{type(piece).__module__}.{type(piece).__qualname__} {named}"


def _require_fitting(teacher: Classifier, student: Classifier, shape: tuple[int, int, int]) -> None:
    """Refuse what would fail in a later round, or in the middle of one."""
    require_classifier(teacher, "teacher")
    require_classifier(student, "student")
    if student is teacher:
        raise FerdError("the teacher is to be the student, too; give a network of its own to train")
    theirs = {id(weight) for weight in teacher.parameters()}
    if shared := [name for name, weight in student.named_parameters() if id(weight) in theirs]:
        raise FerdError(
            f"the student's {shared[0]} is the teacher's own, which stays frozen; give a copy of it"
        )
    for role, network in (("teacher", teacher), ("student", student)):
        if network.channels != shape[0]:
            raise FerdError(f"the {role} takes {network.channels} channels, not the {shape[0]} of the images")
    if student.classes != teacher.classes:
        raise FerdError(
            f"the student has {student.classes} classes, the teacher {teacher.classes}; give one of as many"
        )
    if shape[1] != shape[2] or shape[1] % SIZE_MULTIPLE:
        raise FerdError(
            f"images of {shape[1]}×{shape[2]}: the generator makes square ones of a multiple of "
            f"{SIZE_MULTIPLE}; crop or pad them"
        )
    for network, role in ((teacher, "teacher"), (student, "student")):
        require_foldable(network, role, shape)
        require_sound(network, role, shape)


def _require_invertible(
    teacher: Classifier, shape: tuple[int, int, int], method: Method, weights: SynthesisWeights
) -> None:
    """Refuse a teacher that images cannot be fitted to, where a method does that.

    That is one without statistics for L_bn, or with features that L_uni's bottleneck cannot mask.
    """
    if method.images != "generator" or method.synthesis not in ("plain", "fae"):
        return
    if weights.bn:
        BatchNormStatistics(teacher)
    if method.synthesis == "plain":
        return
    layer = method.nonrobust.layer
    require_sound(teacher, "teacher", shape, layer)
    with torch.no_grad(), frozen(teacher):
        features = teacher.features(torch.zeros(1, *shape, device=next(teacher.parameters()).device), layer)
    if features.ndim != 4:
        raise FerdError(
            f"teacher: its features at layer {layer} are {tuple(features.shape)}, where L_uni's bottleneck "
            "masks the channels of maps (B, K, H, W); give them such a shape, or take synthesis plain"
        )
