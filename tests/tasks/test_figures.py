"""Figures: which rows they are drawn from, what they say where something is missing, how they are saved."""

import base64
import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ferd.errors import FerdError
from tasks import params
from tasks.figures import classes, cost, failures, gamma, images, robustness, rounds, style, sweep
from tasks.figures.figure import Figure, panel
from tasks.figures.style import METHODS, explained, label_colours
from tasks.results.stored import Group
from tasks.results.stored_sweeps import SweepResults


def accuracy(method, average, worst, std=None, attack="pgd20", student="resnet8-w8", **more):
    common = {
        "label": method,
        "student": student,
        "method": method,
        "seeds": 3,
        "attack": attack,
        "images": 500,
    }
    return [
        {**common, **more, "figure": figure, "mean": mean, "std": std, "low": mean, "high": mean}
        for figure, mean in (("average", average), ("worst", worst), ("nsd", 0.1))
    ]


ROWS = [
    *accuracy("teacher", 92.0, 78.0),
    *accuracy("ferd", 75.0, 50.0, std=2.0),
    *accuracy("no-fae", 72.0, 39.0),
    *accuracy("no-utae", 74.0, 54.0),
    *accuracy("real-data", 83.0, 57.0),
]


def marks(chart):
    return [layer["mark"]["type"] for layer in chart.to_dict()["layer"]]


def test_the_headline_has_a_bar_a_method_the_teachers_line_and_numbers():
    figure = robustness.headline(ROWS, "make it")
    assert [*figure.panels] == ["Worst class", "Average of the classes"]
    assert marks(figure.panels["Worst class"]) == ["rule", "bar", "rule", "text"]
    texts = {row["method"]: row["text"] for row in figure.rows if row["figure"] == "worst"}
    assert (texts["ferd"], texts["no-fae"]) == ("50.0 ± 2.0", "39.0")


def test_the_front_is_of_methods_without_real_data_that_nothing_beats_in_both():
    front = {row["method"]: row["front"] for row in robustness.pivot(ROWS)}
    assert front == {"teacher": False, "ferd": True, "no-fae": False, "no-utae": True, "real-data": False}


def test_equal_points_are_both_on_the_front():
    rows = [*accuracy("ferd", 75.0, 50.0), *accuracy("no-utae", 75.0, 50.0)]
    assert [row["front"] for row in robustness.pivot(rows)] == [True, True]


def per_class(method, *values):
    return [
        {"label": method, "student": "s", "method": method, "class": str(number), "mean": mean, "std": None,
         "low": mean, "high": mean}
        for number, mean in enumerate(values)
    ]  # fmt: skip


def test_classes_stand_in_the_order_of_the_teachers_weakness():
    rows = [*per_class("teacher", 90.0, 20.0, 50.0), *per_class("ferd", 10.0, 15.0, 30.0)]
    assert classes.weakest_first(rows) == ["1", "2", "0"]
    figure = classes.profiles(rows, "make it")
    assert [*figure.panels] == ["ferd"]
    assert marks(figure.panels["ferd"]) == ["bar", "bar", "rule"]


def test_gains_are_points_against_ferd_of_the_same_student():
    rows = [*per_class("ferd", 10.0, 15.0), *per_class("no-fae", 4.0, 15.0), *per_class("teacher", 9.0, 9.0)]
    assert [(row["method"], row["class"], row["points"]) for row in classes.differences(rows)] == [
        ("no-fae", "0", -6.0),
        ("no-fae", "1", 0.0),
    ]


def test_gamma_is_drawn_from_two_values_on_and_names_what_was_not_run():
    gamma_of = {"no-utae": 0.0, "ferd": 0.5, "gamma-0_9": 0.9}
    zero, half = accuracy("no-utae", 74.0, 54.0, gamma=0.0), accuracy("ferd", 75.0, 50.0, gamma=0.5)
    alone = gamma.over_gamma(half, gamma_of, "make it")
    assert not alone.panels
    assert alone.gap == "Needs two values of γ or more. No student for γ = 0, γ = 0.9."
    assert gamma.over_gamma(half, {"ferd": 0.5}, "make it").gap == "Needs two values of γ or more."
    figure = gamma.over_gamma([*zero, *half], gamma_of, "make it")
    assert len(figure.panels) == 3
    assert figure.gap == "No student for γ = 0.9."
    assert {row["attack"] for row in figure.rows} == {"PGD-20"}


def swept(key, *values):
    group = Group("resnet8-w8", "ferd", ({"seed": 0}, {"seed": 2}), (Path(), Path()))
    return SweepResults(
        f"digits-{key}-0a1b2c3d", "digits", "resnet8-w8", "ferd", key, {}, dict.fromkeys(values, group)
    )


