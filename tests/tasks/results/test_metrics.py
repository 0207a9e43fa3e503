"""DVC's own commands show the results: a row a method, a column a figure."""

import csv
import json
import sys
from pathlib import Path

from tasks import params
from tasks.results import metrics, stored
from tests.conftest import ROOT, run_in
from tests.tasks.results.test_stored import write_result


def test_dvc_shows_a_row_a_method(finished):
    shown = run_in(finished, sys.executable, "-m", "dvc", "metrics", "show", "--json")
    assert shown.returncode == 0, shown.stderr
    rows = json.loads(shown.stdout)[""]["data"]
    assert set(rows) == {
        "results/metrics/digits/teacher.json",
        "results/metrics/digits/resnet8-w8/ferd.json",
        "results/metrics/digits/resnet8-w8/uniform-noise.json",
    }
    result = json.loads((finished / "results/digits/resnet8-w8/ferd/s0.json").read_text())
    shown_ferd = rows["results/metrics/digits/resnet8-w8/ferd.json"]["data"]
    assert shown_ferd["pgd20"]["worst"] == result["attacks"]["pgd20"]["worst"]


def test_the_tables_of_plots_hold_the_results(finished):
    result = json.loads((finished / "results/digits/resnet8-w8/ferd/s0.json").read_text())
    with (finished / "results/plots/digits/classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["ferd"]) / 100 for row in rows] == result["attacks"]["pgd20"]["per_class"]
    with (finished / "results/plots/digits/agreement.csv").open() as file:
        assert [row["round"] for row in csv.DictReader(file)] == ["1", "2", "3"]


def test_metrics_are_means_over_seeds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, average in enumerate((0.5, 0.75)):
        write_result(tmp_path, "ferd", seed, average)
    metrics.write_metrics({"digits": stored.load("digits")})
    written = json.loads(Path("results/metrics/digits/resnet8-w8/ferd.json").read_text(encoding="utf-8"))
    assert written["pgd20"] == {"average": 0.625, "worst": 0.25, "nsd": 0.5}


def test_the_table_over_gamma_names_the_students_that_have_several_values(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = params.read(ROOT / "params.yaml")

    def written():
        metrics.write_plots({"digits": stored.load("digits")}, known.benchmarks, known.methods)
        return list(
            csv.DictReader(Path("results/plots/digits/gamma.csv").read_text(encoding="utf-8").splitlines())
        )

    write_result(tmp_path, "ferd", 0, 0.5, student="resnet8-w16")
    write_result(tmp_path, "no-utae", 0, 0.25, student="resnet8-w16")
    write_result(tmp_path, "ferd", 0, 0.75, student="resnet8-w32")
    assert [(row["gamma"], row["average"]) for row in written()] == [("0.0", "25.0"), ("0.5", "50.0")]
    write_result(tmp_path, "no-utae", 0, 0.125, student="resnet8-w32")
    first, _ = written()
    assert (first["average · resnet8-w16"], first["average · resnet8-w32"]) == ("25.0", "12.5")


def test_a_pivot_has_a_row_a_value():
    rows = [
        {"gamma": 0.0, "figure": "worst", "mean": 1.0},
        {"gamma": 0.0, "figure": "average", "mean": 2.0},
        {"gamma": 0.5, "figure": "worst", "mean": 3.0},
    ]
    assert metrics._pivot(rows, "gamma", "figure") == [
        {"gamma": 0.0, "worst": 1.0, "average": 2.0},
        {"gamma": 0.5, "worst": 3.0},
    ]
