"""Weights that other programs wrote."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ferd.attacks import cross_entropy, pgd, random_start
from ferd.checkpoint import load_classifier, save_classifier
from ferd.config import Normalisation, ThreatModel, Weights
from ferd.dataset_readers import read
from ferd.errors import FerdError
from ferd.foreign_checkpoint import load_foreign
from ferd.models.folding import Folded
from ferd.models.registry import build
from ferd.pixels import to_float


@pytest.fixture
def state():
    return build("resnet8-w8", classes=10, channels=1, seed=3).state_dict()


def load(path, classes=10):
    return load_foreign(path, "resnet8-w8", classes=classes, channels=1)


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 7},
        lambda state: prefixed("module.", state),
        lambda state: {"net": prefixed("module.", state), "acc": 0.5},
        lambda state: {"model_state_dict": prefixed("module.model.", state)},
        lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
        lambda state: prefixed("module.", state | {"sub_block1.layer.0.bn1.bias": torch.ones(16)}),
    ],
)
def test_the_usual_wrappings_load(tmp_path, state, wrap):
    torch.save(wrap(state), tmp_path / "net.pt")
    network = load(tmp_path / "net.pt")
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert not network.training and not network.linear.weight.requires_grad


def test_half_precision_safetensors_become_float32(tmp_path, state):
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in state.items()}, tmp_path / "n.safetensors"
    )
    network = load(tmp_path / "n.safetensors")
    assert network.conv1.weight.dtype == torch.float32
    assert torch.allclose(network.conv1.weight, state["conv1.weight"], atol=1e-3)


def refused(path, classes=10):
    with pytest.raises(FerdError) as raised:
        load(path, classes)
    assert "\n" not in str(raised.value) and str(path) in str(raised.value)
    return str(raised.value)


def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path, state):
    path = tmp_path / "net.pt"
    torch.save(state, path)
    assert "resnet8-w8 of 10 classes, where 7 are needed" in refused(path, classes=7)
    torch.save(build("wrn-16-1", classes=100, channels=1).state_dict(), path)
    with pytest.raises(FerdError, match="wrn-16-1 of 100 classes, where 10 are needed"):
        load_foreign(path, "wrn-16-1", classes=10, channels=1)
    torch.save(build("resnet8-w16", classes=10, channels=1).state_dict(), path)
    assert "has other shapes than resnet8-w8: bn1.bias" in refused(path)
    torch.save(state, path)
    torch.save({**state, "extra.weight": torch.zeros(1)}, path)
    assert "has more than resnet8-w8: extra.weight" in refused(path)
    torch.save({key: value for key, value in state.items() if "layer3" not in key}, path)
    assert "lacks resnet8-w8: layer3.0.bn1.bias" in refused(path) and "others" in refused(path)


def test_files_without_plain_weights_are_refused_in_one_line(tmp_path, state):
    path = tmp_path / "net.pt"
    assert "no such weights" in refused(path)
    torch.save({"state_dict": [1, 2]}, path)
    assert "no dict of weights" in refused(path)
    torch.save(Path("code"), path)  # a pickled object, not weights
    assert "cannot be read" in refused(path)
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:1000])
    assert "cannot be read" in refused(path)


@pytest.mark.skipif("FERD_DATA" not in os.environ, reason="FERD_DATA is not set: no CIFAR-10")
def test_a_standard_network_that_is_not_robust_is_what_its_authors_say():
    folder = Path(find_spec("pyautoattack").submodule_search_locations[0])
    (path,) = [file for file in folder.rglob("*.pt*") if file.suffix in {".pt", ".pth"}]
    network = load_foreign(path, "resnet18", classes=10, channels=3)
    _, published = read("cifar10", Path(os.environ["FERD_DATA"]))
    test = published.take(torch.arange(500))
    inputs, labels = to_float(test.images), test.labels
    with torch.no_grad():
        predicted = torch.cat([network(batch).argmax(1) for batch in inputs.split(100)])
    assert (predicted == labels).sum() == 473  # 94.6 %
    threat = ThreatModel(norm="linf", epsilon=8 / 255, step_size=2 / 255, steps=10)
    some, true = inputs[:10], labels[:10]
    start = random_start(some, threat.epsilon, torch.Generator().manual_seed(0))
    adv_inputs = pgd(network, some, cross_entropy(true), threat, start)
    assert (network(adv_inputs).argmax(1) == true).sum() == 0


@pytest.mark.parametrize("name", ["resnet18", "wrn-16-1", "preact_resnet18"])
def test_a_normalisation_is_inside_the_network_from_then_on(tmp_path, name):
    plain = build(name, classes=10, channels=3, seed=3)
    with torch.no_grad():
        for _ in range(10):  # running statistics that keep signals alive
            plain.train()(torch.rand(16, 3, 32, 32))
    plain.eval().requires_grad_(False)
    save_file(plain.state_dict(), tmp_path / "net.safetensors")
    mean, std = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
    network = load_foreign(
        tmp_path / "net.safetensors",
        name,
        classes=10,
        channels=3,
        normalisation=Normalisation(mean=mean, std=std),
    )
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    shift, scale = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (mean, std))
    expected = plain((images - shift) / scale)
    assert not torch.allclose(plain(images), expected, atol=1e-3)
    assert torch.allclose(network(images), expected, atol=1e-5)
    for layer in (-1, -2):
        assert torch.allclose(network.head(network.features(images, layer), layer), expected, atol=1e-5)
    assert torch.allclose(Folded(network).network(images), expected, atol=1e-4)
    save_classifier(tmp_path / "saved.safetensors", network, name)
    assert torch.equal(load_classifier(tmp_path / "saved.safetensors")(images), network(images))


def test_a_normalisation_of_other_channels_is_refused_in_one_line(tmp_path, state):
    save_file(state, tmp_path / "net.safetensors")
    three = Normalisation(mean=[0.5] * 3, std=[0.2] * 3)
    with pytest.raises(FerdError, match=r"normalisation has 3 channels where images have 1; give") as raised:
        load_foreign(tmp_path / "net.safetensors", "resnet8-w8", classes=10, channels=1, normalisation=three)
    assert "\n" not in str(raised.value)


def test_weights_without_a_normalisation_are_the_settings_that_they_were():
    weights = Weights(source="file", location="net.pt", sha256=64 * "0")
    assert weights.model_dump() == {"source": "file", "location": "net.pt", "sha256": 64 * "0"}
    scaled = weights.model_copy(update={"normalisation": Normalisation(mean=[0.5], std=[0.2])})
    assert scaled.model_dump()["normalisation"] == {"mean": [0.5], "std": [0.2]}


def test_a_normalisation_has_a_std_for_each_mean():
    with pytest.raises(ValueError, match="2 means and 1 stds"):
        Normalisation(mean=[0.5, 0.5], std=[0.2])


def test_a_damaged_file_is_one_line_wherever_it_is_damaged(tmp_path, state):
    path = tmp_path / "net.pt"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    path.write_bytes(content)
    load(path)
    refused = 0
    for position in range(0, 400, 8):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :])
        try:
            load(path)
        except FerdError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            refused += 1
    assert refused > 20