def across(figure):
    chart = figure.panels["Worst class, %"].to_dict()
    return next(layer["encoding"]["x"] for layer in chart["layer"] if layer["mark"]["type"] == "point")


def test_a_sweep_is_drawn_over_its_numbers_and_says_how_to_run_it_again():
    rows = [row for value in (0.05, 0.1) for row in accuracy("ferd", 75.0, 50.0, value=value)]
    figure = sweep.over_values(swept("threat_model.epsilon", 0.05, 0.1), rows)
    assert (figure.key, len(figure.panels), len(figure.rows)) == ("sweep-0a1b2c3d", 3, 6)
    assert across(figure)["type"] == "quantitative"
    assert across(figure)["axis"]["values"] == [0.05, 0.1]
    assert figure.command == (
        "python -m flows.sweep --benchmark digits --student resnet8-w8 --method ferd "
        "--key threat_model.epsilon --values 0.05 0.1 --seeds 0 2"
    )


def test_words_and_switches_of_a_sweep_stand_side_by_side_in_order():
    rows = [row for value in (False, True) for row in accuracy("ferd", 75.0, 50.0, value=value)]
    figure = sweep.over_values(swept("fae", False, True), rows)
    assert (across(figure)["type"], across(figure)["sort"]) == ("nominal", [False, True])
    assert "--values false true" in figure.command


def test_one_value_of_a_sweep_is_a_named_gap():
    figure = sweep.over_values(swept("utae.gamma", 0.5), accuracy("ferd", 75.0, 50.0, value=0.5))
    assert not figure.panels
    assert figure.gap == "Needs two values or more."
    assert "--values 0.5 ANOTHER --seeds" in figure.command  # the same command again would change nothing


@pytest.mark.parametrize(("number", "panels", "layers"), [(10, 1, 3), (12, 1, 1), (21, 0, 0)])
def test_more_than_ten_classes_have_no_numbers_and_more_than_twenty_no_heat_map(number, panels, layers):
    names = [str(c) for c in range(number)]
    rows = [
        {"student": "", "method": "teacher", "seed": 0, "source": a, "target": b, "percent": 50.0}
        | {"turned": 1, "attacked": 2}
        for a in names
        for b in names
        if a != b
    ]
    figure = failures.pairs(rows, names, "make it")
    assert len(figure.panels) == panels
    assert bool(figure.gap) == (not panels)
    assert len(figure.rows) == number * (number - 1)  # the download has them all
    assert [len(marks(chart)) for chart in figure.panels.values()] == [layers] * panels


def test_pictures_are_no_chart_to_be_written(tmp_path):
    figure = Figure("images", "Images", "", "x", pictures={"ferd": "data:image/jpeg;base64,"})
    with pytest.raises(FerdError, match="figure images: pictures, not a chart: results/"):
        figure.save(tmp_path / "figure.png")


@pytest.mark.parametrize(
    "figure",
    [
        robustness.headline([], "x"),
        robustness.trade_off([], "x"),
        classes.profiles([], "x"),
        classes.gains([], "x"),
        gamma.over_gamma([], {"ferd": 0.5}, "x"),
        failures.pairs([], ["a"], "x"),
        failures.utae_ends([], ["a"], "x"),
        rounds.proportions([], ["a"], "x"),
        rounds.measures([], "x"),
    ],
    ids=lambda figure: figure.key,
)
def test_without_results_a_figure_is_a_named_gap_with_a_command(figure, tmp_path):
    assert figure.title and figure.gap and figure.command == "x"
    assert not figure.panels and not figure.rows
    with pytest.raises(FerdError, match=f"figure {figure.key}: nothing to draw: "):
        figure.save(tmp_path / "figure.png")


def test_the_download_is_the_rows():
    figure = robustness.headline(ROWS, "make it")
    read = list(csv.DictReader(io.StringIO(figure.csv())))
    assert len(read) == len(figure.rows) == 10
    assert [float(row["mean"]) for row in read] == [row["mean"] for row in figure.rows]
    assert read[0]["std"] == ""


def test_a_spec_says_what_it_shows_and_cannot_end_its_script():
    chart = panel([{"x": "</script><b>"}]).mark_point().encode(x="x:N")
    ((title, text),) = Figure("key", "Title", "How to read it.", "make it", panels={"Panel": chart}).specs()
    assert title == "Panel"
    assert "</" not in text
    spec = json.loads(text)
    assert spec["description"] == "Title. Panel. How to read it."
    assert "config" not in spec


def test_figures_are_saved_as_png_and_pdf_and_nothing_else(tmp_path):
    figure = robustness.headline(ROWS, "make it")
    for name, start in (("f.png", b"\x89PNG"), ("f.pdf", b"%PDF")):
        figure.save(tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)
    with pytest.raises(FerdError, match=r"f\.gif: pictures are written as \.png or \.pdf"):
        figure.save(tmp_path / "f.gif")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.pdf", "f.png"]


