"""The eight combinations of FERD's mechanisms: their students, and the effects that derive from them."""

import argparse
import json
import sys
from dataclasses import asdict

import pytest

from benchmarks.factorial import (
    COMBINATIONS,
    Effect,
    Student,
    effect,
    effects,
    name_of,
    over_seeds,
    read,
    typed_combination,
    whole_seeds,
    without,
)
from ferd.errors import FerdError
from ferd.paper import FERD
from tests.conftest import ROOT, run_in

ROWS = {"clean": [1.0], "pgd20": [1.0], "cw30": [1.0]}


def students(worst_of):
    """Two seeds; ``worst_of(seed, has)`` is the worst class, all others are right."""
    return [
        Student(seed, has, {"pgd20": [1.0] * 9 + [worst_of(seed, has)]}, "settings")
        for seed in (3, 4)
        for has in COMBINATIONS
    ]


def test_an_effect_is_the_mean_with_less_the_mean_without():
    """3 points of reweighting on one seed and 5 on the other; none of FAE; −2 of UTAE on both."""
    made = students(lambda seed, has: 0.5 + (seed * 2 - 3) / 100 * has[0] - 0.02 * has[2])
    reweighting = effect(made, "reweighting", "pgd20", "worst")
    assert reweighting.mean == pytest.approx(4)
    assert reweighting.low == pytest.approx(4 - 12.706, abs=0.001)  # t of one degree of freedom at 97.5 %
    assert reweighting.high == pytest.approx(4 + 12.706, abs=0.001)
    assert reweighting.p == pytest.approx(0.156, abs=0.001)  # 1 − 2·atan(4)/π
    assert effect(made, "FAE", "pgd20", "worst").mean == pytest.approx(0)
    assert effect(made, "UTAE", "pgd20", "worst").mean == pytest.approx(-2)
    assert effect(made, "UTAE", "pgd20", "average").mean == pytest.approx(-0.2)
    assert effect(made, "all three", "pgd20", "worst").mean == pytest.approx(4 - 2)


def test_what_is_the_same_on_every_seed_is_certain():
    assert over_seeds([2.0, 2.0]) == Effect(2, 2, 2, 0)
    assert over_seeds([0.0, 0.0]) == Effect(0, 0, 0, 1)


def test_a_mechanism_that_helps_beside_another_alone_counts_by_half():
    made = students(lambda seed, has: 0.5 + 0.1 * (has[0] and has[1]) + seed / 100)
    assert effect(made, "reweighting", "pgd20", "worst").mean == pytest.approx(5)
    assert effect(made, "all three", "pgd20", "worst").mean == pytest.approx(10)


def test_of_some_combinations_the_first_is_compared_with_each_other_one():
    two, none = (True, True, False), (False, False, False)
    made = students(lambda seed, has: 0.5 + 0.1 * (has == two) + seed / 100)
    some = whole_seeds([student for student in made if student.has in (two, none)], [two, none])
    assert len(some) == 4 and not whole_seeds(some)
    ((label, of),) = effects(some, [two, none]).items()
    assert label == "reweighting, FAE less none"
    assert of("pgd20", "worst").mean == pytest.approx(10)
    assert list(effects(made, COMBINATIONS)) == ["reweighting", "FAE", "UTAE", "all three"]


def test_a_combination_is_named_by_its_mechanisms():
    assert [typed_combination(name_of(has)) for has in COMBINATIONS] == [*COMBINATIONS]
    with pytest.raises(
        argparse.ArgumentTypeError, match=r'no combination .FAE, UTA.; there are "reweighting'
    ):
        typed_combination("FAE, UTA")


def test_of_many_classes_the_worst_are_a_tenth():
    """As everywhere (``ferd.fairness.worst``)."""
    student = Student(0, COMBINATIONS[0], {"pgd20": [0.0, 0.2, *[1.0] * 18]}, "settings")
    assert student.figure("pgd20", "worst") == pytest.approx(10)


