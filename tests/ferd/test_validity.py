import pytest
import torch
from torch import nn

from ferd.errors import FerdError
from ferd.models.classifier import Classifier
from ferd.validity import Checks, ZeroGradients, compare, inspect

SOUND = ZeroGradients(images=16, cross_entropy=0.0, margin=0.0)


class Altered(Classifier):
    """A linear network over the pixels, its logits altered by a function."""

    def __init__(self, alter):
        super().__init__(10, 1)
        self.linear = nn.Linear(64, 10)
        nn.init.normal_(self.linear.weight, generator=torch.Generator().manual_seed(3))
        self.alter = alter

    def stem(self, inputs):
        return inputs.flatten(1)[:, :, None, None]

    def blocks(self):
        return [nn.Identity()]

    def forward(self, inputs):
        return self.alter(super().forward(inputs))


def verdicts(right, wrong):
    return torch.tensor([True] * right + [False] * wrong)


def sentences(weaker, stronger, *correct, classes=10):
    return Checks(classes, SOUND, (compare(weaker, stronger, *correct),)).warnings()


def test_nothing_is_said_of_a_sound_network(teacher, images, labels, untouched):
    before = torch.get_rng_state()
    with untouched(teacher):
        found = inspect(teacher, images, labels)
    assert found == SOUND
    assert found.warnings() == []
    assert torch.equal(torch.get_rng_state(), before)


def test_a_randomised_network_is_refused_in_one_line(images, labels):
    rng = torch.Generator().manual_seed(0)
    network = Altered(lambda logits: logits + 0.1 * torch.randn(logits.shape, generator=rng))
    with pytest.raises(FerdError, match=r"^the network is random: two passes .* differ by 0\.\d+; .*[^\n]$"):
        inspect(network, images, labels)


def test_rounding_is_not_randomness(images, labels):
    signs = iter([1.0, -1.0, 1.0, 1.0])
    inspect(Altered(lambda logits: logits * (1 + 1e-6 * next(signs))), images, labels)


def test_probabilities_where_logits_belong_are_refused_in_one_line(images, labels):
    with pytest.raises(FerdError, match=r"^the network gives probabilities where logits belong.*[^\n]$"):
        inspect(Altered(lambda logits: logits.softmax(1)), images, labels)


@pytest.mark.parametrize(
    "alter",
    [
        torch.relu,  # >= 0, but no sum of 1
        lambda logits: logits - logits.mean(1, keepdim=True) + 0.1,  # a sum of 1, but not >= 0
    ],
)
def test_logits_that_are_half_like_probabilities_are_logits(images, labels, alter):
    inspect(Altered(alter), images, labels)


def test_logits_that_are_not_finite_are_refused(images, labels):
    with pytest.raises(FerdError, match="not all finite"):
        inspect(Altered(lambda logits: logits.log_softmax(1) * torch.nan), images, labels)


def test_a_rounded_network_has_no_gradient_anywhere(images, labels):
    found = inspect(Altered(torch.round), images, labels)
    assert found == ZeroGradients(16, cross_entropy=1.0, margin=1.0)
    assert found.warnings() == [
        "gradient masking: the gradient of the cross-entropy is exactly 0, or no number, on 100.0 % "
        "of 16 images: attacks that follow it find nothing there",
        "gradient masking: the gradient of the margin loss is exactly 0, or no number, on 100.0 % "
        "of 16 images: attacks that follow it find nothing there",
    ]


def test_a_gradient_that_is_no_number_is_none(images, labels):
    """Its sign is 0: PGD would stay where it is, and every image would count as robust."""

    def finite_with_a_slope_that_is_not(logits):
        return logits + 0 * (logits - logits.detach()).sqrt()

    network = Altered(finite_with_a_slope_that_is_not)
    assert network(images).isfinite().all()
    assert inspect(network, images, labels) == ZeroGradients(16, cross_entropy=1.0, margin=1.0)


def test_a_gradient_in_one_pixel_is_a_gradient(images, labels):
    network = Altered(lambda logits: logits)
    network.linear.weight.data[:, 1:] = 0.0
    assert inspect(network, images, labels) == SOUND


def test_a_saturated_network_has_a_gradient_of_the_margin_alone(images):
    network = Altered(lambda logits: 1e4 * logits)
    labels = network(images).argmax(1)  # softmax is 1 there in float32, to the last bit
    labels[:4] = (labels[:4] + 1) % 10  # but the cross-entropy of a wrong label has a gradient
    assert inspect(network, images, labels) == ZeroGradients(16, cross_entropy=0.75, margin=0.0)


@pytest.mark.parametrize(
    ("weaker", "stronger", "names"),
    [
        ("fgsm", "pgd20", ("FGSM", "PGD-20")),
        ("pgd20", "autoattack", ("PGD-20", "AutoAttack")),
        ("cw30", "autoattack", ("CW-30", "AutoAttack")),
    ],
)
def test_a_stronger_attack_that_leaves_more_correct_was_not_run_well(weaker, stronger, names):
    assert sentences(weaker, stronger, verdicts(50, 50), verdicts(60, 40)) == [
        f"{names[1]} was not run well: it leaves 60.0 % of 100 images right, "
        f"the weaker {names[0]} only 50.0 % of the same"
    ]


