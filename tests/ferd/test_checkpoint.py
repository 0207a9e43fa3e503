import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import ferd.checkpoint
from ferd.checkpoint import FORMAT, load_classifier, load_state, read_facts, save_classifier, save_state
from ferd.config import ThreatModel
from ferd.errors import FerdError
from ferd.models.classifier import fast_layout
from ferd.models.registry import NETWORKS, build
from ferd.models.resnet import ResNet


@pytest.fixture
def network(make_network):
    return make_network()


@pytest.fixture
def path(tmp_path, network):
    save_classifier(tmp_path / "w.safetensors", network, "resnet8-w8", benchmark="digits")
    return tmp_path / "w.safetensors"


def refusal(path, **expected):
    with pytest.raises(FerdError) as raised:
        load_classifier(path, **expected)
    text = str(raised.value)
    assert str(path) in text
    assert "\n" not in text
    return text


def test_a_saved_network_gives_the_same_logits_in_eval_mode_and_frozen(path, network, images):
    loaded = load_classifier(path, classes=10, channels=1, benchmark="digits")
    assert torch.equal(loaded(images), network(images))
    assert not loaded.training
    assert not any(weight.requires_grad for weight in loaded.parameters())


def test_equal_weights_give_equal_bytes_whatever_their_layout(path, network):
    before = path.read_bytes()
    other = fast_layout(load_classifier(path), torch.device("cpu")).train()
    save_classifier(path, other, "resnet8-w8", benchmark="digits")
    assert path.read_bytes() == before
    with torch.no_grad():
        network.linear.bias[0] += 1e-3
    save_classifier(path, network, "resnet8-w8", benchmark="digits")
    assert path.read_bytes() != before


def test_the_order_of_facts_does_not_change_the_bytes(tmp_path, network):
    one, two = tmp_path / "one", tmp_path / "two"
    save_classifier(one, network, "resnet8-w8", seed=0, benchmark="digits")
    save_classifier(two, network, "resnet8-w8", benchmark="digits", seed=0)
    assert one.read_bytes() == two.read_bytes()


def test_facts_are_read_without_the_weights(path):
    facts = read_facts(path)
    assert facts["network"] == "resnet8-w8" and facts["classes"] == 10
    assert facts["channels"] == 1 and facts["benchmark"] == "digits"


@pytest.mark.parametrize("left", [0, 1, 8, 200, 20_000, -1])
def test_a_cut_off_file_is_refused(path, left):
    path.write_bytes(path.read_bytes()[:left])
    assert "cut off" in refusal(path)


def test_a_folder_is_not_to_be_deleted(tmp_path):
    assert refusal(tmp_path) == f"{tmp_path}: is a folder; give a checkpoint's file"


def test_a_missing_file_is_refused(tmp_path):
    assert "no such checkpoint" in refusal(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    "metadata", [None, {"format": "pt"}, {"ferd": "{}"}, {"ferd": "[]"}, {"ferd": "text"}]
)
def test_a_foreign_file_is_refused(tmp_path, metadata):
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, path, metadata=metadata)
    assert "another program" in refusal(path)


@pytest.mark.parametrize("lacking", ["network", "classes", "channels"])
def test_a_header_without_a_fact_is_refused(tmp_path, lacking):
    facts = {"format": FORMAT, "network": "resnet8-w8", "classes": 10, "channels": 1}
    del facts[lacking]
    path = tmp_path / "w.safetensors"
    save_file({"weight": torch.zeros(2)}, path, metadata={"ferd": json.dumps(facts)})
    assert f"lacks {lacking!r}" in refusal(path)


def test_a_fact_that_is_needed_is_asked_for_by_name(path):
    assert read_facts(path, "benchmark")["benchmark"] == "digits"
    with pytest.raises(
        FerdError, match=f"{path}: its header lacks 'settings'; use a checkpoint that a stage"
    ):
        read_facts(path, "settings")


def test_another_number_of_classes_is_refused(path):
    text = refusal(path, classes=100)
    assert "classes" in text and "10" in text and "100" in text


def test_a_fact_that_was_never_saved_is_refused(path):
    assert "seed" in refusal(path, seed=0)


@pytest.mark.parametrize("claimed", ["resnet8-w16", "resnet18"])
def test_weights_of_another_shape_are_refused(tmp_path, network, claimed):
    path = tmp_path / "other.safetensors"
    with pytest.raises(FerdError, match=f"^{path}: the network is no '{claimed}'"):
        save_classifier(path, network, claimed)
    assert not path.exists()
    claim(path, network, claimed)
    assert claimed in refusal(path)


