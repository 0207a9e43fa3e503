"""The paper's figures stand as they were given; the difference to ours is judged by our noise."""

import json

import pytest

from tasks import page, params
from tasks.figures import paper as paper_figure
from tasks.results import published, stored
from tests.conftest import ROOT
from tests.tasks.results.test_stored import write_result


@pytest.fixture
def known():
    return params.read(ROOT / "params.yaml")


def figures(rows, student, method, table="main"):
    return {
        f"{row['attack']}.{row['figure']}": row["paper"]
        for row in rows
        if (row["paper_student"], row["method"], row["table"]) == (student, method, table)
    }


def test_the_published_figures_are_these_and_the_rest_is_open(known):
    rows = published.compare(known.benchmark("cifar10"), [])
    assert figures(rows, "resnet18", "ferd") == {
        "clean.average": None, "clean.worst": 65.9, "pgd20.worst": 20.4,
        "autoattack.average": 40.12, "autoattack.worst": 20.8, "autoattack.nsd": 0.325,
    }  # fmt: skip
    assert figures(rows, "mobilenet_v2", "")["pgd20.worst"] is None  # only a range is published
    assert figures(rows, "resnet18", "no-reweighting", "ablation")["autoattack.worst"] == 17.2
    assert all(row["ours"] is None and row["difference"] is None for row in rows)


def test_there_are_no_figures_of_other_images(known):
    assert published.compare(known.benchmark("digits"), []) == []
    assert published.compare(known.benchmark("cifar100"), []) == []


def test_its_methods_are_methods_of_params(known):
    for dataset in published.read()["datasets"].values():
        for table in dataset["tables"]:
            for row in table["rows"]:
                assert "method" not in row or known.method(row["method"])


@pytest.mark.parametrize(("images", "within_noise"), [(10_000, True), (9_990, None)])
def test_a_small_student_stands_beside_the_papers_and_is_said_to_be_another(
    known, tmp_path, monkeypatch, images, within_noise
):
    monkeypatch.chdir(tmp_path)
    for seed, average in enumerate((0.375, 0.5, 0.625)):
        write_result(tmp_path, "ferd", seed, average, student="resnet8-w16", images=images)
    rows = published.compare(known.benchmark("cifar10-small"), stored.load("digits"))
    (row,) = (
        row
        for row in rows
        if (row["table"], row["paper_student"], row["method"]) == ("main", "resnet18", "ferd")
        and (row["attack"], row["figure"]) == ("autoattack", "average")
    )
    assert (row["ours"], row["std"], row["difference"]) == (50.0, 12.5, 9.88)
    assert row["within_noise"] is within_noise  # of part of the test images it cannot be said
    assert row["same_networks"] is False


@pytest.mark.parametrize(("name", "same"), [("cifar10", True), ("cifar10-wrn-34-20", False)])
def test_the_papers_student_of_another_teacher_is_said_to_be_so(known, tmp_path, monkeypatch, name, same):
    monkeypatch.chdir(tmp_path)
    for seed, average in enumerate((0.40, 0.41, 0.42)):
        write_result(tmp_path, "ferd", seed, average, student="resnet18", images=10_000)
    rows = published.compare(known.benchmark(name), stored.load("digits"))
    ours = [row for row in rows if row["difference"] is not None]
    assert {row["same_networks"] for row in ours} == {same}
    said = paper_figure.beside(rows, "a command").reading
    assert ("of another teacher than the paper's" in said) is not same
    assert {page._difference(row).endswith(", another network") for row in ours} == {not same}


def test_noise_is_what_students_t_allows_between_one_run_and_a_mean():
    assert published.within_noise(4.96, 1.0, 3) is True  # 4.3027·1·√(4/3) = 4.968
    assert published.within_noise(-4.98, 1.0, 3) is False
    assert published.within_noise(15.5, 1.0, 2) is True  # 12.706·1·√(3/2) = 15.562
    assert published.within_noise(15.6, 1.0, 2) is False
    assert published.within_noise(2.0, None, 1) is None
    assert published.within_noise(None, 1.0, 3) is None


@pytest.mark.parametrize(
    ("images", "drawn", "gap", "remark"),
    [
        (50, False, paper_figure.TOO_FEW, "another network, part of the images"),
        (1_000, True, "", "another network, part of the images"),
        (10_000, True, "", "another network"),
    ],
)
def test_a_worst_class_of_few_images_is_not_drawn(known, tmp_path, monkeypatch, images, drawn, gap, remark):
    monkeypatch.chdir(tmp_path)
    write_result(tmp_path, "ferd", 0, 0.5, student="resnet8-w16", images=images)
    rows = published.compare(known.benchmark("cifar10-small"), stored.load("digits"))
    figure = paper_figure.beside(rows, "a command")
    assert figure.gap == gap
    panels = json.dumps([panel.to_dict() for panel in figure.panels.values()])
    assert '"of": "paper"' in panels
    assert ('"of": "ours"' in panels) is drawn
    (worst,) = (
        row
        for row in rows
        if (row["table"], row["paper_student"], row["method"]) == ("main", "resnet18", "ferd")
        and (row["attack"], row["figure"]) == ("autoattack", "worst")
    )
    assert page._difference(worst).partition(", ")[2] == remark


def test_our_figures_without_any_of_ours_name_that_gap(known):
    rows = published.compare(known.benchmark("cifar10"), [])
    assert paper_figure.beside(rows, "a command").gap == paper_figure.OPEN
