"""What DVC writes by this project's functions is whole, what it reads the same, and it lists a file once."""

import errno
import json
import os
import re
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from inspect import signature

import pytest
from dvc import rwlock
from dvc.dependency import param
from dvc.exceptions import DvcException
from dvc.fs import LocalFileSystem, MemoryFileSystem, localfs
from dvc.lock import LockError
from dvc.parsing.context import Context, CtxDict
from dvc.utils import strictyaml
from dvc.utils.serialize import _common, _yaml, dump_yaml, load_yaml, modify_yaml

from ferd.errors import FerdError
from tasks import dvc_patches
from tasks.dvc_pipeline import plain_errors
from tests.conftest import ROOT, environment, wait_until

FS = LocalFileSystem()
PLACES = {  # what is replaced: where, by which name, and by what
    (_yaml, "parse_yaml"): dvc_patches.parse_yaml,
    (strictyaml, "parse_yaml"): dvc_patches.parse_yaml,
    (_common, "_dump_data"): dvc_patches.dump_whole,
    (_yaml, "_dump_data"): dvc_patches.dump_whole,
    (_yaml, "_modify_data"): dvc_patches.modified,
    (rwlock, "_edit_rwlock"): dvc_patches.edit,
    (rwlock, "rwlock"): dvc_patches.hold,
    (param, "read_param_file"): dvc_patches.read_param_file,
    (CtxDict, "__deepcopy__"): dvc_patches.copied,
}
BY_DVC = {place: getattr(*place) for place in PLACES}
TEXT = """
shared: &shared {steps: 3, rates: [0.1, 0.2]}
methods: {ferd: {utae: {gamma: 0.5}}, other: *shared}
benchmark: {<<: *shared, size: 8}
"""


@pytest.fixture
def dvcs_own(monkeypatch):
    """DVC's functions, which are there again afterwards."""
    for (place, name), by_dvc in BY_DVC.items():
        monkeypatch.setattr(place, name, by_dvc)


@pytest.fixture
def replaced(dvcs_own):
    dvc_patches.apply()


def part_of_lock():
    """The first stages of this project's lock, its last one, and those that the tests change."""
    head, *stages = re.split(r"^(?=  \S)", (ROOT / "dvc.lock").read_text("utf-8"), flags=re.MULTILINE)
    names = ("  sources:", "  report:")
    return head + "".join(
        stages[:5] + [stage for stage in stages[5:-1] if stage.startswith(names)] + stages[-1:]
    )


PART = part_of_lock()


@pytest.fixture
def lock(tmp_path):
    path = tmp_path / "dvc.lock"
    path.write_text(PART, "utf-8")
    return path


def change(path):
    with modify_yaml(str(path)) as content:
        content["stages"]["sources"]["cmd"] = "python -m tasks.others"


def test_a_changed_lock_is_the_bytes_that_dvc_writes(lock, tmp_path, replaced, monkeypatch):
    change(lock)
    ours = lock.read_bytes()
    lock.write_text(PART, "utf-8")
    monkeypatch.undo()
    change(lock)
    assert ours == lock.read_bytes() != PART.encode()
    assert list(tmp_path.iterdir()) == [lock]