def test_a_network_that_is_unknown_here_is_refused_by_path(tmp_path, network):
    path = tmp_path / "unknown.safetensors"
    with pytest.raises(FerdError, match="'resnet9' is unknown"):
        save_classifier(path, network, "resnet9")
    assert not path.exists()
    claim(path, network, "resnet9")
    assert "resnet9" in refusal(path)


def claim(path, network, name):
    """A checkpoint of another program, or an earlier version, that says what is not so."""
    facts = {"format": FORMAT, "network": name, "classes": 10, "channels": 1}
    save_file(network.state_dict(), path, metadata={"ferd": json.dumps(facts)})


def test_a_state_comes_back_as_it_was(tmp_path):
    optimiser = torch.optim.SGD(build("resnet8-w8", classes=2, channels=1).parameters(), 0.1)
    state = {"round": 3, "rng": torch.Generator().get_state(), "o": optimiser.state_dict()}
    save_state(tmp_path / "state.pt", state)
    loaded = load_state(tmp_path / "state.pt")
    assert loaded["round"] == 3 and loaded["o"] == state["o"]
    assert torch.equal(loaded["rng"], state["rng"])


def test_no_state_is_none(tmp_path):
    assert load_state(tmp_path / "state.pt") is None


@pytest.mark.parametrize("left", [0, 1, 100, -1])
def test_a_cut_off_state_is_refused(tmp_path, left):
    path = tmp_path / "state.pt"
    save_state(path, {"a": torch.zeros(100)})
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(FerdError) as raised:
        load_state(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_weights_under_two_names_are_written_under_both(tmp_path, network, images, monkeypatch):
    def tied(name, **facts):
        made = build(name, **facts)
        made.also = made.linear
        return made

    monkeypatch.setattr(ferd.checkpoint, "build", tied)
    network.also = network.linear
    save_classifier(tmp_path / "a.safetensors", network, "resnet8-w8")
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("also.weight"), file.get_tensor("linear.weight"))
    assert torch.equal(load_classifier(tmp_path / "a.safetensors")(images), network(images))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.float64(0.5), r"state\['sampler'\]\['d'\] is a numpy\.float64, which cannot be read back"),
        (np.zeros(2), r"numpy\.ndarray"),
        ([1, Path("x")], r"state\['sampler'\]\['d'\]\[1\] is a pathlib\.\w+Path"),
        ({np.int64(3): 1}, r"\['d'\]: the key np\.int64\(3\) is a numpy\.int64, which cannot be read back"),
        (defaultdict(int), r"\['d'\] is a collections\.defaultdict"),
        (ThreatModel.model_fields, r"\['d'\]\['norm'\] is a pydantic"),
    ],
)
def test_a_state_that_could_not_be_read_back_is_not_written(tmp_path, value, said):
    with pytest.raises(FerdError, match=said):
        save_state(tmp_path / "state.pt", {"sampler": {"d": value}})
    assert not (tmp_path / "state.pt").exists()


def test_a_file_that_holds_no_state_is_refused(tmp_path):
    torch.save([1], tmp_path / "state.pt")
    with pytest.raises(FerdError, match=r"state\.pt: holds no resume state, but a list; delete it"):
        load_state(tmp_path / "state.pt")


def test_a_network_with_further_weights_is_not_saved_under_a_known_name(tmp_path, network):
    network.extra = torch.nn.Linear(2, 2)
    with pytest.raises(FerdError, match="whose weights have other names or shapes"):
        save_classifier(tmp_path / "x.safetensors", network, "resnet8-w8")
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"classes": 3}, "the header has its own classes; give that fact another name$"),
        ({"format": "2"}, "the header has its own format"),
        ({"accuracy": np.float32(0.5)}, r"facts about a checkpoint are JSON values \(Object of type float32"),
    ],
)
def test_a_fact_that_would_spoil_the_header_is_refused(tmp_path, network, about, said):
    with pytest.raises(FerdError, match=said):
        save_classifier(tmp_path / "x.safetensors", network, "resnet8-w8", **about)
    assert not (tmp_path / "x.safetensors").exists()


def test_a_network_whose_constructor_reads_numbers_is_saved(tmp_path, monkeypatch):
    class StochasticDepth(ResNet):
        def __init__(self, **given):
            super().__init__((8, 16, 32), 1, **given)
            self.rates = torch.linspace(0, 0.1, 3).tolist()

    monkeypatch.setitem(NETWORKS, "mine", StochasticDepth)
    save_classifier(tmp_path / "x.safetensors", build("mine", classes=10, channels=1), "mine")
    assert load_classifier(tmp_path / "x.safetensors").rates == pytest.approx([0, 0.05, 0.1])
