import pytest
import torch

from ferd.errors import FerdError
from ferd.models.registry import build


def equal(one, two):
    first, second = one.state_dict(), two.state_dict()
    assert first.keys() == second.keys()
    return all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("name", "classes", "channels", "parameters"),
    [
        ("resnet18", 10, 3, 11_173_962),
        ("resnet18", 100, 3, 11_220_132),
        ("resnet8-w16", 10, 1, 77_754),
    ],
)
def test_parameters_are_as_many_as_published(name, classes, channels, parameters):
    network = build(name, classes=classes, channels=channels)
    assert sum(weight.numel() for weight in network.parameters()) == parameters


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    one, two, other = (build("resnet8-w8", classes=10, channels=1, seed=s) for s in (3, 3, 4))
    assert equal(one, two)
    assert not torch.equal(one.conv1.weight, other.conv1.weight)


def test_weights_do_not_depend_on_the_global_generator_nor_disturb_it():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one = build("resnet8-w8", classes=10, channels=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert equal(one, build("resnet8-w8", classes=10, channels=1))


def test_key_names_are_those_of_the_field():
    keys = build("resnet18", classes=10, channels=3).state_dict().keys()
    known = ["conv1", "layer1.0.conv1", "layer2.0.shortcut.0", "layer4.1.bn2", "linear"]
    assert {f"{name}.weight" for name in known} <= keys
    assert len(keys) == 122


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(FerdError, match=r"resnet9.*resnet18") as raised:
        build("resnet9", classes=10, channels=1)
    assert "\n" not in str(raised.value)
