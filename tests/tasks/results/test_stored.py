"""Results are grouped over seeds and tabulated as they stand in their files."""

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ferd.errors import FerdError
from tasks import params, report, table
from tasks.results import stored
from tests.conftest import ROOT

PER_CLASS = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]


def write_result(
    folder: Path,
    method: str,
    seed: int,
    average: float,
    student: str | None = "resnet8-w8",
    everything: float | None = None,
    warnings: Sequence[str] = (),
    images: int = 500,
):
    """A result; without ``everything`` (the average under all attacks) one as they were once written."""
    figures = {"n": images, "average": average, "worst": 0.25, "nsd": 0.5, "per_class": PER_CLASS}
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
        result |= {"other_balls": [], "checks": {"comparisons": [], "warnings": list(warnings)}}
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
    assert [group.method for group in stored.load("digits")] == [
        "teacher",
        "ferd",
        "no-fae",
        "uniform-noise",
    ]


def test_methods_and_seeds_are_selected_and_the_teacher_stays(folder):
    groups = stored.load("digits", methods=["ferd"], seeds=[1])
    assert [(group.method, group.seeds) for group in groups] == [("teacher", [0]), ("ferd", [1])]


def test_a_result_of_other_classes_than_the_benchmark_has_now_is_named(folder):
    assert len(stored.load("digits", classes=10)) == len(stored.load("digits")) > 1
    with pytest.raises(FerdError, match=r"json: of 10 classes, where params\.yaml has 11; run its evaluate"):
        stored.load("digits", classes=11)


def test_the_first_student_is_the_first_by_the_given_order_that_ferd_has_distilled(folder):
    write_result(folder, "ferd", 0, 0.5, student="mobilenet_v2")
    write_result(folder, "no-fae", 0, 0.5, student="resnet8-w32")
    groups = stored.load("digits")
    found = stored.of_first_student(groups, ["resnet8-w32", "resnet8-w8", "mobilenet_v2"])
    assert {name: group.student for name, group in found.items()} == {
        "teacher": None,
        **dict.fromkeys(("ferd", "no-fae", "uniform-noise"), "resnet8-w8"),
    }
    assert stored.of_first_student(groups, [])["ferd"].student == "mobilenet_v2"


@pytest.mark.parametrize(("device", "seconds"), [("cpu", 60.0), ("NVIDIA H100", 99.0)])
def test_a_stage_alone_takes_its_processor_time_over_its_threads_and_on_a_gpu_what_the_clock_says(
    device, seconds
):
    cost = {"device": device, "threads": 2, "seconds": 99, "processor_seconds": 120}
    assert stored.own_seconds(cost) == seconds


def test_spread_is_mean_and_sample_standard_deviation():
    assert stored.spread([0.5, 0.625, 0.75]) == (0.625, 0.125)
    assert stored.spread([0.5]) == (0.5, None)


def test_cells_are_percent_and_nsd_a_fraction(folder):
    teacher, ferd, *_ = stored.load("digits")
    assert table.cell(ferd, "pgd20", "average") == "62.5 ± 12.5"
    assert table.cell(ferd, "pgd20", "nsd") == "0.500 ± 0.000"
    assert table.cell(teacher, "pgd20", "average") == "95.0"


def test_a_half_is_rounded_as_charts_round_it():
    assert table.percent([0.2135]) == "21.4"  # 100 · 0.2135 is 21.349999999999998


def test_the_size_of_an_attack_is_in_its_heading(folder):
    assert table.heading(stored.load("digits"), "autoattack", "average") == "AutoAttack (500) average"


def columns(markdown: str) -> list[list[str]]:
    """The first table's rows."""
    lines = markdown.split("\n\n")[0].splitlines()
    return [[text.strip() for text in line.split("|")[1:-1]] for line in lines]


def compared(folder, seed, accuracy):
    """PGD-20 on the images of AutoAttack, in a result as ``ferd.validity`` writes it."""
    path = folder / f"results/digits/resnet8-w8/ferd/s{seed}.json"
    result = json.loads(path.read_text())
    comparison = {"weaker": "pgd20", "stronger": "autoattack", "images": 100, "weaker_accuracy": accuracy}
    other = comparison | {"weaker": "cw30", "weaker_accuracy": 0.0}
    path.write_text(json.dumps(result | {"checks": {"comparisons": [other, comparison], "warnings": []}}))