def test_each_combination_leaves_out_what_it_has_not():
    assert len(set(COMBINATIONS)) == 8
    assert without(FERD, (True, True, True)) == FERD
    bare = without(FERD, (False, False, False))
    assert (bare.sampler, bare.synthesis, bare.utae.gamma) == ("uniform", "plain", 0)
    assert without(FERD, (True, True, False)).utae.gamma == 0
    assert without(FERD, (True, False, True)).synthesis == "plain"
    assert without(FERD, (False, True, True)).sampler == "uniform"


def test_a_seed_that_lacks_a_combination_is_left_out():
    made = students(lambda seed, has: 0.5)
    assert {student.seed for student in whole_seeds(made[:-1])} == {3}


def test_a_line_that_is_cut_off_is_named(tmp_path):
    file = tmp_path / "students.jsonl"
    whole = {"seed": 3, "has": [True, True, True], "per_class": ROWS, "settings": "abc"}
    for cut in (
        '{"seed": 3, "ha',
        json.dumps(whole | {"per_class": {}}),
        json.dumps(whole | {"has": [True]}),
    ):
        file.write_text(f"{json.dumps(whole)}\n{cut}")
        with pytest.raises(FerdError, match=r"students.jsonl:2: no line of a student; remove it"):
            read(file)
    assert read(tmp_path / "none.jsonl") == {}


def test_a_student_that_stands_there_twice_counts_once(tmp_path):
    file = tmp_path / "students.jsonl"
    lines = [json.dumps(asdict(Student(3, has, ROWS, "abc"))) for has in COMBINATIONS]
    file.write_text("\n".join([*lines, lines[0]]))
    assert len(whole_seeds([*read(file).values()])) == 8


def test_students_are_those_of_the_pipeline_and_are_not_made_twice(finished_copy, change_params):
    def run(*seeds):
        command = (
            sys.executable,
            "-m",
            "benchmarks.factorial",
            "digits",
            "--to",
            "made/students.jsonl",
            *seeds,
        )
        return run_in(finished_copy, *command, PYTHONPATH=f"{finished_copy}:{ROOT}")

    assert "'-1' is no seed; give whole numbers, 0 or more" in run("--seeds", "-1").stderr
    alone = run("--seeds", "0")
    assert alone.returncode != 0
    assert "two seeds or more are needed with all combinations" in alone.stderr
    file = finished_copy / "made" / "students.jsonl"
    lines = file.read_text().splitlines()
    assert len(lines) == 8
    of_ferd = finished_copy / "results" / "digits" / "resnet8-w8" / "ferd" / "s0.json"
    expected = json.loads(of_ferd.read_text())["attacks"]
    whole = read(file)[0, (True, True, True)]
    shared = expected.keys() & whole.per_class.keys()
    assert shared >= {"clean", "pgd20"}
    for attack in shared:
        assert whole.per_class[attack] == expected[attack]["per_class"]

    both = [*lines, *(line.replace('"seed": 0', '"seed": 1') for line in lines)]
    file.write_text("\n".join(both) + "\n")
    done = run("--seeds", "0")
    assert done.returncode == 0, done.stderr
    assert file.read_text().splitlines() == both
    assert done.stdout.startswith("2 seeds: 0, 1\n")
    assert "| reweighting, FAE, UTAE | " in done.stdout
    assert "| UTAE | " in done.stdout
    two = run("--seeds", "0", "--combinations", "reweighting, FAE", "none")
    assert two.returncode == 0 and file.read_text().splitlines() == both
    assert "| reweighting, FAE less none | " in two.stdout and "| UTAE | " not in two.stdout

    change_params(finished_copy, 0.3, "methods", "ferd", "utae", "gamma")
    other = run("--seeds", "0")
    assert "students.jsonl: seed 0 is of other settings or another teacher; name another" in other.stderr
    assert other.returncode != 0 and file.read_text().splitlines() == both
