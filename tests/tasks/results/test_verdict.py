"""Verdicts by literal numbers: the same bits where the environment is the same, tolerances where not."""

from copy import deepcopy
from math import sqrt

import pytest

from tasks.params import Tolerances
from tasks.results.verdict import (
    ENVIRONMENT,
    Outcome,
    Pair,
    compare,
    faults,
    headline,
    markdown,
    same_environment,
    tolerance,
)

TOLERANCES = Tolerances(average=0.05, worst=0.1, nsd=0.5, standard_errors=3.0)
THREAT = {"norm": "linf", "epsilon": 0.1, "step_size": 0.025, "steps": 20}
RECORD = dict.fromkeys(ENVIRONMENT, "one") | {"device": "cpu", "seconds": 1.0, "cores": 2}


def result(seed=0, average=0.74, worst=0.5, nsd=0.16, method="ferd", n=500, per_class=(0.74, 0.5)):
    figures = {"n": n, "average": average, "worst": worst, "nsd": nsd, "per_class": per_class}
    return {
        "benchmark": "digits",
        "student": None if method == "teacher" else "resnet8-w8",
        "method": method,
        "seed": seed,
        "threat_model": THREAT,
        "attacks": {"pgd20": figures},
        "other_balls": [],
    }


def with_fgsm(**figures):
    """A result that has another attack, and so other checks."""
    one = result(**figures)
    return one | {"attacks": one["attacks"] | {"fgsm": one["attacks"]["pgd20"]}, "checks": "of fgsm too"}


def outcomes(committed, tonight, same):
    """{figure: outcome} of one result."""
    return {
        verdict.figure: verdict.outcome for verdict in compare([Pair(committed, tonight, same)], TOLERANCES)
    }


@pytest.mark.parametrize("same", [True, False])
def test_equal_figures_are_identical_wherever_they_were_computed(same):
    assert set(outcomes(result(), result(), same).values()) == {Outcome.IDENTICAL}


def test_in_one_environment_the_last_bit_counts():
    after = result(average=0.74 + 2**-52)
    assert outcomes(result(), after, same=True)["average"] == Outcome.CHANGED
    assert outcomes(result(), after, same=False)["average"] == Outcome.WITHIN


def test_a_lower_worst_class_fell_and_a_higher_one_changed():
    assert outcomes(result(), result(worst=0.48), same=True)["worst"] == Outcome.FELL
    assert outcomes(result(), result(worst=0.52), same=True)["worst"] == Outcome.CHANGED
    assert outcomes(result(), result(average=0.7), same=True)["average"] == Outcome.CHANGED


def test_in_one_environment_one_seed_that_fell_is_not_made_good_by_another():
    pairs = [
        Pair(result(0, worst=0.5), result(0, worst=0.4), True),
        Pair(result(1, worst=0.5), result(1, worst=0.6), True),
    ]
    worst = [verdict for verdict in compare(pairs, TOLERANCES) if verdict.figure == "worst"]
    assert [verdict.outcome for verdict in worst] == [Outcome.FELL]


def test_where_one_seed_is_of_another_environment_all_are_compared_by_the_tolerance():
    pairs = [
        Pair(result(0), result(0, worst=0.45), True),
        Pair(result(1), result(1, worst=0.45), False),
    ]
    assert headline(compare(pairs, TOLERANCES)) == "1 within tolerance, 2 identical"


@pytest.mark.parametrize(
    ("worst", "outcome"),
    [
        (0.4, Outcome.WITHIN),
        (0.39, Outcome.FELL),
        (0.6, Outcome.WITHIN),
        (0.61, Outcome.CHANGED),
    ],
)
def test_elsewhere_one_seed_may_differ_by_the_given_tolerance(worst, outcome):
    assert outcomes(result(worst=0.5), result(worst=worst), same=False)["worst"] == outcome


def test_the_tolerance_of_nsd_is_a_part_of_the_committed():
    assert outcomes(result(nsd=0.16), result(nsd=0.24), same=False)["nsd"] == Outcome.WITHIN
    assert outcomes(result(nsd=0.16), result(nsd=0.25), same=False)["nsd"] == Outcome.CHANGED


def test_several_seeds_are_compared_as_means_by_their_standard_error():
    # s = 0.1 on both sides, three seeds each: 3·√(0.01/3 + 0.01/3)
    spread = [0.4, 0.5, 0.6]
    assert tolerance("worst", spread, spread, TOLERANCES) == pytest.approx(3 * sqrt(0.02 / 3))
    # s = 0.01: the given tolerance is more
    assert tolerance("worst", [0.49, 0.5, 0.51], [0.49, 0.5, 0.51], TOLERANCES) == 0.1
    for shift, outcome in ((-0.24, Outcome.WITHIN), (-0.25, Outcome.FELL)):
        pairs = [
            Pair(result(seed, worst=worst), result(seed, worst=worst + shift), False)
            for seed, worst in enumerate(spread)
        ]
        (verdict,) = [found for found in compare(pairs, TOLERANCES) if found.figure == "worst"]
        assert (verdict.outcome, verdict.seeds) == (outcome, 3)
        assert (verdict.committed, verdict.tonight) == (pytest.approx(0.5), pytest.approx(0.5 + shift))


