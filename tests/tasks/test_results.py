"""Results are grouped over seeds, tabulated and drawn as they stand in their files."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from ferd.datasets import dataset
from ferd.errors import FerdError
from tasks import report, results, table
from tests.conftest import ROOT
from tests.tasks.test_analysis_table import CAT, DOG, an_analysis, write_analyses

PER_CLASS = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]


def write_result(
    folder: Path,
    method: str,
    seed: int,
    average: float,
    student: str | None = "resnet8-w8",
    everything: float | None = None,
    warnings: Sequence[str] = (),
):
    """A result; without ``everything`` (the average under all attacks) one as they were once written."""
    figures = {"n": 500, "average": average, "worst": 0.25, "nsd": 0.5, "per_class": PER_CLASS}
    name = "teacher.json" if student is None else f"{student}/{method}/s{seed}.json"
    path = folder / "results" / "digits" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    attacks = dict.fromkeys(("clean", "pgd20", "autoattack"), figures)
    result = {
        "schema": "ferd-result/1",
        "benchmark": "digits",
        "student": student,
        "method": method,
        "seed": seed,
        "network": "resnet8-w16",
        "attacks": attacks,
    }
    if everything is not None:
        attacks["all"] = figures | {"n": 100, "average": everything}
        result |= {"other_balls": [], "checks": {"warnings": list(warnings)}}
    path.write_text(json.dumps(result))
    rounds = [{"agreement": 0.75}, {"agreement": 0.25 * seed}]
    path.with_suffix(".rounds.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rounds))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    write_result(tmp_path, "teacher", 0, 0.95, student=None)
    write_result(tmp_path, "uniform-noise", 0, 0.125)
    write_result(tmp_path, "no-fae", 0, 0.5)
    for seed, average in enumerate((0.5, 0.625, 0.75)):
        write_result(tmp_path, "ferd", seed, average)
    return tmp_path


def test_teacher_comes_first_and_controls_last(folder):
    assert [group.method for group in results.load("digits")] == [
        "teacher",
        "ferd",
        "no-fae",
        "uniform-noise",
    ]


def test_methods_and_seeds_are_selected_and_the_teacher_stays(folder):
    groups = results.load("digits", methods=["ferd"], seeds=[1])
    assert [(group.method, group.seeds) for group in groups] == [("teacher", [0]), ("ferd", [1])]


def test_spread_is_mean_and_sample_standard_deviation():
    assert results.spread([0.5, 0.625, 0.75]) == (0.625, 0.125)
    assert results.spread([0.5]) == (0.5, None)


def test_cells_are_percent_and_nsd_a_fraction(folder):
    teacher, ferd, *_ = results.load("digits")
    assert table.cell(ferd, "pgd20", "average") == "62.5 ± 12.5"
    assert table.cell(ferd, "pgd20", "nsd") == "0.500 ± 0.000"
    assert table.cell(teacher, "pgd20", "average") == "95.0"


def test_the_size_of_an_attack_is_in_its_heading(folder):
    assert table.heading(results.load("digits"), "autoattack", "average") == "AutoAttack (500) average"


def columns(markdown: str) -> list[list[str]]:
    return [[text.strip() for text in line.split("|")[1:-1]] for line in markdown.splitlines() if "|" in line]


def test_accuracy_under_all_attacks_stands_after_autoattack_on_its_own_number_of_images(folder):
    for seed, everything in enumerate((0.25, 0.5, 0.75)):
        write_result(folder, "ferd", seed, 0.75, everything=everything)
    heads, _, teacher, ferd, *_ = columns(table.markdown("digits"))
    place = heads.index("all attacks (100) average")
    assert heads[place - 1] == "AutoAttack (500) average"
    assert (teacher[place], ferd[place]) == ("", "50.0 ± 25.0")  # the teacher's is an older result


def test_a_group_in_which_one_seed_is_an_older_result_has_an_empty_cell(folder):
    write_result(folder, "ferd", 0, 0.5, everything=0.25)
    _, ferd, *_ = results.load("digits")
    assert "all" not in ferd.attacks
    assert table.cell(ferd, "all", "average") == ""
    assert table.heading([ferd], "all", "average") == "all attacks average"
    found = report.summary({"digits": [ferd]})["benchmarks"]["digits"][0]
    assert found["attacks"].keys() == {"clean", "pgd20", "autoattack"}


def test_warnings_stand_below_every_table(folder, monkeypatch, capsys):
    warning = "not robust: 94.1 % clean but 0.0 % under PGD-20"
    write_result(folder, "no-fae", 0, 0.5, everything=0.0, warnings=[warning])
    line = f"resnet8-w8/no-fae s0: {warning}"
    assert table.markdown("digits").splitlines()[-2:] == ["", f"- warning: {line}"]
    table.print_table("digits")
    assert capsys.readouterr().out.endswith(f"\nwarning: {line}\n")
    groups = results.load("digits")
    assert [group["warnings"] for group in report.summary({"digits": groups})["benchmarks"]["digits"]] == [
        [],
        [],
        [line],
        [],
    ]
    monkeypatch.setattr("sys.argv", ["report"])
    report.main()
    assert f"<li>{line}</li>" in (folder / "results/report/index.html").read_text()


def test_without_warnings_nothing_is_said(folder, monkeypatch, capsys):
    table.print_table("digits")
    monkeypatch.setattr("sys.argv", ["report"])
    report.main()
    assert "arning" not in table.markdown("digits") + capsys.readouterr().out
    assert "Warnings" not in (folder / "results/report/index.html").read_text()


def test_a_benchmark_with_several_students_names_them(folder, monkeypatch, capsys):
    assert columns(table.markdown("digits"))[0][0] == "method"
    write_result(folder, "ferd", 0, 0.25, student="mobilenet_v2")
    rows = columns(table.markdown("digits"))
    assert [row[:3] for row in rows[2:]] == [
        ["", "`teacher`", "1"],
        ["`mobilenet_v2`", "`ferd`", "1"],
        ["`resnet8-w8`", "`ferd`", "3"],
        ["`resnet8-w8`", "`no-fae`", "1"],
        ["`resnet8-w8`", "`uniform-noise`", "1"],
    ]
    assert {len(row) for row in rows} == {len(rows[0])}
    table.print_table("digits")
    assert "mobilenet_v2" in capsys.readouterr().out
    groups = results.load("digits")
    names = [text.get_text() for text in report.overview_chart("digits", groups).axes[0].get_yticklabels()]
    assert names[:3] == ["teacher (1)", "mobilenet_v2 ferd (1)", "resnet8-w8 ferd (3)"]
    monkeypatch.setattr("sys.argv", ["report"])
    report.main()
    page = (folder / "results/report/index.html").read_text()
    assert page.count("<svg") == 1 + 2 * 2
    assert "<h3>PGD-20, mobilenet_v2:" in page


def test_the_markdown_table_has_a_row_a_method(folder):
    lines = table.markdown("digits").splitlines()
    assert len(lines) == 2 + 4
    assert lines[3].startswith("| `ferd` | 3 | 62.5 ± 12.5 |")


def test_agreement_is_the_mean_over_rounds_of_students(folder):
    teacher, ferd, *_ = results.load("digits")
    assert teacher.agreements() == []
    assert ferd.agreements() == [0.375, 0.5, 0.625]
    assert table.agreement(ferd) == "50 ± 12"


def test_a_foreign_file_is_refused(folder):
    (folder / "results/digits/resnet8-w8/ferd/s1.json").write_text("{}")
    with pytest.raises(FerdError, match=r"ferd/s1\.json: not a result"):
        results.load("digits")


def test_the_summary_has_mean_and_std_of_every_figure(folder):
    found = report.summary({"digits": results.load("digits"), "cifar10-mini": []})
    (digits,) = found["benchmarks"].values()
    assert digits[1]["method"] == "ferd"
    assert digits[1]["seeds"] == [0, 1, 2]
    assert digits[1]["attacks"]["pgd20"] == {
        "n": 500,
        "average": {"mean": 0.625, "std": 0.125},
        "worst": {"mean": 0.25, "std": 0.0},
        "nsd": {"mean": 0.5, "std": 0.0},
    }


def test_the_page_stands_alone_and_shows_every_row(folder, monkeypatch):
    monkeypatch.setattr("sys.argv", ["report"])
    report.main()
    page = (folder / "results/report/index.html").read_text()
    assert "62.5 ± 12.5" in page
    assert page.count("<svg") == 3
    assert (folder / "results/report/digits.png").read_bytes().startswith(b"\x89PNG")
    for outside in ('src="http', 'href="http', "@import", "url(http"):
        assert outside not in page


def test_without_results_the_page_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["report"])
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    report.main()
    assert "make demo" in (tmp_path / "results/report/index.html").read_text()
    assert json.loads((tmp_path / "results/summary.json").read_text())["benchmarks"] == {}


def make_page(monkeypatch) -> str:
    monkeypatch.setattr("sys.argv", ["report"])
    report.main()
    return Path("results/report/index.html").read_text()


def test_the_page_shows_how_teacher_and_students_fail(folder, monkeypatch):
    assert "How they fail" not in make_page(monkeypatch)
    write_analyses("digits", [an_analysis(None, "teacher"), an_analysis(), an_analysis(method="no-fae")])
    page = make_page(monkeypatch)
    assert page.count("<h3>How they fail</h3>") == 1
    assert page.count('<div class="scroll"><table>') == 1 + 3
    assert "<td>3 → 5 55 %, 5 → 3 25 %, 5 → 8 12 %</td>" in page
    assert page.count("<svg") == 3 + 1


def test_heat_maps_have_a_panel_an_analysis_on_one_scale_and_values_in_their_cells():
    class_names = dataset("cifar10").class_names
    analyses = [an_analysis(None, "teacher"), an_analysis(), an_analysis(method="no-fae")]
    panels = report.success_chart(analyses, class_names, most=60).axes[:3]
    assert [axes.get_title() for axes in panels] == ["teacher", "ferd", "no-fae"]
    assert {axes.collections[0].get_clim() for axes in panels} == {(0, 60)}
    assert [text.get_text() for text in panels[0].get_yticklabels()] == list(class_names)
    for axes in panels:
        assert [text.get_text() for text in axes.get_xticklabels()] == list(class_names)
        shown = {text.get_position(): text.get_text() for text in axes.texts}
        assert len(shown) == 90  # none on the diagonal
        assert (shown[DOG + 0.5, CAT + 0.5], shown[CAT + 0.5, DOG + 0.5]) == ("55", "25")
        assert axes.get_ylim() == (10, 0)  # the first class on top


def test_each_student_has_a_heat_map_beside_the_teachers_and_methods_not_shown_have_none():
    class_names = dataset("cifar10").class_names
    analyses = [
        an_analysis(None, "teacher"),
        an_analysis("mobilenet_v2"),
        an_analysis("resnet18"),
        an_analysis("resnet34", "no-utae"),
    ]
    found = report.failures(analyses, class_names)
    assert [chart["title"] for chart in found["maps"]] == ["mobilenet_v2", "resnet18"]
    assert len(found["tables"][0].rows) == 4
    assert [chart["title"] for chart in report.failures(analyses[:1], class_names)["maps"]] == ["teacher"]


@pytest.mark.parametrize(("classes", "maps", "values"), [(10, 1, 90), (12, 1, 0), (20, 1, 0), (21, 0, 0)])
def test_more_than_ten_classes_have_no_values_and_more_than_twenty_no_heat_map(classes, maps, values):
    teacher = an_analysis(None, "teacher")
    success = [[None if row == column else 0.5 for column in range(classes)] for row in range(classes)]
    teacher["adaptive_adversary"]["success"] = success
    class_names = dataset("cifar100").class_names[:classes]
    assert len(report.failures([teacher], class_names)["maps"]) == maps
    assert len(report.success_chart([teacher], class_names, most=50).axes[0].texts) == values