CHANGES = {
    "one more": lambda stages: stages.update(
        {"new@a": {"cmd": f"python -m {10 * 'long '}", "deps": [{"path": "é"}]}}
    ),
    "a parameter": lambda stages: list(stages.values())[-1].update(
        {"params": {"params.yaml": {"x": None, "y": "1"}}}
    ),
    "two": lambda stages: [stages[name].update({"cmd": "x"}) for name in ("sources", "report")],
    "one less": lambda stages: stages.pop("sources"),
    "another order, and one": lambda stages: stages.update(
        {"sources": {**stages.pop("sources"), "cmd": "x"}}
    ),
    "all": lambda stages: [stage.update({"cmd": "python -m tasks.others"}) for stage in stages.values()],
    "the same, shared by two": lambda stages: [
        stages[name].update({"params": {"a": shared, "b": shared}})
        for shared in [{"size": 8}]
        for name in ("sources", "report")
    ],
    "a long name": lambda stages: stages.update({"x" * 130: {"cmd": "a", "n": 1}}),
    "a number of another kind": lambda stages: stages["sources"].update({"n": 1.0}),
    "an empty one": lambda stages: stages.update({"sources": {}}),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_whatever_changes_in_a_lock_its_bytes_are_dvcs(kind, lock, dvcs_own):
    change, found = CHANGES[kind], []
    for ours in (False, True):
        lock.write_text(PART, "utf-8")
        if ours:
            dvc_patches.apply()
        with modify_yaml(str(lock)) as content:
            change(content["stages"])
        found.append(lock.read_text("utf-8"))
    assert found[0] == found[1]


LAYOUTS = {
    "aliases in two stages": "stages:\n  a:\n    p: &id001 {x: 1}\n    q: *id001\n  b:\n    r: *id001\n",
    "a long name": f"stages:\n  ? {'x' * 130}\n  : cmd: a\n  b:\n    cmd: c\n",
    "no last newline": "stages:\n  a:\n    size: 3",
    "datasets before": "datasets:\n- name: d\n  a:\n    cmd: x\n  b: 1\nstages:\n  a:\n    cmd: y\n",
    "a comment": "stages:\n  a:\n    cmd: y\n# said\n    size: 3\n",
    "an end": "stages:\n  a:\n    cmd: y\n...\n",
    "flow": "stages: {a: {cmd: y}}\n",
    "indented by four": "stages:\n    a:\n        cmd: y\n",
    "indented by one": "stages:\n a:\n  cmd: y\n",
    "other kinds": "stages:\n  a:\n    n: 1\n    t: true\n",
}
EDITS = {
    "changed": lambda stages: stages.update({next(iter(stages)): {"n": 2}}),
    "added": lambda stages: stages.update({"new": {"cmd": "n", "p": {"x": 1}}}),
    "of other kinds": lambda stages: stages.update({"a": {"n": 1.0, "t": 1}}),
    "shared": lambda stages: stages.update(
        {name: {"p": both, "q": both} for both in [{"x": 1}] for name in "ab"}
    ),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_lock_of_any_layout_is_read_as_what_it_should_hold(tmp_path, replaced, layout, edit):
    path = tmp_path / "dvc.lock"
    path.write_text(LAYOUTS[layout])
    with modify_yaml(str(path)) as content:
        EDITS[edit](content["stages"])
    read = dvc_patches._parse_by_dvc(path.read_text(), str(path))
    assert json.dumps(read) == json.dumps(content)


def test_a_setting_of_another_kind_is_written(tmp_path, replaced):
    path = tmp_path / "params.yaml"
    path.write_text("flag: true\nrate: 1 # of learning\n")
    with modify_yaml(str(path)) as content:
        content.update({"flag": 1, "rate": 1.0})
    assert path.read_text() == "flag: 1\nrate: 1.0 # of learning\n"


def test_a_file_behind_a_link_is_replaced_and_keeps_its_mode(lock, tmp_path, replaced):
    lock.chmod(0o664)
    link = tmp_path / "link.lock"
    link.symlink_to(lock)
    change(link)
    assert link.is_symlink() and lock.stat().st_mode & 0o777 == 0o664
    assert load_yaml(str(lock))["stages"]["sources"]["cmd"] == "python -m tasks.others"


def test_every_stage_of_this_projects_lock_is_found_in_it(dvcs_own):
    text = (ROOT / "dvc.lock").read_text("utf-8")
    content = load_yaml(str(ROOT / "dvc.lock"))
    without = {**content, "stages": {name: {"cmd": "x"} for name in content["stages"]}}
    assert dvc_patches.with_stages(text, without, content, _yaml._dump) == text


def test_a_stage_is_written_alone(lock, replaced, monkeypatch):
    written, dump = [], _yaml._dump
    monkeypatch.setattr(_yaml, "_dump", lambda data, stream: written.append(data) or dump(data, stream))
    change(lock)
    assert [list(data["stages"]) for data in written] == [["sources"]]


@pytest.mark.parametrize(
    "other", ["schema: '3.0'\nstages:\n  sources:\n    cmd: a\n", "stages:\n  a:\n    cmd: b\nx: 1\n"]
)
def test_a_lock_in_which_more_changes_is_written_as_a_whole(tmp_path, replaced, other):
    path = tmp_path / "dvc.lock"
    path.write_text(other)
    with modify_yaml(str(path)) as content:
        content["schema"] = "2.0"
        content["stages"]["new"] = {"cmd": "c"}
    assert load_yaml(str(path)) == content
    assert load_yaml(str(path))["schema"] == "2.0"


def test_a_stage_that_stands_in_another_way_is_found_or_all_are_written(tmp_path, replaced):
    path = tmp_path / "dvc.lock"
    path.write_text("stages:\n    wide: {cmd: a}\n    'quoted':\n        cmd: b\n")
    for name in ("quoted", "wide"):
        with modify_yaml(str(path)) as content:
            content["stages"][name] = {"cmd": "other"}
        assert load_yaml(str(path)) == content


def test_a_lock_is_parsed_once_and_its_readers_may_change_what_they_have(lock, replaced, monkeypatch):
    parsed, parse = [], dvc_patches._parse_by_dvc
    monkeypatch.setattr(dvc_patches, "_parse_by_dvc", lambda *given: parsed.append(given) or parse(*given))
    for load in (load_yaml, strictyaml.load, load_yaml):
        content = load(str(lock))
        stages = (content[0] if isinstance(content, tuple) else content)["stages"]
        assert stages.pop("sources")["cmd"] == "python -m tasks.sources"
    assert len(parsed) == 1
    change(lock)
    assert load_yaml(str(lock))["stages"]["sources"]["cmd"] == "python -m tasks.others"


def test_a_lock_that_is_no_yaml_is_refused_as_by_dvc(tmp_path, replaced):
    (tmp_path / "dvc.lock").write_text("stages: {")
    for load in (load_yaml, strictyaml.load):
        with pytest.raises(DvcException, match=r"dvc\.lock"):
            load(str(tmp_path / "dvc.lock"))


def test_a_lock_that_stays_as_it_was_is_not_written_again(lock, replaced):
    before = lock.stat()
    with modify_yaml(str(lock)) as content:
        content["stages"] = dict(content["stages"])
    assert (lock.stat().st_ino, lock.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_file_of_settings_keeps_its_comments(tmp_path, replaced):
    path = tmp_path / "params.yaml"
    path.write_text("gamma: 0.5 # the paper's\n")
    with modify_yaml(str(path)) as content:
        content["gamma"] = 0.3
    assert path.read_text() == "gamma: 0.3 # the paper's\n"


def test_a_write_that_fails_leaves_what_was_there(lock, tmp_path, replaced, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(FerdError, match=r"dvc\.lock: cannot be written: No space left on device; free space"):
        change(lock)
    with pytest.raises(FerdError, match="No space left"):
        dump_yaml(str(lock), {})
    assert lock.read_bytes() == PART.encode()
    assert list(tmp_path.iterdir()) == [lock]


def test_a_file_that_is_not_there_is_made_even_where_nothing_is_in_it(tmp_path, replaced):
    path = tmp_path / "new.lock"
    with modify_yaml(str(path)) as content:
        assert content == {}
    assert path.read_text() == "{}\n"


def test_no_file_of_another_machine_is_taken_for_one_of_this(tmp_path):
    with pytest.raises(TypeError, match=r"new\.lock: not a file of this machine$"):
        dvc_patches.dump_whole(str(tmp_path / "new.lock"), {}, print, fs=object())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place[1])
def test_each_takes_what_dvcs_own_takes(place):
    ours, by_dvc = (
        [(one.name if one.kind is not one.VAR_KEYWORD else "", one.kind) for one in parameters]
        for parameters in (
            signature(function).parameters.values() for function in (PLACES[place], BY_DVC[place])
        )
    )
    assert ours == by_dvc or place == (CtxDict, "__deepcopy__")


def test_as_a_command_it_is_dvcs_own_and_ends_as_that_does(monkeypatch, dvcs_own):
    def main(arguments):
        assert arguments == ["repro", "sources"]
        assert {place: getattr(*place) for place in PLACES} == PLACES
        return 251

    monkeypatch.setattr("dvc.cli.main", main)
    monkeypatch.setattr(sys, "argv", ["run_dvc", "repro", "sources"])
    monkeypatch.delitem(sys.modules, "tasks.run_dvc", raising=False)
    with pytest.raises(SystemExit, match=r"^251$"):
        runpy.run_module("tasks.run_dvc", run_name="__main__")


STOPPED = """
import sys, time
from dvc.utils import strictyaml
from dvc.utils.serialize import _yaml, modify_yaml
from tasks import dvc_patches

def slow(data, stream):
    stream.write("schema: '2.0'\\n")
    stream.flush()
    time.sleep(600)

dvc_patches.apply()
_yaml._dump = slow
with modify_yaml(sys.argv[1]) as content:
    content["stages"] = {}
"""


def test_a_stop_while_a_lock_is_written_leaves_what_was_there(lock, tmp_path):
    own = environment() | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", STOPPED, str(lock)], env=own) as writing:
        try:
            wait_until(lambda: any(".part-" in name for name in os.listdir(tmp_path)), 300)
            writing.terminate()
        except AssertionError:
            writing.kill()
            raise
    assert lock.read_bytes() == PART.encode()


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
    assert dvc_patches.read_param_file(FS, path, keys, flatten) == dvc_patches._read_by_dvc(
        FS, path, keys, flatten
    )


def test_it_is_parsed_once_and_again_when_it_has_changed(path, tmp_path, monkeypatch):
    parsed, load = [], dvc_patches.load_path
    monkeypatch.setattr(dvc_patches, "load_path", lambda *given: parsed.append(given) or load(*given))
    for _ in range(2):
        found = dvc_patches.read_param_file(FS, path, ["methods.ferd"], flatten=True)
        assert found == {"methods.ferd": {"utae": {"gamma": 0.5}}}
        found["methods.ferd"]["utae"]["gamma"] = 9.0  # who reads it may change what it has
    assert len(parsed) == 1
    (tmp_path / "params.yaml").write_text(TEXT.replace("0.5", "0.25"))
    assert dvc_patches.read_param_file(FS, path, ["methods.ferd.utae.gamma"], flatten=True) == {
        "methods.ferd.utae.gamma": 0.25
    }


@pytest.mark.parametrize("changed", ["its time", "its length", "its inode"])
def test_a_change_is_known_by_any_of_time_length_and_inode(path, tmp_path, changed):
    os.utime(path, (1, 1))
    found = dvc_patches.read_param_file(FS, path, ["methods.ferd.utae.gamma"], True)
    assert found == {"methods.ferd.utae.gamma": 0.5}
    written = tmp_path / "other.yaml" if changed == "its inode" else tmp_path / "params.yaml"
    written.write_text(TEXT.replace("0.5", "0.25" if changed == "its length" else "0.7"))
    os.utime(written, (2, 2) if changed == "its time" else (1, 1))
    written.replace(path)
    found = dvc_patches.read_param_file(FS, path, ["methods.ferd.utae.gamma"], True)
    assert found["methods.ferd.utae.gamma"] == (0.25 if changed == "its length" else 0.7)


def test_what_is_asked_for_in_another_way_is_left_to_dvc(path, monkeypatch):
    asked = []
    monkeypatch.setattr(dvc_patches, "_read_by_dvc", lambda *given, **options: asked.append(options))
    dvc_patches.read_param_file(FS, path, ["methods.ferd"], True, encoding="latin-1")
    assert asked == [{"encoding": "latin-1"}]


def test_a_file_of_another_file_system_is_read_there(path):
    elsewhere = MemoryFileSystem()
    with elsewhere.open(path, "w") as file:
        file.write("a: other\n")
    assert dvc_patches.read_param_file(elsewhere, path, ["a"], flatten=True) == {"a": "other"}


def test_a_file_that_is_gone_is_dvcs_to_name(tmp_path):
    with pytest.raises(FileNotFoundError):
        dvc_patches.read_param_file(FS, str(tmp_path / "none.yaml"), ["a"], flatten=True)


def test_variables_are_copied_as_by_dvc_and_those_that_are_added_stay_in_the_copy(replaced):
    variables = Context({"benchmark": {"size": 8, "rates": [0.1, {"x": 1}]}, "seed": 0})
    copy = Context.clone(variables)
    copy.merge_update(Context({"benchmark": {"student": "resnet8"}, "item": {"seed": "s0"}}))
    assert variables.value == {"benchmark": {"size": 8, "rates": [0.1, {"x": 1}]}, "seed": 0}
    assert copy.value == {
        "benchmark": {"size": 8, "rates": [0.1, {"x": 1}], "student": "resnet8"},
        "seed": 0,
        "item": {"seed": "s0"},
    }
    assert copy.select("benchmark.rates.1.x", unwrap=True) == 1


@pytest.fixture
def holding(tmp_path, replaced):
    """Holds files, as a stage of DVC does; first those that are written, then those that are read."""

    def hold(*write, read=()):
        paths = ([str(tmp_path / name) for name in names] for names in (read, write))
        return rwlock.rwlock(str(tmp_path), localfs, "a command", *paths, False)

    return hold


@pytest.fixture
def listed(tmp_path):
    """The names in the list that are read, and those that are written."""

    def names():
        content = json.loads((tmp_path / "rwlock").read_text())
        return tuple({os.path.basename(path) for path in content.get(kind, {})} for kind in ("read", "write"))

    return names


def test_the_list_is_dvcs_own(tmp_path, holding, listed):
    with holding("out", read=["dep"]):
        assert listed() == ({"dep"}, {"out"})
    assert listed() == (set(), set())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rwlock", "rwlock.lock"]


def test_files_that_are_held_are_not_listed_again(tmp_path, holding, listed):
    with holding("out", read=["dep"]):
        before = (tmp_path / "rwlock").stat().st_ino
        for again in (holding(read=["dep"]), holding(read=["dep", "out"]), holding("out", read=["dep"])):
            with again:
                assert listed() == ({"dep"}, {"out"})
        assert (tmp_path / "rwlock").stat().st_ino == before
        with holding("dep"):  # to be written: that is more than is held
            assert listed() == ({"dep"}, {"out", "dep"})
        with holding("out", read=["other"]), holding("other"):
            assert listed() == ({"dep", "other"}, {"out", "other"})
        assert listed() == ({"dep"}, {"out"})
    with holding(read=["dep"]):
        assert listed() == ({"dep"}, set())


def test_files_of_another_list_are_not_held(tmp_path, holding):
    (tmp_path / "other").mkdir()
    out = [str(tmp_path / "out")]
    with holding("out"), rwlock.rwlock(str(tmp_path / "other"), localfs, "a command", [], out, False):
        assert json.loads((tmp_path / "other/rwlock").read_text())["write"].keys() == {*out}


def test_files_that_were_held_when_a_stage_failed_are_listed_anew(holding, listed):
    with pytest.raises(ValueError, match="failed"), holding("out"):
        raise ValueError("failed")
    assert listed() == (set(), set())
    with holding("out"):
        assert listed() == (set(), {"out"})


def test_another_thread_does_not_hold_what_this_one_does(tmp_path, holding, listed):
    def hold():
        before = (tmp_path / "rwlock").stat().st_ino
        with holding(read=["dep"]):
            return (tmp_path / "rwlock").stat().st_ino == before

    with holding(read=["dep"]), ThreadPoolExecutor() as threads:
        assert not threads.submit(hold).result()
        assert listed() == ({"dep"}, set())


def test_what_another_process_writes_is_refused(tmp_path, holding):
    with holding("out"):
        text = (tmp_path / "rwlock").read_text().replace(f'"pid": {os.getpid()}', f'"pid": {os.getppid()}')
    (tmp_path / "rwlock").write_text(text)
    with pytest.raises(LockError, match=r"out' is busy"), holding(read=["out"]):
        pass


def test_on_a_full_disk_the_list_stays_as_it_was(tmp_path, holding, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with holding("out"):
        before = (tmp_path / "rwlock").read_bytes()
        with monkeypatch.context() as patched:
            patched.setattr(dvc_patches.Path, "write_text", full)
            with pytest.raises(FerdError, match="rwlock: cannot be written: No space"), holding("other"):
                pass
        assert (tmp_path / "rwlock").read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if ".part-" in path.name]


def test_a_list_whose_writing_fails_half_way_stays_as_it_was(tmp_path):
    path = tmp_path / "rwlock"
    path.write_text("{}")
    with (
        pytest.raises(ValueError, match="half-way"),
        dvc_patches._WrittenWhole(localfs).open(path, "w") as file,
    ):
        file.write("{")
        raise ValueError("half-way")
    assert path.read_text() == "{}"


@pytest.mark.parametrize("hardlink", [False, True])
def test_the_list_is_locked_as_dvc_is_told(monkeypatch, hardlink):
    monkeypatch.setattr(dvc_patches, "_edit_by_dvc", lambda *given: given)
    folder, fs, linked = dvc_patches.edit("folder", localfs, hardlink)
    assert (folder, type(fs), linked) == ("folder", dvc_patches._WrittenWhole, hardlink)


def test_a_list_that_dvc_itself_left_empty_is_named_with_what_to_do(tmp_path, holding):
    (tmp_path / "rwlock").touch()
    said = r"JSON structure is corrupted.*; where no other process .*, delete \.dvc/tmp/rwlock$"
    with pytest.raises(FerdError, match=said), plain_errors(), holding("out"):
        pass


def test_a_damaged_lock_is_told_with_what_to_do():
    said = r"^dvc: unable to read: 'dvc\.lock', .* is corrupted; `git checkout dvc\.lock`$"
    with pytest.raises(FerdError, match=said), plain_errors():
        raise DvcException("unable to read: 'dvc.lock', YAML file structure is corrupted")
