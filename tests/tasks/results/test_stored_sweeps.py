"""What sweeps left: read as a group of seeds a value, of one benchmark, on the page."""

import hashlib
import json

import pytest

from ferd.config import fingerprint
from ferd.errors import FerdError
from tasks import page, params
from tasks.figures import sweep
from tasks.results import stored_sweeps, tidy
from tasks.results.stored import Group
from tests.conftest import tiny_params

KEY = "threat_model.epsilon"


def attack(worst):
    return {"n": 10, "average": 0.7, "worst": worst, "nsd": 0.1, "per_class": [0.7] * 10}


def write(folder, sweep_id, benchmark="digits", schema=stored_sweeps.SCHEMA, method="ferd", **more):
    points = [
        {
            "value": value,
            "result": {
                "seed": seed,
                "method": method,
                "attacks": {"clean": attack(0.8), "pgd20": attack(worst)},
            },
        }
        for value, worst in ((0.05, 0.6), (0.1, 0.5))
        for seed in (0, 1)
    ]
    content = {"schema": schema, "sweep_id": sweep_id, "benchmark": benchmark, "points": points}
    content |= {"student": "resnet8-w8", "method": method, "key": KEY, **more}
    (folder / "attacks.py").write_text("1")
    content["inputs"] = {
        name: hashlib.sha256(b"1").hexdigest() for name in ("attacks.py", "teacher-elsewhere")
    }
    place = folder / "results/sweeps"
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{sweep_id}.json").write_text(json.dumps(content))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_benchmarks_sweeps_are_its_own_a_group_of_seeds_a_value(here):
    write(here, "digits-resnet8-w8-ferd-threat_model.epsilon-0a1b2c3d")
    write(here, "digits-large-resnet8-w8-ferd-threat_model.epsilon-0a1b2c3d", "digits-large")
    [found] = stored_sweeps.of_benchmark("digits")
    assert (found.benchmark, found.key) == ("digits", "threat_model.epsilon")
    assert {value: group.seeds for value, group in found.groups.items()} == {0.05: [0, 1], 0.1: [0, 1]}
    [path] = stored_sweeps.FOLDER.glob("digits-resnet*")
    assert stored_sweeps.load(path, seeds=[1]).groups[0.1].seeds == [1]


def test_another_file_in_their_place_is_one_line(here):
    write(here, "digits-0a1b2c3d", schema="other/1")
    with pytest.raises(
        FerdError, match=r"digits-0a1b2c3d\.json: schema is 'other/1', .* delete .* run the sweep again"
    ):
        stored_sweeps.of_benchmark("digits")


def test_the_page_has_a_section_for_a_sweep_after_that_of_gamma(here):
    write(here, "digits-resnet8-w8-ferd-threat_model.epsilon-0a1b2c3d")
    settings = params.validate(tiny_params())
    sweeps = stored_sweeps.of_benchmark("digits")
    chapter = page.chapter("digits", settings.benchmark("digits"), settings.methods, [], {"ferd"}, sweeps)
    keys = [section.figure.key for section in chapter.sections]
    assert keys[keys.index("gamma") + 1] == "sweep-0a1b2c3d"
    rows = chapter.figure("sweep-0a1b2c3d").rows
    worst = [row["mean"] for row in rows if (row["attack"], row["figure"]) == ("PGD-20", "worst")]
    assert worst == [60.0, 50.0]


def test_the_benchmarks_own_students_stand_for_the_value_that_they_have(here):
    write(here, "digits-resnet8-w8-ferd-threat_model.epsilon-0a1b2c3d")
    [found] = stored_sweeps.of_benchmark("digits")
    content = tiny_params()
    content["benchmarks"]["digits"]["threat_model"]["epsilon"] = 0.07
    settings = params.validate(content)
    own, other = (
        Group(
            "resnet8-w8",
            method,
            ({"seed": 4, "method": method, "attacks": {"pgd20": attack(worst)}},),
            (here,),
        )
        for method, worst in (("ferd", 0.55), ("no-fae", 0.1))
    )

    def beside(*groups, of=settings):
        return stored_sweeps.beside_own_students(found, of.benchmark("digits"), of.methods, groups)

    assert {value: group.seeds for value, group in beside(other, own).groups.items()} == {
        0.05: [0, 1],
        0.07: [4],
        0.1: [0, 1],
    }
    figure = sweep.over_values(beside(own), tidy.over_values(beside(own).groups))
    worst = [row["mean"] for row in figure.rows if (row["attack"], row["figure"]) == ("PGD-20", "worst")]
    assert worst == pytest.approx([60, 55, 50])
    assert "At 0.07, which params.yaml has: the students of the benchmark itself." in figure.reading
    assert "--values 0.05 0.1 --seeds 0 1" in figure.command  # they are no points of the sweep
    assert beside(other) == found
    content["benchmarks"]["digits"]["threat_model"]["epsilon"] = 0.1
    assert beside(own, of=params.validate(content)) == found  # swept itself


def test_one_that_ran_again_with_other_seeds_is_one_with_what_was_there(here):
    write(here, "digits-resnet8-w8-ferd-threat_model.epsilon-0a1b2c3d")
    old = here / "results/sweeps/digits-resnet8-w8-ferd-threat_model.epsilon-0a1b2c3d.json"
    content = json.loads(old.read_text())
    (here / "attacks.py").write_text("2")  # since the first
    content["inputs"]["attacks.py"] = hashlib.sha256(b"2").hexdigest()
    for point in content["points"]:
        point["result"]["seed"] += 1  # 1 and 2
        point["result"]["attacks"]["pgd20"]["worst"] = 0.2
    again = old.with_name("digits-resnet8-w8-ferd-threat_model.epsilon-00000000.json")
    again.write_text(json.dumps(content | {"sweep_id": again.stem}))
    [found] = stored_sweeps.of_benchmark("digits")
    assert found.sweep_id == again.stem
    assert found.groups[0.05].seeds == found.groups[0.1].seeds == [0, 1, 2]
    assert found.groups[0.1].values("pgd20", "worst") == [
        0.5,
        0.2,
        0.2,
    ]  # of seed 1, that of the present code
    assert found.changed() == ["attacks.py"]  # since seed 0