def test_pgd_on_the_images_of_autoattack_stands_after_it(folder, capsys):
    heading = "PGD-20 (the 100 of AutoAttack) average"
    for seed, accuracy in enumerate((0.25, 0.5, 0.75)):
        assert heading not in table.markdown("digits")  # one seed lacks it
        compared(folder, seed, accuracy)
    heads, _, teacher, ferd, *_ = columns(table.markdown("digits"))
    place = heads.index(heading)
    assert heads[place - 1] == "AutoAttack (500) average"
    assert (teacher[place], ferd[place]) == ("", "50.0 ± 25.0")  # the teacher's is an older result
    table.print_table("digits")
    assert "50.0±25.0" in capsys.readouterr().out


def test_accuracy_under_all_attacks_is_in_the_second_table(folder):
    for seed, everything in enumerate((0.25, 0.5, 0.75)):
        write_result(folder, "ferd", seed, 0.75, everything=everything)
    heads, _, teacher, ferd, *_ = columns(table.markdown("digits").split("\n\n")[1])
    place = heads.index("all attacks (100) average")
    assert (teacher[place], ferd[place]) == ("", "50.0 ± 25.0")


def test_a_second_table_has_an_attack_that_was_added(folder):
    path = folder / "results/digits/resnet8-w8/no-fae/s0.json"
    result = json.loads(path.read_text())
    result["attacks"]["pgd50"] = result["attacks"]["pgd20"] | {"average": 0.375}
    path.write_text(json.dumps(result))
    _, second = table.markdown("digits").split("\n\n")
    heads, _, *rows = columns(second)
    assert heads[-2:] == ["pgd50 (500) average", "pgd50 (500) worst"]
    assert [row[-2:] for row in rows if row[0] == "`no-fae`"] == [["37.5", "25.0"]]
    settings = params.read()
    assert report.chapters(settings, {"digits": stored.load("digits")})  # the page, too


def test_a_second_table_has_the_further_figures_and_balls(folder):
    ball = {
        "threat_model": {"epsilon": 4 / 255},
        "attacks": {"pgd20": {"n": 20, "average": 0.5, "worst": 0.25, "nsd": 0.5, "per_class": PER_CLASS}},
    }
    for seed in range(3):
        path = folder / f"results/digits/resnet8-w8/ferd/s{seed}.json"
        result = json.loads(path.read_text())
        result["other_balls"] = [copy.deepcopy(ball)]
        result["other_balls"][0]["attacks"]["pgd20"]["average"] += seed / 8
        path.write_text(json.dumps(result))
    _, second = table.markdown("digits").split("\n\n")
    heads, _, teacher, ferd, *_ = columns(second)
    assert heads == [
        "method", "AutoAttack (500) worst", "AutoAttack (500) NSD",
        "PGD-20 at ε 0.0157 (20) average", "PGD-20 at ε 0.0157 (20) worst",
    ]  # fmt: skip
    assert ferd == ["`ferd`", "25.0 ± 0.0", "0.500 ± 0.000", "62.5 ± 12.5", "25.0 ± 0.0"]
    assert teacher == ["`teacher`", "25.0", "0.500", "", ""]
    path.write_text(json.dumps(result | {"other_balls": []}))  # one seed lacks the ball
    assert columns(table.markdown("digits").split("\n\n")[1])[0] == heads[:3]


def test_a_group_in_which_one_seed_is_an_older_result_has_an_empty_cell(folder):
    write_result(folder, "ferd", 0, 0.5, everything=0.25)
    _, ferd, *_ = stored.load("digits")
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
    groups = stored.load("digits")
    assert [group["warnings"] for group in report.summary({"digits": groups})["benchmarks"]["digits"]] == [
        [],
        [],
        [line],
        [],
    ]
    monkeypatch.setattr("sys.argv", ["report"])
    report.main()
    assert f"<li>{line}</li>" in (folder / "results/report/index.html").read_text()


def test_what_several_groups_were_made_with_is_one_line(folder):
    teacher, ferd, no_fae, noise = stored.load("digits")
    reason = "made with another teacher"
    groups = [
        teacher,
        replace(ferd, outdated={reason: [1, 2], "by hand": [0]}),
        replace(no_fae, outdated={reason: [0]}),
        noise,
    ]
    assert stored.warnings(groups) == [
        f"resnet8-w8/ferd s1, s2; resnet8-w8/no-fae s0: {reason}",
        "resnet8-w8/ferd s0: by hand",
    ]
    assert groups[2].warnings() == [f"resnet8-w8/no-fae s0: {reason}"]