def test_image_grids_are_shown_in_their_colours_or_said_to_be_missing_or_too_large(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    plain = np.full((30, 20, 3), (200, 30, 90), dtype=np.uint8)
    for name, pixels in (("plain", plain), ("noise", noise)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.images.png")
    groups = {
        method: Group("resnet8-w8", method, ({"seed": 0},), (tmp_path / f"{name}.json",))
        for method, name in (("ferd", "plain"), ("no-fae", "noise"))
    }
    figure = images.grids(groups, ["zero", "one"], "make it")
    assert figure.gap.startswith("Not shown: no-fae (too large for this page).")
    ((title, source),) = figure.pictures.items()
    assert title.startswith("FERD")
    kind, data = source.split(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as shown:
        assert shown.size == (20, 30)
        assert np.abs(np.asarray(shown).astype(int) - plain).max() <= 3
    elsewhere = replace(groups["ferd"], paths=(tmp_path / "s1.json",))
    nothing = images.grids({"ferd": elsewhere}, ["zero"], "make it")
    assert nothing.gap.startswith("Not shown: ferd (no grid on this machine), no-fae (no grid")


def test_methods_of_other_papers_are_baselines_and_all_others_variants():
    kinds = {name: style.kind(name) for name in params.read().methods}
    baselines = {name for name, kind in kinds.items() if kind == "baseline"}
    others = {"rslad", "fair-rslad", "absld"}
    assert baselines == {"dfhl-rs", *others, *(f"{name}-uniform" for name in others)}
    assert kinds["mixed-reweighting"] == kinds["second-last-block"] == kinds["no-utae"] == "variant of FERD"
    assert (style.kind("ferd"), style.kind("teacher"), style.kind("real-data")) == (
        "FERD",
        "teacher",
        "control",
    )


def test_both_themes_style_the_same_things():
    light, dark = style.CONFIG["light"], style.CONFIG["dark"]
    assert light.keys() == dark.keys()
    assert light["style"].keys() == dark["style"].keys()


def test_no_two_names_of_a_legend_look_alike():
    methods = {f"ferd · w{width}": "ferd" for width in (8, 16, 32)}
    methods |= {name: name for name in (*METHODS, *(f"gamma-0_{digit}" for digit in range(1, 10)))}
    legend = explained(label_colours(methods), shapes=True)
    assert len(set(legend.values())) == len(legend) == len(methods)


def test_no_two_methods_of_the_rounds_have_one_colour():
    colours = label_colours({method: method for method in rounds.SHOWN})
    assert len(set(colours.values())) == len(rounds.SHOWN)


def test_what_a_chart_has_no_room_for_is_named_and_downloaded():
    rows = [
        {"label": method, "student": "w8", "method": method, "seeds": 1, "round": 1, "class": "0",
         "mean": 10.0, "std": None, "low": 10.0, "high": 10.0}
        for method in ("ferd", "gamma-0_1")
    ]  # fmt: skip
    figure = rounds.proportions(rows, ["0"], "make it")
    assert list(figure.panels) == ["ferd"] and figure.rows == rows
    assert figure.reading.endswith("In the download alone: gamma-0_1.")


def test_a_network_whose_making_is_not_on_record_is_named():
    rows = [
        {"label": label, "student": "w8", "method": label, "seeds": 1, "stage": stage,
         "mean": 1.0, "std": None, "low": 1.0, "high": 1.0, "device": "cpu", "threads": 1, "torch": "2"}
        for label, stage in (("ferd", "distill"), ("ferd", "evaluate"), ("no-fae", "evaluate"))
    ]  # fmt: skip
    assert "(what making no-fae took is not on record)" in cost.seconds(rows, "make it").reading


def test_a_method_that_ran_on_two_machines_has_two_bars():
    rows = [
        {"label": label, "student": "w8", "method": label, "seeds": 1, "stage": "distill", "mean": mean,
         "std": None, "low": mean, "high": mean, "device": "cpu", "processor": processor, "threads": 1,
         "torch": "2"}
        for label, processor, mean in (("ferd", "a", 1.0), ("ferd", "b", 3.0), ("no-fae", "a", 2.0))
    ]  # fmt: skip
    figure = cost.seconds(rows, "make it")
    assert figure.reading.endswith(
        "Machines: (1) cpu, a, 1 thread(s), torch 2; (2) cpu, b, 1 thread(s), torch 2."
    )
    bars = figure.panels[""].to_dict()["layer"][0]
    assert bars["encoding"]["y"]["sort"] == ["ferd (1)", "ferd (2)", "no-fae"]
    assert figure.rows == rows
