import hashlib
import os
import shutil
import sys
import tarfile
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from ferd.config import Data
from ferd.dataset_readers import cifar_source, read
from ferd.datasets import load_images
from ferd.errors import FerdError
from tasks import data, download, fetch
from tests.image_sets import make_cifar, make_tiny_imagenet


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and logs nothing."""

    def log_message(self, *args):
        pass


@pytest.fixture
def site(tmp_path):
    """(folder, address) of a web server."""
    folder = tmp_path / "site"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An empty FERD_DATA."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("FERD_DATA", str(folder))
    return folder


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def publish_tiny(site, tmp_path, monkeypatch, *, extra: str | None = None) -> Path:
    """Put a Tiny-ImageNet of three classes on the server, with its checksum and counts."""
    folder, address = site
    source = make_tiny_imagenet(tmp_path / "source", monkeypatch)
    archive = folder / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(archive, "w") as members:
        for path in sorted(source.rglob("*")):
            members.write(path, path.relative_to(source.parent))
        if extra:
            members.writestr(extra, "planted")
    monkeypatch.setattr(fetch, "TINY_IMAGENET_URL", f"{address}/{archive.name}")
    monkeypatch.setattr(fetch, "TINY_IMAGENET_MD5", md5(archive))
    monkeypatch.setattr(fetch, "TINY_IMAGENET_TRAIN", 9)
    monkeypatch.setattr(fetch, "TINY_IMAGENET_TEST", 6)
    return archive


def publish_cifar(name, site, tmp_path, monkeypatch) -> Path:
    """Put a small CIFAR on the server, with its checksums."""
    folder, address = site
    source = cifar_source(name)
    make_cifar(name, tmp_path / "source", monkeypatch)
    archive = folder / source.filename
    with tarfile.open(archive, "w:gz") as members:
        members.add(tmp_path / "source" / source.base_folder, source.base_folder)
    monkeypatch.setattr(source, "url", f"{address}/{archive.name}")
    monkeypatch.setattr(source, "tgz_md5", md5(archive))
    return archive


def run_main(monkeypatch, capsys, name: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the command."""
    monkeypatch.setattr(sys, "argv", ["fetch", name])
    try:
        fetch.main()
        status = 0
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    return status, out, err


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_tiny_imagenet_is_downloaded_unpacked_and_then_there(site, home, tmp_path, monkeypatch, capsys):
    publish_tiny(site, tmp_path, monkeypatch)
    assert run_main(monkeypatch, capsys, "tiny-imagenet")[:2] == (
        0,
        f"fetch tiny-imagenet: {home}/tiny-imagenet-200 is whole\n",
    )
    assert files_below(home) == files_below(tmp_path / "source")  # no archive and no part stays
    shutil.rmtree(site[0])  # nothing is downloaded again
    status, out, _ = run_main(monkeypatch, capsys, "tiny-imagenet")
    assert status == 0 and out.endswith("is there and whole already\n")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_downloaded_unpacked_and_then_there(site, home, tmp_path, monkeypatch, capsys, name):
    publish_cifar(name, site, tmp_path, monkeypatch)
    folder = home / cifar_source(name).base_folder
    assert run_main(monkeypatch, capsys, name)[:2] == (0, f"fetch {name}: {folder} is whole\n")
    assert files_below(home) == files_below(tmp_path / "source")
    shutil.rmtree(site[0])
    status, out, _ = run_main(monkeypatch, capsys, name)
    assert status == 0 and out.endswith("is there and whole already\n")


def test_damaged_cifar_is_fetched_again(site, home, tmp_path, monkeypatch):
    publish_cifar("cifar100", site, tmp_path, monkeypatch)
    fetch.fetch("cifar100", home)
    (home / "cifar-100-python" / "train").write_bytes(b"half")
    assert fetch.fetch("cifar100", home).endswith("is whole")
    assert len(read("cifar100", home)[0].labels) == 200