def test_without_warnings_nothing_is_said(folder, monkeypatch, capsys):
    table.print_table("digits")
    monkeypatch.setattr("sys.argv", ["report"])
    report.main()
    assert "arning" not in table.markdown("digits") + capsys.readouterr().out
    assert "Warnings:" not in (folder / "results/report/index.html").read_text()


def test_a_benchmark_with_several_students_names_them(folder, capsys):
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


def test_the_markdown_table_has_a_row_a_method(folder):
    lines = table.markdown("digits").split("\n\n")[0].splitlines()
    assert len(lines) == 2 + 4
    assert lines[3].startswith("| `ferd` | 3 | 62.5 ± 12.5 |")


def test_agreement_is_the_mean_over_rounds_of_students(folder):
    teacher, ferd, *_ = stored.load("digits")
    assert teacher.agreements() == []
    assert ferd.agreements() == [0.375, 0.5, 0.625]
    assert table.agreement(ferd) == "50 ± 12"


def test_a_foreign_file_is_refused(folder):
    (folder / "results/digits/resnet8-w8/ferd/s1.json").write_text("{}")
    with pytest.raises(FerdError, match=r"ferd/s1\.json: schema is None, not 'ferd-result/1'; .* evaluate"):
        stored.load("digits")


def test_the_summary_has_mean_and_std_of_every_figure(folder):
    found = report.summary({"digits": stored.load("digits"), "cifar10-mini": []})
    (digits,) = found["benchmarks"].values()
    assert digits[1]["method"] == "ferd"
    assert digits[1]["seeds"] == [0, 1, 2]
    assert digits[1]["attacks"]["pgd20"] == {
        "n": 500,
        "average": {"mean": 0.625, "std": 0.125},
        "worst": {"mean": 0.25, "std": 0.0},
        "nsd": {"mean": 0.5, "std": 0.0},
    }


def test_without_results_the_page_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["report"])
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    report.main()
    assert "make demo" in (tmp_path / "results/report/index.html").read_text()
    assert json.loads((tmp_path / "results/summary.json").read_text())["benchmarks"] == {}


def test_seeds_that_were_evaluated_otherwise_are_a_warning(folder):
    write_result(folder, "ferd", 1, 0.625, images=250)
    (_, ferd, *_) = stored.load("digits")
    assert ferd.warnings() == [
        f"resnet8-w8/ferd: under {attack} its seeds have different numbers of images, or none; "
        "evaluate them alike"
        for attack in ("clean", "pgd20", "autoattack")
    ]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"other_balls": [{}]}, r"other_balls\[0\]: lacks 'threat_model'"),
        ({"checks": None}, "checks: must be an object"),
        ({"checks": {"warnings": [], "comparisons": [{}]}}, r"comparisons\[0\]: lacks 'weaker'"),
        ({"checks": {"warnings": 5, "comparisons": []}}, "warnings: cannot be 5"),
    ],
)
def test_a_damaged_result_is_one_line(folder, fault, said):
    path = folder / "results/digits/resnet8-w8/ferd/s1.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fault))
    with pytest.raises(FerdError, match=said):
        stored.load("digits")


def test_figures_of_other_classes_or_that_are_no_numbers_are_refused(folder):
    path = folder / "results/digits/resnet8-w8/ferd/s1.json"
    text = path.read_text()
    result = json.loads(text)
    result["attacks"]["pgd20"] = result["attacks"]["pgd20"] | {"per_class": [0.5, 0.5, 0.5]}
    path.write_text(json.dumps(result))
    with pytest.raises(FerdError, match=r"per_class has \[3, 10\] classes"):
        stored.load("digits")
    path.write_text(text.replace('"average": 0.625', '"average": NaN', 1))
    with pytest.raises(FerdError, match="NaN is no number"):
        stored.load("digits")


def test_one_or_two_values_are_shown_as_they_are():
    """A standard deviation of two says nothing that the two do not."""
    shown = [table.over_seeds(values, 1) for values in ([], [1.25], [1.0, 2.0], [1.0, 2.0, 3.0])]
    assert shown == ["", "1.2", "1.0 / 2.0", "2.0 ± 1.0"]
