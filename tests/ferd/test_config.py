import copy
import math

import pytest
from dvc_data.hashfile.meta import Meta
from pydantic import ValidationError

from ferd.config import Benchmark, ImageFolder, Method, Settings, ThreatModel, fingerprint, parse
from ferd.errors import FerdError

METHOD = {
    "images": "generator",
    "sampler": "margin",
    "synthesis": "fae",
    "nonrobust": {"layer": -1, "threshold_over": "sample"},
    "adversary": "utae",
    "utae": {"gamma": 0.5, "model": "student"},
    "student_loss": "ikl",
}
TRAINING = {
    "method": "trades",
    "beta": 6.0,
    "attack_steps": 7,
    "attack_step_size": 0.025,
    "epochs": 50,
    "batch_size": 128,
    "learning_rate": 0.2,
    "weight_decay": 5e-4,
    "weight_average": 0.0,
    "precision": "float32",
}
OWN = {"folder": "mine", "classes": ["a", "b"], "channels": 3, "image_size": 32}
BENCHMARK = {
    "data": {
        "dataset": "digits",
        "train_per_class": 100,
        "validation_per_class": 20,
        "test_per_class": 0,
    },
    "threat_model": {"norm": "linf", "epsilon": 0.1, "step_size": 0.025, "steps": 20},
    "augmentation": {"padding": 1, "flip": False},
    "students": ["resnet8-w8"],
    "teacher": {
        "network": "resnet8-w16",
        "weights": None,
        "training": TRAINING,
        "measure": {"images": 200, "least_robust": 0.2, "accept_not_robust": False},
        "threads": 1,
    },
    "distillation": {
        "precision": "float32",
        "rounds": 12,
        "warmup_rounds": 3,
        "batch_size": 64,
        "proportion_floor": 0.05,
        "utae_steps": 10,
        "synthesis": {
            "steps": 40,
            "latent_dim": 100,
            "generator_learning_rate": 2e-3,
            "latent_learning_rate": 0.015,
            "weights": {"adv": 0.1, "bn": 1.0, "oh": 5.0, "uni": 1.0},
            "bottleneck": {
                "threshold": "mean",
                "steps": 50,
                "learning_rate": 0.1,
                "beta": 0.3,
            },
        },
        "student": {
            "steps": 80,
            "learning_rate": 0.2,
            "weight_decay": 5e-4,
            "adversarial_weight": 0.5,
        },
        "threads": 1,
    },
    "evaluation": {
        "batch_size": 100,
        "attacks": {"clean": "all", "autoattack": 100},
        "other_balls": [{"epsilon": 0.05, "step_size": 0.01, "attacks": {"pgd20": "all"}}],
        "threads": 1,
    },
    "analysis": {
        "images_per_class": 10,
        "targeted_steps": 20,
        "gammas": [0.0, 0.5],
        "pool_images": 100,
        "judge": {
            "network": "resnet8-w16",
            "weights": None,
            "training": TRAINING,
            "measure": {"images": 200, "least_robust": 0.0, "accept_not_robust": True},
            "threads": 1,
        },
        "inception": None,
        "batch_size": 100,
        "threads": 1,
    },
}
ABSENT = object()


def changed(block, path, value):
    block = copy.deepcopy(block)
    *parents, last = path.split(".")
    inner = block
    for key in parents:
        inner = inner[key]
    if value is ABSENT:
        del inner[last]
    else:
        inner[last] = value
    return block


def refusal(kind, block, where):
    with pytest.raises(FerdError) as raised:
        parse(kind, block, where)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_whole_blocks_are_taken_as_they_are():
    assert parse(Method, METHOD, "m").model_dump() == METHOD
    assert parse(Benchmark, BENCHMARK, "b").model_dump() == BENCHMARK


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("fea", True),
        ("utae.gama", 0.5),
        ("synthesis", ABSENT),
        ("utae.gamma", ABSENT),
        ("utae.gamma", -0.1),
        ("utae.gamma", math.nan),
        ("utae.gamma", math.inf),
        ("utae.gamma", "0.5"),
        ("utae.gamma", "many\nlines"),
        ("sampler", 1),
        ("sampler", "yes"),
        ("nonrobust.layer", 0),
        ("images", "photos"),
        ("utae", None),
    ],
)
def test_a_fault_in_a_method_names_its_key(path, value):
    text = refusal(Method, changed(METHOD, path, value), "methods.ferd")
    assert text.startswith(f"methods.ferd.{path}: ")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("threat_model.epsilon", 1.01),
        ("threat_model.epsilon", 0.0),
        ("threat_model.epsilon", math.nan),
        ("threat_model.norm", "l2"),
        ("threat_model.steps", 0),
        ("threat_model.steps", 2.5),
        ("augmentation.padding", -1),
        ("data.train_per_class", True),
        ("data.dataset", 3),
        ("data.dataset", OWN | {"classes": ["a", "b", "a"]}),
        ("teacher.training.batch_size", 1),
        ("teacher.training.weight_decay", "5e-4"),
        ("distillation.synthesis.weights.adv", -1.0),
        ("distillation.precision", "float16"),
        ("distillation.synthesis.bottleneck.delta", 1e-10),
        ("distillation.student.adversarial_weight", 1.5),
        ("distillation.warmup_rounds", ABSENT),
        ("evaluation.attacks.pgd40", "all"),
        ("evaluation.attacks.autoattack", 0),
        ("evaluation.attacks.autoattack", "some"),
    ],
)
def test_a_fault_in_a_benchmark_names_its_key(path, value):
    assert f"b.digits.{path}" in refusal(Benchmark, changed(BENCHMARK, path, value), "b.digits")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_size": 30}, "b.digits.data.dataset.image_size: Input should be a multiple of 4"),
        ({"channels": 2}, "b.digits.data.dataset.channels: Input should be 1 or 3"),
        ({"classes": ["a"]}, "b.digits.data.dataset.classes: "),
        ({"classes": ["a", "a"]}, "b.digits.data.dataset: class 'a' stands there twice; remove one of them"),
        ({"path": "x"}, "b.digits.data.dataset.path: unknown key"),
    ],
)
def test_a_fault_in_the_description_of_ones_own_folder_names_its_key(change, said):
    assert refusal(Benchmark, changed(BENCHMARK, "data.dataset", OWN | change), "b.digits").startswith(said)


