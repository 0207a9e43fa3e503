"""The report of the results in Git, in a real browser: it is drawn, complete, and fits its window."""

import csv
import io
import json
import shutil
from itertools import pairwise
from pathlib import Path
from statistics import mean

import pytest

from tasks import report
from tasks.results import stored
from tests.conftest import ROOT

BENCHMARK = "digits"
BOXES = """([selector]) => [...document.querySelectorAll(selector)].map((one) => {
  const {left, right, top, bottom} = one.getBoundingClientRect();
  return {left, right, top, bottom};
})"""
WITHOUT_CHART = {"paper", "images"}  # the paper has no figures of digits; image grids are not in Git


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """The report of this checkout's results of ``digits`` and ``cifar10-small``."""
    folder = tmp_path_factory.mktemp("report")
    shutil.copy(ROOT / "params.yaml", folder)
    for name in (BENCHMARK, "cifar10-small"):
        shutil.copytree(ROOT / "results" / name, folder / "results" / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["report"])
        report.main()
    return folder / report.PAGE


@pytest.fixture(scope="module")
def groups(page_file):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(page_file.parents[2])
        return stored.load(BENCHMARK)


def opened(browser, page_file, benchmark=BENCHMARK, **options):
    """The page of a benchmark, drawn; what went wrong is in ``page.faults``."""
    page = browser.new_page(**options)
    page.set_default_timeout(120_000)
    page.faults = []
    page.on("console", lambda message: page.faults.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("request", lambda request: page.faults.append(request.url) if outside(request.url) else None)
    page.goto(f"file://{page_file}#{benchmark}")
    page.wait_for_selector(f"#{benchmark}[data-ready]", timeout=120_000)
    return page


def outside(url: str) -> bool:
    return not url.startswith(("file:", "data:", "blob:"))


@pytest.fixture(scope="module")
def page(browser, page_file):
    page = opened(browser, page_file, viewport={"width": 1280, "height": 900})
    yield page
    page.close()


def marks(page, figure: str, kind: str) -> list[int]:
    """How many marks of a kind each of a figure's charts has."""
    charts = page.locator(f"#{BENCHMARK}--{figure} .chart")
    selector = f"[aria-roledescription='{kind}']"
    return [charts.nth(place).locator(selector).count() for place in range(charts.count())]


def test_nothing_goes_wrong_and_nothing_is_fetched(page):
    assert page.faults == []


def test_without_a_name_in_the_address_the_first_benchmark_is_shown(browser, page_file):
    page = browser.new_page()
    page.set_default_timeout(120_000)
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(page_file.as_uri())
    page.wait_for_selector(".chapter[data-ready]", timeout=120_000)
    assert page.locator(".chapter.shown").count() == 1 and faults == []
    page.close()


def test_every_section_has_its_charts(page):
    sections = page.locator(f"#{BENCHMARK} .section")
    assert sections.count() == 12
    for section in sections.all():
        name = section.get_attribute("id").removeprefix(f"{BENCHMARK}--")
        charts, drawn = section.locator(".chart").count(), section.locator(".chart svg").count()
        assert charts == drawn
        assert (drawn > 0) == (name not in WITHOUT_CHART), name


def test_every_method_has_its_marks(page, groups):
    students = [group for group in groups if group.student]
    assert marks(page, "headline", "bar") == [len(groups)] * 2
    assert marks(page, "classes", "bar") == [10 + 10] * len(students)
    assert marks(page, "gains", "rect mark") == [10 * (len(students) - 1)]
    assert marks(page, "trade-off", "point")[0] == len(groups)
    attacked = [  # cells of the teacher and five students; none where a class has no image right
        sum(share is not None for row in analysis["adaptive_adversary"]["success"] for share in row)
        for analysis in map(
            json.loads, map(Path.read_text, (ROOT / "results/digits").rglob("*.analysis.json"))
        )
    ]
    assert sorted(marks(page, "pairs", "rect mark")) == sorted(attacked) and len(attacked) == 6
    assert marks(page, "utae", "rect mark") == [6 * 10] * 5
    assert marks(page, "proportions", "rect mark") == [12 * 10] * 4  # methods with reweighting
    assert len(marks(page, "rounds", "line mark")) == 9


def test_charts_and_pictures_speak_to_screen_readers(page):
    for chart in page.locator(f"#{BENCHMARK} .chart").all():
        assert len(chart.locator("[aria-label]").first.get_attribute("aria-label")) > 20
    for table in page.locator(f"#{BENCHMARK} table").all():
        assert table.locator("thead th:not([scope=col])").count() == 0
        assert table.locator("tbody tr").count() == table.locator("tbody tr:has(> th[scope=row])").count()
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map((one) => +one.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later - level <= 1 for level, later in pairwise(levels))


def downloaded(page, figure: str) -> list[dict[str, str]]:
    with page.expect_download() as download:
        page.locator(f"#{BENCHMARK}--{figure} a.download").click()
    assert download.value.suggested_filename == f"{BENCHMARK}-{figure}.csv"
    with open(download.value.path(), encoding="utf-8", newline="") as file:
        return list(csv.DictReader(io.StringIO(file.read())))


def test_downloads_hold_the_numbers_of_the_results(page, page_file, groups):
    rows = {(row["method"], row["figure"]): row for row in downloaded(page, "headline")}
    assert len(rows) == 2 * len(groups)
    for group in groups:
        files = [json.loads((page_file.parents[2] / path).read_text()) for path in group.paths]
        for figure in ("average", "worst"):
            expected = 100 * mean(result["attacks"]["pgd20"][figure] for result in files)
            assert float(rows[group.method, figure]["mean"]) == pytest.approx(expected)
    classes = {(row["method"], row["class"]): row for row in downloaded(page, "classes")}
    teacher = json.loads((page_file.parents[2] / "results" / BENCHMARK / "teacher.json").read_text())
    for name, accuracy in enumerate(teacher["attacks"]["pgd20"]["per_class"]):
        assert float(classes["teacher", str(name)]["mean"]) == pytest.approx(100 * accuracy)


def test_benchmarks_are_chosen_by_keyboard_one_at_a_time(browser, page_file):
    page = opened(browser, page_file)
    link = page.locator("header nav a", has_text="cifar10-small")
    link.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#cifar10-small[data-ready]", timeout=120_000)
    assert page.locator(".chapter:visible").count() == 1
    assert link.get_attribute("aria-current") == "true"
    assert page.faults == []
    page.close()


@pytest.mark.parametrize("benchmark", [BENCHMARK, "cifar10-small", "cifar100"])
@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
def test_nothing_overflows_or_overlaps(browser, page_file, benchmark, width, scheme):
    page = opened(
        browser, page_file, benchmark, viewport={"width": width, "height": 900}, color_scheme=scheme
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = page.evaluate(BOXES, [f"#{benchmark} :is(.chart, h3, h4, figcaption)"])
    assert boxes
    for place, box in enumerate(boxes):
        assert box["left"] >= 0 and box["right"] <= width
        for other in boxes[place + 1 :]:
            assert not overlap(box, other), (box, other)
    charts = page.evaluate(BOXES, [f"#{benchmark} .chart"])
    drawings = page.evaluate(BOXES, [f"#{benchmark} .chart svg"])
    assert all(svg["right"] <= chart["right"] + 1 for chart, svg in zip(charts, drawings, strict=True))
    assert page.faults == []
    page.close()


def overlap(one: dict[str, float], other: dict[str, float]) -> bool:
    return (
        min(one["right"], other["right"]) - max(one["left"], other["left"]) > 1
        and min(one["bottom"], other["bottom"]) - max(one["top"], other["top"]) > 1
    )


def test_the_dark_page_is_dark_with_light_labels_and_turns_with_the_system(browser, page_file):
    page = opened(browser, page_file, color_scheme="dark")
    label = f"#{BENCHMARK}--headline .chart svg .role-axis-label text"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 29)"
    assert page.locator(label).first.get_attribute("fill") == "#ececec"
    page.emulate_media(color_scheme="light")
    page.wait_for_selector(f"{label}[fill='#1a1a1a']")
    assert page.faults == []
    page.close()


def widths(page, benchmark):
    return page.eval_on_selector_all(f"#{benchmark} .chart svg", "all => all.map(one => one.clientWidth)")


def test_charts_outlive_a_window_that_changes_while_another_chapter_is_shown(browser, page_file):
    page = opened(browser, page_file, viewport={"width": 1280, "height": 760})
    before = widths(page, BENCHMARK)
    page.evaluate("location.hash = 'cifar10-small'")
    page.wait_for_selector("#cifar10-small[data-ready]", timeout=120_000)
    page.set_viewport_size({"width": 1280, "height": 820})
    page.evaluate(f"location.hash = '{BENCHMARK}'")
    page.wait_for_function(
        "([id, width]) => document.querySelector(`#${id} .chart svg`).clientWidth === width",
        arg=[BENCHMARK, before[0]],
    )
    assert widths(page, BENCHMARK) == before and min(before) > 100
    page.close()


def test_what_is_printed_is_the_chapter_that_is_shown(browser, page_file):
    page = opened(browser, page_file)
    page.emulate_media(media="print")
    assert page.locator(".chapter:visible").count() == 1
    page.close()


def test_a_fragment_that_is_no_name_shows_the_first_chapter(browser, page_file):
    page = browser.new_page()
    page.set_default_timeout(120_000)
    page.goto(f"{page_file.as_uri()}#100%")
    page.wait_for_selector(".chapter[data-ready]", timeout=120_000)
    assert page.locator(".chapter.shown").count() == 1
    page.close()
