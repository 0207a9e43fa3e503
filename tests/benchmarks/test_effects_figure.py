"""The chart of what each mechanism does."""

import json
import sys
from dataclasses import asdict

import pytest

from benchmarks.effects_figure import by_mechanism, figure, pairwise, rows_of, signed
from benchmarks.factorial import COMBINATIONS
from ferd.errors import FerdError
from tests.benchmarks.test_factorial import ROWS, students
from tests.conftest import ROOT, run_in

PNG = b"\x89PNG\r\n\x1a\n"


def helped(points):
    """Students whose worst class reweighting lifts by so many points."""
    return students(lambda seed, has: 0.5 + points / 100 * has[0] + seed / 100)


def test_rows_have_each_mechanism_by_worst_class_and_average():
    rows = rows_of("whole dose", helped(4), by_mechanism())
    assert {row["students"] for row in rows} == {"whole dose, 2 seeds"}
    found = {(row["compared"], row["figure"]): row["says"] for row in rows}
    assert found == {
        ("reweighting", "worst"): "+4.0 (+4.0 to +4.0)",
        ("reweighting", "average"): "+0.4 (+0.4 to +0.4)",
        ("FAE", "worst"): "+0.0 (+0.0 to +0.0)",
        ("FAE", "average"): "+0.0 (+0.0 to +0.0)",
        ("UTAE", "worst"): "+0.0 (+0.0 to +0.0)",
        ("UTAE", "average"): "+0.0 (+0.0 to +0.0)",
        ("all three", "worst"): "+4.0 (+4.0 to +4.0)",
        ("all three", "average"): "+0.4 (+0.4 to +0.4)",
    }


def test_pairs_of_combinations_are_compared_one_less_the_other():
    compared = pairwise([((False,) * 3, (True, True, False)), (COMBINATIONS[0], (False,) * 3)])
    rows = rows_of("half", helped(4), compared)
    assert {row["compared"]: row["says"] for row in rows if row["figure"] == "worst"} == {
        "none, less reweighting + FAE": "−4.0 (−4.0 to −4.0)",
        "all three, less none": "+4.0 (+4.0 to +4.0)",
    }


def test_a_number_has_its_sign_also_where_it_is_nearly_0():
    assert [signed(points) for points in (1.26, -1.26, -0.01)] == ["+1.3", "−1.3", "−0.0"]


def test_both_panels_have_the_same_axis_over_all_sets():
    drawn = figure({"half": helped(-3), "whole": helped(5)}, by_mechanism())
    layers = [panel.to_dict()["layer"] for panel in drawn.panels.values()]
    assert [*drawn.panels] == ["Worst class", "Average of the classes"]
    for lines in (layer[1]["encoding"]["x"] for layer in layers):
        assert lines["scale"]["domain"] == pytest.approx([-3, 5])


def test_five_sets_cannot_be_told_apart():
    with pytest.raises(FerdError, match="5 sets of students; at most 4"):
        figure({str(number): helped(1) for number in range(5)}, by_mechanism())


def test_the_command_writes_a_picture_of_files_and_names_one_of_too_few_seeds(tmp_path):
    lines = [json.dumps(asdict(student) | {"per_class": ROWS}) for student in helped(1)]
    (tmp_path / "first.jsonl").write_text("\n".join(lines[:8]))
    (tmp_path / "second.jsonl").write_text("\n".join(lines[4:]))  # four of them in both
    command = [sys.executable, "-m", "benchmarks.effects_figure", "--to", str(tmp_path / "effects.png")]
    alone = run_in(ROOT, *command, "--set", "half", str(tmp_path / "first.jsonl"))
    assert alone.returncode == 2
    assert "half: two seeds or more are needed" in alone.stderr
    assert not (tmp_path / "effects.png").exists()
    both = [str(tmp_path / name) for name in ("first.jsonl", "second.jsonl")]
    made = run_in(ROOT, *command, "--set", "half", *both)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "effects.png").read_bytes().startswith(PNG)
    paired = run_in(ROOT, *command, "--set", "half", *both, "--less", "reweighting, FAE", "none")
    assert paired.returncode == 0, paired.stderr