def test_seeds_of_several_runs_are_in_their_order(here):
    write(here, "digits-resnet8-w8-ferd-threat_model.epsilon-0a1b2c3d")
    [new] = stored_sweeps.FOLDER.iterdir()
    content = json.loads(new.read_text())
    content["inputs"]["attacks.py"] = hashlib.sha256(b"0").hexdigest()  # of earlier code
    for point in content["points"]:
        point["result"]["seed"] += 2
    old = new.with_name("digits-resnet8-w8-ferd-threat_model.epsilon-00000000.json")
    old.write_text(json.dumps(content | {"sweep_id": old.stem}))
    [found] = stored_sweeps.of_benchmark("digits")
    group = found.groups[0.1]
    assert group.seeds == [0, 1, 2, 3]
    assert [path.name for path in group.paths] == [new.name, new.name, old.name, old.name]


def test_sweeps_of_other_settings_are_no_part_of_one_curve(here):
    name = "digits-resnet8-w8-{}-threat_model.epsilon-{}"
    for method, sweep_id, more in (
        ("ferd", "00000000", {}),  # of an earlier version
        ("ferd", "11111111", {"settings": "abcdef0123"}),
        ("ferd", "22222222", {"settings": "fedcba9876"}),
        ("no-fae", "33333333", {"settings": "fedcba9876"}),
    ):
        write(here, name.format(method, sweep_id), method=method, **more)
    settings = params.validate(tiny_params())
    sweeps = stored_sweeps.of_benchmark("digits")
    chapter = page.chapter("digits", settings.benchmark("digits"), settings.methods, [], {"ferd"}, sweeps)
    methods = [
        "ferd (settings not on record)",
        "ferd (settings abcdef01)",
        "ferd (settings fedcba98)",
        "no-fae",
    ]
    titles = [section.figure.title for section in chapter.sections if "Sweep of" in section.figure.title]
    assert titles == [f"Sweep of threat_model.epsilon: {method}, resnet8-w8" for method in methods]
    assert list(chapter.figure("sweeps-threat_model.epsilon-resnet8-w8").legend) == methods


def test_own_students_stand_beside_a_sweep_of_their_settings_alone(here):
    content = tiny_params()
    content["benchmarks"]["digits"]["threat_model"]["epsilon"] = 0.07
    now = params.validate(content)
    own = Group(
        "resnet8-w8", "ferd", ({"seed": 4, "method": "ferd", "attacks": {"pgd20": attack(0.5)}},), (here,)
    )

    def values(**more):
        write(here, "digits-0a1b2c3d", **more)
        [found] = stored_sweeps.of_benchmark("digits")
        return list(
            stored_sweeps.beside_own_students(found, now.benchmark("digits"), now.methods, [own]).groups
        )

    content["benchmarks"]["digits"]["threat_model"]["epsilon"] = 0.5  # is swept
    same = params.validate(content)
    content["benchmarks"]["digits"]["distillation"]["rounds"] += 1
    other = params.validate(content)
    by = {
        name: fingerprint(stored_sweeps.other_settings(of.benchmark("digits"), of.method("ferd"), KEY))
        for name, of in (("same", same), ("other", other))
    }
    assert values() == values(settings=by["same"]) == [0.05, 0.07, 0.1]
    assert values(settings=by["other"]) == [0.05, 0.1]


def test_methods_that_were_swept_alike_stand_beside_each_other(here):
    name = "digits-resnet8-w8-{}-threat_model.epsilon-0a1b2c3d"
    for method in ("ferd", "no-fae"):
        write(here, name.format(method), method=method)
    settings = params.validate(tiny_params())
    sweeps = stored_sweeps.of_benchmark("digits")
    chapter = page.chapter("digits", settings.benchmark("digits"), settings.methods, [], {"ferd"}, sweeps)
    titles = [section.figure.title for section in chapter.sections if "Sweep" in section.figure.title]
    assert titles == [
        "Sweeps of threat_model.epsilon, methods beside each other: resnet8-w8",
        "Sweep of threat_model.epsilon: ferd, resnet8-w8",
        "Sweep of threat_model.epsilon: no-fae, resnet8-w8",
    ]
    figure = chapter.figure("sweeps-threat_model.epsilon-resnet8-w8")
    assert {row["method"] for row in figure.rows} == {"ferd", "no-fae"} == set(figure.legend)
    assert {row["attack"] for row in figure.rows} == {"pgd20"}
    lines = figure.panels["Worst class, %"].to_dict()["layer"][1]
    assert lines["encoding"]["color"]["field"] == "method"


def test_a_sweep_of_an_earlier_state_says_what_changed(here):
    write(here, "digits-resnet8-w8-ferd-threat_model.epsilon-0a1b2c3d")
    [found] = stored_sweeps.of_benchmark("digits")
    rows = tidy.over_values(found.groups)
    assert found.changed() == []
    assert "earlier state" not in sweep.over_values(found, rows).reading
    (here / "attacks.py").write_text("2")
    assert found.changed() == ["attacks.py"]
    assert "since then attacks.py changed" in sweep.over_values(found, rows).reading
