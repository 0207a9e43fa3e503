"""Tidy rows hold the numbers of the results files, and say what they are of."""

import json
from pathlib import Path

import pytest

from tasks import params
from tasks.results import stored, tidy
from tests.conftest import ROOT
from tests.tasks.results.test_stored import PER_CLASS, write_result
from tests.tasks.test_analysis_table import CAT, CIFAR10, DOG, an_analysis

CLASSES = tuple("0123456789")


@pytest.fixture
def groups(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_result(tmp_path, "teacher", 0, 0.95, student=None)
    for seed, average in enumerate((0.5, 0.625, 0.75)):
        write_result(tmp_path, "ferd", seed, average)
    return stored.load("digits")


def write_rounds(*records: dict, seed: int = 0) -> None:
    path = Path(f"results/digits/resnet8-w8/ferd/s{seed}.rounds.jsonl")
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")


def test_accuracy_is_percent_with_the_sample_deviation_of_the_seeds(groups):
    (row,) = (
        row
        for row in tidy.accuracy(groups)
        if (row["method"], row["attack"], row["figure"]) == ("ferd", "pgd20", "average")
    )
    assert row == {
        "label": "ferd", "student": "resnet8-w8", "method": "ferd", "seeds": 3, "attack": "pgd20",
        "images": 500, "figure": "average", "mean": 62.5, "std": 12.5, "low": 50.0, "high": 75.0,
    }  # fmt: skip


def test_nsd_is_a_fraction_and_one_seed_has_no_deviation(groups):
    nsd = [row for row in tidy.accuracy(groups) if row["method"] == "teacher" and row["figure"] == "nsd"]
    assert {(row["mean"], row["std"], row["low"], row["high"]) for row in nsd} == {(0.5, None, 0.5, 0.5)}


def test_every_class_has_a_row_in_percent(groups):
    rows = [row for row in tidy.per_class(groups, "pgd20", CLASSES) if row["method"] == "ferd"]
    assert [row["class"] for row in rows] == list(CLASSES)
    assert [row["mean"] for row in rows] == [100 * value for value in PER_CLASS]


def test_students_are_named_where_there_are_several_and_by_what_tells_them_apart(groups, tmp_path):
    write_result(tmp_path, "ferd", 0, 0.5, student="resnet8-w32")
    assert [*tidy.labels(stored.load("digits")).values()] == ["teacher", "ferd · w32", "ferd · w8"]
    write_result(tmp_path, "ferd", 0, 0.5, student="mobilenet_v2")
    assert "ferd · resnet8-w32" in tidy.labels(stored.load("digits")).values()


def test_gammas_are_those_of_methods_that_differ_from_ferd_in_gamma_alone():
    assert tidy.gammas(params.read(ROOT / "params.yaml").methods) == {
        "ferd": 0.5, "no-utae": 0.0, "gamma-0_1": 0.1, "gamma-0_3": 0.3, "gamma-0_7": 0.7, "gamma-0_9": 0.9,
    }  # fmt: skip


def test_a_method_that_attacks_another_network_is_no_point_of_the_curve_over_gamma():
    methods = params.read(ROOT / "params.yaml").methods
    at_teacher = methods["no-utae"].utae.model_copy(update={"model": "teacher"})
    other = methods["no-utae"].model_copy(update={"utae": at_teacher})
    assert tidy.gammas({"ferd": methods["ferd"], "no-utae": methods["no-utae"], "other": other}) == {
        "ferd": 0.5,
        "no-utae": 0.0,
    }


def test_rounds_are_means_over_seeds_of_what_was_recorded(groups):
    for seed, loss in enumerate((1.0, 2.0, 3.0)):
        write_rounds(
            {
                "round": 1,
                "agreement": 0.5,
                "proportions": [0.1] * 10,
                "generator": {"loss": loss, "robust_fraction": 0.25},
                "student": {},
            },
            {
                "round": 2,
                "agreement": 1.0,
                "proportions": [0.55, *[0.05] * 9],
                "generator": {},
                "student": {},
            },
            seed=seed,
        )
    rows = {(row["round"], row["quantity"]): (row["mean"], row["std"]) for row in tidy.rounds(groups)}
    assert rows == {
        (1, "agreement"): (50.0, 0.0), (1, "generator loss"): (2.0, 1.0), (1, "robust_fraction"): (25.0, 0.0),
        (2, "agreement"): (100.0, 0.0),
    }  # fmt: skip
    shares = [row["mean"] for row in tidy.proportions(groups, CLASSES) if row["round"] == 2]
    assert shares == pytest.approx([55.0, *[5.0] * 9])


def test_long_schedules_are_thinned_to_at_most_sixty_rounds_with_the_last(groups):
    for seed in range(3):
        write_rounds(*({"round": number, "agreement": 1.0} for number in range(1, 222)), seed=seed)
    rounds = [row["round"] for row in tidy.rounds(groups)]
    assert len(rounds) == 56
    assert rounds[-3:] == [213, 217, 221]


@pytest.mark.parametrize("recorded", [{"proportions": [0.1] * 10}, {}])
def test_a_method_that_draws_every_class_alike_or_has_none_recorded_has_no_proportions(groups, recorded):
    for seed in range(3):
        write_rounds({"round": 1, "agreement": 1.0} | recorded, seed=seed)
    assert tidy.proportions(groups, CLASSES) == []


def test_pairs_of_classes_are_percent_without_the_diagonal():
    rows = tidy.targeted([an_analysis()], CIFAR10)
    found = {(row["source"], row["target"]): row["percent"] for row in rows}
    assert len(found) == 90
    assert found[CIFAR10[CAT], CIFAR10[DOG]] == 55.0
    (cats,) = [row for row in rows if (row["source"], row["target"]) == (CIFAR10[CAT], CIFAR10[DOG])]
    assert (cats["turned"], cats["attacked"]) == (11, 20)


def test_ends_of_utaes_are_percent_of_a_students_predictions():
    ends = {"gamma": 0.5, "distribution": [0.25, 0.75]}
    cat, dog = tidy.utae_outcomes([an_analysis() | {"utae_outcomes": [ends]}], ("cat", "dog"))
    assert (cat["gamma"], cat["class"], cat["percent"]) == (0.5, "cat", 25.0)
    assert (dog["gamma"], dog["class"], dog["percent"]) == (0.5, "dog", 75.0)


def write_cost(seed: int, **figures) -> None:
    path = Path(f"results/digits/resnet8-w8/ferd/s{seed}.distill-cost.json")
    cost = {"device": "cpu", "processor": "one", "threads": 1, "torch": "2"} | figures
    path.write_text(json.dumps(cost), encoding="utf-8")


def test_costs_are_seconds_a_seed_of_the_files_there_are(groups):
    for seed, seconds in enumerate((20, 40, 60)):
        write_cost(seed, seconds=seconds, threads=2)
    write_cost(2, seconds=99, processor_seconds=120, threads=2)  # beside other work
    (row,) = tidy.costs(groups)
    assert (row["method"], row["stage"], row["mean"], row["std"]) == ("ferd", "distill", 40, 20)


@pytest.mark.parametrize("other", [{"device": "H100"}, {"processor": "another"}, {"threads": 2}])
def test_costs_of_several_machines_are_no_mean(groups, other):
    write_cost(0, seconds=10)
    write_cost(1, seconds=30)
    write_cost(2, seconds=1, **other)
    assert [(row["mean"], row["seeds"]) for row in tidy.costs(groups)] == [(20, 2), (1, 1)]


def test_what_an_interrupted_stage_took_is_not_known(groups):
    cost = {"seconds": 1, "device": "cpu", "threads": 1, "torch": "2", "resumed": True}
    Path("results/digits/resnet8-w8/ferd/s0.distill-cost.json").write_text(json.dumps(cost), encoding="utf-8")
    assert tidy.costs(groups) == []