def test_a_cifar_that_cannot_be_unpacked_leaves_what_was_there(site, home, tmp_path, monkeypatch):
    """The archive is the published one, and holds less than is read."""
    publish_cifar("cifar100", site, tmp_path, monkeypatch)
    there = home / "cifar-100-python" / "mine"
    there.parent.mkdir()
    there.write_text("kept")
    archive = site[0] / cifar_source("cifar100").filename
    with tarfile.open(archive, "w:gz") as members:
        members.add(there, "cifar-100-python/other")
    monkeypatch.setattr(cifar_source("cifar100"), "tgz_md5", md5(archive))
    with pytest.raises(FerdError, match="missing or damaged"):
        fetch.fetch("cifar100", home)
    assert there.read_text() == "kept"
    assert [path.name for path in home.iterdir() if path.is_dir()] == ["cifar-100-python"]


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "tiny-imagenet"])
def test_an_archive_with_another_checksum_is_not_unpacked(site, home, tmp_path, monkeypatch, capsys, name):
    if name == "tiny-imagenet":
        archive = publish_tiny(site, tmp_path, monkeypatch)
    else:
        archive = publish_cifar(name, site, tmp_path, monkeypatch)
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    status, _, err = run_main(monkeypatch, capsys, name)
    assert status == 2 and len(err.splitlines()) == 1 and "md5" in err.lower()
    assert not any(path.is_dir() for path in home.iterdir())


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "tiny-imagenet"])
def test_without_a_connection_one_line_says_so(home, monkeypatch, capsys, name):
    monkeypatch.setattr(download, "FIRST_PAUSE_SECONDS", 0.001)
    nobody = "http://127.0.0.1:9/set"
    if name == "tiny-imagenet":
        monkeypatch.setattr(fetch, "TINY_IMAGENET_URL", nobody)
    else:
        monkeypatch.setattr(cifar_source(name), "url", nobody)
    status, out, err = run_main(monkeypatch, capsys, name)
    assert status == 2 and out == "" and len(err.splitlines()) == 1
    assert err.startswith(f"fetch {name}: ") and nobody in err


@pytest.mark.parametrize("value", [None, ""])
def test_without_ferd_data_one_line_says_so(monkeypatch, capsys, value):
    monkeypatch.delenv("FERD_DATA", raising=False)
    if value is not None:
        monkeypatch.setenv("FERD_DATA", value)
    status, _, err = run_main(monkeypatch, capsys, "cifar10")
    assert status == 2 and len(err.splitlines()) == 1 and "FERD_DATA is not set" in err


def test_an_unknown_set_is_refused_with_those_that_are_known(home, monkeypatch, capsys):
    status, _, err = run_main(monkeypatch, capsys, "mnist")
    assert status == 2 and all(name in err for name in ("mnist", "cifar10", "cifar100", "tiny-imagenet"))


def test_a_tiny_imagenet_that_is_not_whole_is_left_as_it_is(site, home, tmp_path, monkeypatch):
    publish_tiny(site, tmp_path, monkeypatch)
    fetch.fetch("tiny-imagenet", home)
    (home / "tiny-imagenet-200/train/n01/images/n01_0.JPEG").unlink()
    before = files_below(home)
    with pytest.raises(FerdError, match=r"has 8 training and 6 validation images, not 9 and 6.*move it away"):
        fetch.fetch("tiny-imagenet", home)
    assert files_below(home) == before


def test_what_a_killed_attempt_left_is_replaced(site, home, tmp_path, monkeypatch):
    publish_tiny(site, tmp_path, monkeypatch)
    left = home / ".tiny-imagenet-200.zip.part" / "tiny-imagenet-200" / "train" / "n09"
    left.mkdir(parents=True)
    fetch.fetch("tiny-imagenet", home)
    assert files_below(home) == files_below(tmp_path / "source")
    assert not (home / ".tiny-imagenet-200.zip.part").exists()


def test_a_folder_that_cannot_hold_the_set_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(FerdError, match=f"{tmp_path}/file/sets: cannot be written: Not a directory"):
        fetch.fetch("tiny-imagenet", tmp_path / "file" / "sets")


def test_stage_data_writes_what_it_was_asked_for(site, home, tmp_path, monkeypatch):
    publish_tiny(site, tmp_path, monkeypatch)
    fetch.fetch("tiny-imagenet", home)
    monkeypatch.chdir(tmp_path)
    settings = Data(dataset="tiny-imagenet", train_per_class=2, validation_per_class=1, test_per_class=0)
    data.write_images("mini", settings)
    parts = {
        name: load_images(Path(f"data/mini/{name}.safetensors")) for name in ("train", "validation", "test")
    }
    assert {name: part.labels.tolist() for name, part in parts.items()} == {
        "train": [0, 0, 1, 1, 2, 2],
        "validation": [0, 1, 2],
        "test": [2, 1, 0, 2, 1, 0],
    }
    assert torch.equal(parts["train"].images[1, 0], parts["train"].images[1, 2])  # the greyscale one


def test_stage_data_never_downloads_but_names_the_command(home, monkeypatch):
    settings = Data(dataset="cifar100", train_per_class=1, validation_per_class=0, test_per_class=0)
    with pytest.raises(FerdError, match=r"missing or damaged; run `python -m tasks\.fetch cifar100`"):
        data.write_images("cifar100", settings)
    assert os.listdir(home) == []
