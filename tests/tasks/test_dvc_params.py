"""What DVC reads of a file of settings is the same as by its own code, and parsed once."""

import os

import pytest
from dvc.dependency import param
from dvc.fs import LocalFileSystem

from tasks import dvc_params

FS = LocalFileSystem()
TEXT = """
shared: &shared {steps: 3, rates: [0.1, 0.2]}
methods: {ferd: {utae: {gamma: 0.5}}, other: *shared}
benchmark: {<<: *shared, size: 8}
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "params.yaml").write_text(TEXT)
    return str(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    "keys",
    [
        ["methods.ferd.utae.gamma"],
        ["methods.ferd", "benchmark", "shared.steps"],
        ["methods.ferd", "methods.nobody", "benchmark.size.none"],
        ["shared.rates.1"],
        ["methods.f*"],
        None,
    ],
)
@pytest.mark.parametrize("flatten", [True, False])
def test_the_values_are_dvcs(path, keys, flatten):
    assert dvc_params.read(FS, path, keys, flatten) == dvc_params._by_dvc(FS, path, keys, flatten)


def test_it_is_parsed_once_and_again_when_it_has_changed(path, tmp_path, monkeypatch):
    parsed, load = [], dvc_params.load_path
    monkeypatch.setattr(dvc_params, "load_path", lambda *given: parsed.append(given) or load(*given))
    for _ in range(2):
        found = dvc_params.read(FS, path, ["methods.ferd"], flatten=True)
        assert found == {"methods.ferd": {"utae": {"gamma": 0.5}}}
        found["methods.ferd"]["utae"]["gamma"] = 9.0  # who reads it may change what it has
    assert len(parsed) == 1
    (tmp_path / "params.yaml").write_text(TEXT.replace("0.5", "0.25"))
    assert dvc_params.read(FS, path, ["methods.ferd.utae.gamma"], flatten=True) == {
        "methods.ferd.utae.gamma": 0.25
    }


@pytest.mark.parametrize("changed", ["its time", "its length", "its inode"])
def test_a_change_is_known_by_any_of_time_length_and_inode(path, tmp_path, changed):
    os.utime(path, (1, 1))
    assert dvc_params.read(FS, path, ["methods.ferd.utae.gamma"], True) == {"methods.ferd.utae.gamma": 0.5}
    written = tmp_path / "other.yaml" if changed == "its inode" else tmp_path / "params.yaml"
    written.write_text(TEXT.replace("0.5", "0.25" if changed == "its length" else "0.7"))
    os.utime(written, (2, 2) if changed == "its time" else (1, 1))
    written.replace(path)
    found = dvc_params.read(FS, path, ["methods.ferd.utae.gamma"], True)
    assert found["methods.ferd.utae.gamma"] == (0.25 if changed == "its length" else 0.7)


def test_what_is_asked_for_in_another_way_is_left_to_dvc(path, monkeypatch):
    asked = []
    monkeypatch.setattr(dvc_params, "_by_dvc", lambda *given, **options: asked.append(options))
    dvc_params.read(FS, path, ["methods.ferd"], True, encoding="latin-1")
    assert asked == [{"encoding": "latin-1"}]


def test_dvc_reads_by_it_once_it_is_told_to(monkeypatch):
    monkeypatch.setattr(param, "read_param_file", dvc_params._by_dvc)
    dvc_params.read_once()
    assert param.read_param_file is dvc_params.read


def test_a_file_that_is_gone_is_dvcs_to_name(tmp_path):
    with pytest.raises(FileNotFoundError):
        dvc_params.read(FS, str(tmp_path / "none.yaml"), ["a"], flatten=True)