def test_no_setting_has_a_name_that_dvc_leaves_out_of_a_stages_hash():
    """Its run cache would take the outputs of another value for those of this one."""

    def names(kind):
        return {*kind.model_fields, *(name for one in kind.__subclasses__() for name in names(one))}

    assert not names(Settings) & {Meta.PARAM_SIZE, Meta.PARAM_NFILES}


def test_a_radius_in_whole_pixels_is_told_the_unit():
    said = refusal(Benchmark, changed(BENCHMARK, "threat_model.epsilon", 8), "b")
    assert said.endswith("less than or equal to 1 (found 8; in [0, 1] pixels 8/255 is 0.03137)")


def test_data_have_the_name_of_the_dataset_or_of_the_folder():
    own = parse(Benchmark, changed(BENCHMARK, "data.dataset", OWN), "b")
    assert own.data.name == "folder mine" and own.data.dataset == ImageFolder(**OWN)
    assert parse(Benchmark, BENCHMARK, "b").data.name == "digits"


def test_a_schedule_that_never_trains_the_student_is_refused():
    text = refusal(Benchmark, changed(BENCHMARK, "distillation.warmup_rounds", 12), "b.digits")
    assert "b.digits.distillation" in text and "12" in text


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        parse(Method, METHOD, "m").synthesis = "plain"


def test_with_steps_changes_nothing_else():
    threat = parse(ThreatModel, BENCHMARK["threat_model"], "t")
    assert threat.with_steps(3).model_dump() == {**BENCHMARK["threat_model"], "steps": 3}
    assert threat.steps == 20


def test_the_fingerprint_does_not_depend_on_the_order_of_keys():
    reordered = dict(reversed(METHOD.items()))
    reordered["utae"] = dict(reversed(METHOD["utae"].items()))
    assert fingerprint(METHOD, 1) == fingerprint(reordered, 1)
    assert fingerprint(parse(Method, METHOD, "m"), 1) == fingerprint(METHOD, 1)


def test_the_fingerprint_depends_on_every_value_and_on_the_order_of_parts():
    prints = [
        fingerprint(METHOD, 1),
        fingerprint(METHOD, 2),
        fingerprint(1, METHOD),
        fingerprint(changed(METHOD, "utae.gamma", 0.4), 1),
    ]
    assert len(set(prints)) == 4


def test_a_misspelt_key_is_named_before_the_one_that_is_then_missing():
    block = {**METHOD, "utae": {"gama": 0.5, "model": "student"}}
    with pytest.raises(FerdError, match=r"m\.utae\.gama: unknown key; .* \(missing here: gamma\)"):
        parse(Method, block, "m")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("teacher.weights", ": source, location, sha256, normalisation"),
        ("threat_model", ": norm, epsilon, step_size, steps"),
        ("evaluation.attacks", ""),
    ],
)
def test_a_value_where_a_block_belongs_says_which_keys_do(path, expected):
    text = refusal(Benchmark, changed(BENCHMARK, path, "zoo"), "b.digits")
    assert text == f"b.digits.{path}: must be a block of keys{expected} (found 'zoo')"


def test_a_benchmark_without_students_is_refused():
    assert "b.digits.students" in refusal(Benchmark, changed(BENCHMARK, "students", []), "b.digits")


def test_a_copy_is_validated_like_any_block():
    threat = ThreatModel(norm="linf", epsilon=0.1, step_size=0.025, steps=5)
    assert threat.model_copy(update={"steps": 7}).steps == 7 and threat.model_copy() == threat
    for update, said in (
        ({"step": 7}, "ThreatModel.step: unknown key"),
        ({"steps": "ten"}, "ThreatModel.steps"),
    ):
        with pytest.raises(FerdError, match=f"^{said}"):
            threat.model_copy(update=update)
