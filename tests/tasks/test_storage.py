"""Weights wherever they lie: which file is taken, and what is refused."""

import sys
import types
from pathlib import Path

import pytest

from ferd.config import Weights
from tasks import storage
from tasks.storage import fetch_weights
from tests.tasks.conftest import CONTENT, SHA256
from tests.tasks.test_download import put, refused

pytestmark = pytest.mark.usefixtures("short_pauses")


def weights(source: str, location: object, sha256: str = SHA256) -> Weights:
    return Weights(source=source, location=str(location), sha256=sha256)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working folder of its own; downloads go there."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_weights_at_an_address_are_fetched_once_by_their_hash_and_name(server, url, here):
    for _ in range(2):
        assert fetch_weights(weights("https", f"{url}?download=1")) == Path(f"downloads/{SHA256[:16]}-net.pt")
    assert (here / f"downloads/{SHA256[:16]}-net.pt").read_bytes() == CONTENT
    assert server.asked == [None]


def test_weights_in_an_object_store_are_fetched(s3, here):
    assert fetch_weights(weights("s3", s3)).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("source", "location"),
    [("https", "s3://models/net.pt"), ("s3", "https://host/net.pt"), ("https", "/net.pt")],
)
def test_an_address_of_another_source_is_refused(source, location):
    line = refused(fetch_weights, weights(source, location))
    assert location in line and f"{source}://" in line


def test_a_relative_file_lies_below_ferd_data(tmp_path, monkeypatch):
    monkeypatch.setenv("FERD_DATA", str(tmp_path))
    put(tmp_path / "teachers" / "net.pt", CONTENT)
    assert fetch_weights(weights("file", "teachers/net.pt")) == tmp_path / "teachers" / "net.pt"


def test_an_absolute_file_needs_no_ferd_data(tmp_path, monkeypatch):
    monkeypatch.delenv("FERD_DATA", raising=False)
    put(tmp_path / "net.pt", CONTENT)
    assert fetch_weights(weights("file", tmp_path / "net.pt")) == tmp_path / "net.pt"


@pytest.mark.parametrize("value", [None, ""])
def test_a_relative_file_without_ferd_data_is_refused(monkeypatch, value):
    monkeypatch.delenv("FERD_DATA", raising=False)
    if value is not None:
        monkeypatch.setenv("FERD_DATA", value)
    line = refused(fetch_weights, weights("file", "teachers/net.pt"))
    assert "FERD_DATA is not set" in line and "teachers/net.pt" in line


@pytest.mark.parametrize(("name", "reason"), [("none.pt", "No such file"), ("", "Is a directory")])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, reason):
    path = tmp_path / name
    assert f"{path}: cannot be read: {reason}" in refused(fetch_weights, weights("file", path))


def test_another_file_than_expected_is_refused_and_stays(tmp_path):
    path = tmp_path / "net.pt"
    path.write_bytes(CONTENT)
    line = refused(fetch_weights, weights("file", path, "0" * 64))
    assert f"{path}: its SHA-256 is {SHA256} but {'0' * 64} is expected" in line
    assert path.read_bytes() == CONTENT


def test_weights_of_the_package_are_found_by_name_or_those_there_are_listed(tmp_path, monkeypatch):
    put(tmp_path / "one.safetensors", CONTENT)
    monkeypatch.setattr(storage.resources, "files", lambda package: tmp_path)
    assert fetch_weights(weights("package", "one.safetensors")) == tmp_path / "one.safetensors"
    line = refused(fetch_weights, weights("package", "two.safetensors"))
    assert "'two.safetensors' does not come with the package; these do: one.safetensors" in line


def test_the_folder_of_the_package_is_looked_in():
    line = refused(fetch_weights, weights("package", "no-such.safetensors"))
    assert "'no-such.safetensors' does not come with the package" in line


def test_robustbench_that_is_not_installed_is_asked_for(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "robustbench", None)
    model = weights("robustbench", "Rice2020Overfitting")
    assert "'.[robustbench]'" in refused(fetch_weights, model)
    path = Path(f"downloads/{SHA256[:16]}-Rice2020Overfitting.pt")
    put(path, CONTENT)
    assert fetch_weights(model) == path  # nothing is left to ask it for


@pytest.fixture
def zoo(here, monkeypatch) -> list[str]:
    """A stand-in for RobustBench's package, under its names: the file ids it was asked for."""
    asked = []

    def download_gdrive_new(gdrive_id, fname_save):
        asked.append(gdrive_id)
        if gdrive_id == "gone":
            raise OSError("cannot retrieve\nthe file")
        fname_save.write_bytes(CONTENT)

    def models(**file_ids):
        return {"Linf": {name: {"gdrive_id": file_id} for name, file_id in file_ids.items()}}

    names = {
        "robustbench": {},
        "robustbench.model_zoo": {
            "model_dicts": {
                "cifar10": models(Rice2020Overfitting="ten", Gone="gone", Ensemble=["a", "b"]),
                "cifar100": models(Rice2020Overfitting="hundred"),
            }
        },
        "robustbench.model_zoo.enums": {
            "BenchmarkDataset": types.SimpleNamespace(cifar_10="cifar10", cifar_100="cifar100"),
            "ThreatModel": types.SimpleNamespace(Linf="Linf"),
        },
        "robustbench.utils": {"download_gdrive_new": download_gdrive_new},
    }
    for name, content in names.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return asked


@pytest.mark.parametrize(("prefix", "file_id"), [("", "ten"), ("cifar100/", "hundred")])
def test_a_model_of_the_zoo_is_downloaded_once_and_checked(zoo, here, prefix, file_id):
    model = weights("robustbench", f"{prefix}Rice2020Overfitting")
    path = Path(f"downloads/{SHA256[:16]}-Rice2020Overfitting.pt")
    assert fetch_weights(model) == fetch_weights(model) == path
    assert zoo == [file_id]
    line = refused(fetch_weights, model.model_copy(update={"sha256": "0" * 64}))
    assert SHA256 in line and "0" * 64 in line
    assert list((here / "downloads").iterdir()) == [here / path]


@pytest.mark.parametrize(
    "name", ["Nobody2030", "Ensemble", "cifar100/Ensemble", "imagenet/Rice2020Overfitting"]
)
def test_a_model_that_the_zoo_lacks_or_keeps_in_parts_is_refused(zoo, name):
    assert f"{name!r} among its Linf models" in refused(fetch_weights, weights("robustbench", name))
    assert zoo == []


def test_a_model_that_cannot_be_downloaded_is_one_line(zoo, here):
    assert "Gone: cannot retrieve the file; run again" in refused(
        fetch_weights, weights("robustbench", "Gone")
    )
    assert list((here / "downloads").iterdir()) == []