def test_four_of_a_hundred_are_more_than_noise_and_three_are_not():
    # all differences one way: mean k/n, standard error √(k/n·(1 − k/n)/n); k = 4: 0.04 > 2·0.0196
    assert len(sentences("pgd20", "autoattack", verdicts(50, 50), verdicts(54, 46))) == 1
    assert sentences("pgd20", "autoattack", verdicts(50, 50), verdicts(53, 47)) == []


def test_the_standard_error_is_of_the_paired_difference():
    weaker = torch.tensor([True, False, False, True])
    stronger = torch.tensor([False, True, True, True])
    found = compare("pgd20", "autoattack", weaker, stronger)
    assert (found.images, found.weaker_accuracy, found.stronger_accuracy) == (4, 0.5, 0.75)
    assert found.standard_error == pytest.approx((0.6875 / 4) ** 0.5)  # differences 1, −1, −1, 0


def test_differences_that_cancel_are_noise():
    weaker, stronger = verdicts(50, 50), verdicts(54, 46)
    # 54 right against 50, but 44 images differ one way and 40 the other
    mixed = torch.cat([verdicts(0, 40), stronger[40:].new_ones(44), verdicts(10, 6)])
    assert mixed.sum() == stronger.sum() == 54
    assert sentences("pgd20", "autoattack", weaker, mixed) == []


def test_a_network_right_on_clean_images_alone_is_called_not_robust():
    clean = verdicts(941, 59)
    assert sentences("clean", "pgd20", clean, verdicts(0, 1000)) == [
        "not robust: 94.1 % clean but 0.0 % under PGD-20"
    ]
    assert sentences("clean", "pgd20", clean, verdicts(100, 900)) == [
        "not robust: 94.1 % clean but 10.0 % under PGD-20"
    ]
    assert sentences("clean", "pgd20", clean, verdicts(101, 899)) == []
    assert sentences("clean", "pgd20", clean, verdicts(20, 980), classes=100) == []


def test_a_network_hardly_above_chance_is_not_called_not_robust():
    assert sentences("clean", "pgd20", verdicts(20, 80), verdicts(0, 100)) == []
    assert len(sentences("clean", "pgd20", verdicts(21, 79), verdicts(0, 100))) == 1


def test_the_json_holds_figures_and_sentences():
    pair = compare("clean", "pgd20", verdicts(3, 1), verdicts(0, 4))
    assert Checks(10, SOUND, (pair,)).as_json() == {
        "zero_gradients": {"images": 16, "cross_entropy": 0.0, "margin": 0.0},
        "comparisons": [
            {
                "weaker": "clean",
                "stronger": "pgd20",
                "images": 4,
                "weaker_accuracy": 0.75,
                "stronger_accuracy": 0.0,
                "standard_error": pytest.approx((0.1875 / 4) ** 0.5),
            }
        ],
        "warnings": ["not robust: 75.0 % clean but 0.0 % under PGD-20"],
    }


@pytest.mark.parametrize("weaker", ["pgd20", "cw30"])
def test_autoattack_that_fools_far_more_than_pgd_shows_masked_gradients(weaker):
    name = {"pgd20": "PGD-20", "cw30": "CW-30"}[weaker]
    assert sentences(weaker, "autoattack", verdicts(98, 2), verdicts(48, 52)) == [
        f"gradient masking: AutoAttack leaves 48.0 % of 100 images right, {name} 98.0 % of the same: "
        "attacks that follow the gradient find too little"
    ]
    assert (
        sentences(weaker, "autoattack", verdicts(60, 40), verdicts(46, 54)) == []
    )  # 14 points: robust ones do
    # 25 points of 40 images: 3.7 standard errors of √(0.25·0.75/40)
    assert len(sentences(weaker, "autoattack", verdicts(32, 8), verdicts(22, 18))) == 1
    # 20 points of 20 images: 4 lost, standard error √(0.2·0.8/20) = 0.09
    assert sentences(weaker, "autoattack", verdicts(12, 8), verdicts(8, 12)) == []


def test_pgd_that_fools_nobody_is_suspicious_of_a_hundred_images():
    assert sentences("clean", "pgd20", verdicts(100, 20), verdicts(100, 20)) == [
        "gradient masking, or too small an ε: PGD-20 turns none of the 100 images that are right"
    ]
    assert sentences("clean", "pgd20", verdicts(100, 20), verdicts(99, 21)) == []
    assert sentences("clean", "pgd20", verdicts(99, 21), verdicts(99, 21)) == []


def test_logits_without_any_gradient_are_refused_before_an_attack_follows_it(images, labels):
    with pytest.raises(FerdError, match=r"^the network's logits have no gradient by its images"):
        inspect(Altered(torch.Tensor.detach), images, labels)