def test_what_was_not_committed_is_new_and_no_fault():
    verdicts = compare([Pair(None, result(), False)], TOLERANCES)
    assert {verdict.outcome for verdict in verdicts} == {Outcome.NEW}
    assert faults(verdicts) == []
    verdicts = compare([Pair(result(), with_fgsm(), True)], TOLERANCES)
    assert [(verdict.attack, verdict.outcome) for verdict in verdicts] == [
        *[("fgsm", Outcome.NEW)] * 3,
        *[("pgd20", Outcome.IDENTICAL)] * 3,
    ]


@pytest.mark.parametrize("order", [1, -1])
def test_a_new_seed_may_have_attacks_that_another_has_not(order):
    pairs = [Pair(None, result(), True), Pair(None, with_fgsm(seed=1, worst=0.25), True)][::order]
    found = {
        (one.attack, one.seeds, one.tonight) for one in compare(pairs, TOLERANCES) if one.figure == "worst"
    }
    assert found == {("pgd20", 2, 0.375), ("fgsm", 1, 0.25)}


def test_other_images_another_ball_or_a_missing_attack_cannot_be_compared():
    assert set(outcomes(result(), result(n=100), same=False).values()) == {Outcome.INCOMPARABLE}
    other_ball = result() | {"threat_model": THREAT | {"epsilon": 0.2}}
    assert set(outcomes(result(), other_ball, same=False).values()) == {Outcome.INCOMPARABLE}
    before = result()
    before["attacks"]["fgsm"] = before["attacks"]["pgd20"]
    missing = [
        verdict for verdict in compare([Pair(before, result(), True)], TOLERANCES) if verdict.attack == "fgsm"
    ]
    assert [(verdict.outcome, verdict.tonight) for verdict in missing] == [(Outcome.INCOMPARABLE, None)] * 3


def test_further_balls_are_compared_too():
    before = result()
    before["other_balls"] = [
        {"threat_model": THREAT | {"epsilon": 0.05}, "attacks": deepcopy(before["attacks"])}
    ]
    after = deepcopy(before)
    after["other_balls"][0]["attacks"]["pgd20"]["worst"] = 0.1
    fell = [
        verdict for verdict in compare([Pair(before, after, True)], TOLERANCES) if verdict.outcome == "fell"
    ]
    assert [(verdict.attack, verdict.figure) for verdict in fell] == [("pgd20 at ε 0.05", "worst")]


@pytest.mark.parametrize(
    "after",
    [result(per_class=[0.5, 0.74]), with_fgsm(per_class=[0.5, 0.74]), result() | {"checks": "others"}],
)
@pytest.mark.parametrize("further", [[], [Pair(None, result(seed=1), True)]])
def test_in_one_environment_the_rest_of_the_file_counts_too(after, further):
    (verdict, *_) = compare([Pair(result(), after, True), *further], TOLERANCES)
    assert (verdict.outcome, verdict.figure) == (Outcome.CHANGED, "anything else in the file")
    assert Outcome.CHANGED not in outcomes(result(), after, same=False).values()


def test_what_makes_an_environment():
    assert same_environment([RECORD], [RECORD | {"seconds": 9.0, "cores": 64}])
    for key in ENVIRONMENT:
        assert not same_environment([RECORD, RECORD], [RECORD, RECORD | {key: "other"}])
    older = {key: value for key, value in RECORD.items() if key != "processor"}
    assert not same_environment([older], [older])
    assert not same_environment([None], [RECORD])
    on_gpu = RECORD | {"device": "NVIDIA A100"}
    assert not same_environment([on_gpu], [on_gpu])


@pytest.mark.parametrize(
    "key", ["device", "processor", "threads", "torch", "numpy", "pyautoattack", "scikit-learn"]
)
def test_another_value_of_any_of_these_is_another_environment(key):
    assert not same_environment([RECORD | {key: "one"}], [RECORD | {key: "other"}])


def test_the_worst_comes_first_in_words_and_in_the_table():
    pairs = [
        Pair(result(method="teacher"), result(method="teacher"), True),
        Pair(result(), result(worst=0.4, average=0.75), True),
    ]
    verdicts = compare(pairs, TOLERANCES)
    assert headline(verdicts) == "1 fell, 1 changed, 4 identical"
    assert faults(verdicts) == [
        "digits/resnet8-w8/ferd pgd20 worst: fell, 40.0 where 50.0 is committed",
        "digits/resnet8-w8/ferd pgd20 average: changed, 75.0 where 74.0 is committed",
    ]
    rows = markdown(verdicts).splitlines()
    assert len(rows) == 2 + 6
    assert rows[2] == "| **fell** | `digits/resnet8-w8/ferd` | pgd20 | worst | 1 | 50.0 | 40.0 | 0 |"
    assert rows[-1] == "| identical | `digits/resnet8-w8/ferd` | pgd20 | nsd | 1 | 0.160 | 0.160 | 0 |"


def test_where_nothing_is_compared_nothing_is_tolerated():
    for pair in (Pair(None, result(), True), Pair(result(), result(n=100), True)):
        rows = markdown(compare([pair], TOLERANCES)).splitlines()[2:]
        assert [row.split("|")[-2].strip() for row in rows] == [""] * 3


def test_a_seed_that_was_not_committed_is_new_beside_those_that_were():
    found = compare([Pair(result(), result(), True), Pair(None, result(seed=1, worst=0.0), True)], TOLERANCES)
    assert headline(found) == "3 new, 3 identical"
    assert [verdict.tonight for verdict in found if verdict.figure == "worst"] == [0.0, 0.5]
