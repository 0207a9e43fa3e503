"""The report's page: all in one file, a section a figure, a command for every gap."""

import re

import pytest

from tasks import report
from tests.conftest import ROOT
from tests.tasks.results.test_stored import write_result
from tests.tasks.test_analysis_table import an_analysis, write_analyses

SECTIONS = [
    "headline", "paper", "classes", "gains", "trade-off", "gamma", "pairs", "utae", "proportions", "rounds",
    "images", "cost",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["report"])
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    write_result(tmp_path, "teacher", 0, 0.95, student=None)
    write_result(tmp_path, "no-fae", 0, 0.5)
    for seed, average in enumerate((0.5, 0.625, 0.75)):
        write_result(tmp_path, "ferd", seed, average)
    return tmp_path


def make_page() -> str:
    report.main()
    return report.PAGE.read_text()


def sections_of(page: str, benchmark: str) -> list[str]:
    return re.findall(rf'<div class="section" id="{benchmark}--([a-z-]+)">', page)


def section(page: str, name: str) -> str:
    return page.split(f'<div class="section" id="{name}">')[1].split('<div class="section"')[0]


def test_the_page_is_one_file_without_outside_parts_under_five_megabytes(folder):
    page = make_page()
    assert len(page.encode()) < 5_000_000
    assert [path.name for path in report.PAGE.parent.iterdir()] == ["index.html"]
    ours = page.replace(re.findall(r"<script>.*?</script>", page, re.S)[0], "")  # without the library
    for outside in ('src="http', 'href="http', "@import", "url("):
        assert outside not in ours


def test_every_benchmark_has_every_section_in_the_order_of_reading(folder):
    page = make_page()
    for benchmark in ("digits", "cifar10", "tiny-imagenet"):
        assert sections_of(page, benchmark) == SECTIONS
    assert page.index('id="digits"') < page.index('id="cifar10-mini"')  # what was run comes first


def test_what_is_missing_is_named_with_the_command_that_makes_it(folder):
    page = make_page()
    assert "--benchmark digits --analyse" in section(page, "digits--pairs")
    assert 'class="chart"' not in section(page, "digits--pairs")
    assert "No student for γ = 0, " in section(page, "digits--gamma")
    assert "--benchmark digits --methods no-utae gamma-0_1" in section(page, "digits--gamma")
    assert "--methods" not in section(page, "cifar10-medium--gamma")  # dvc.yaml has one γ for it
    assert "python -m flows.reproduce --benchmark cifar100" in section(page, "cifar100--headline")
    assert "The paper has no figures for these images" in section(page, "digits--paper")
    assert ">open<" in section(page, "cifar10--paper")  # ours have not been run


def test_analyses_fill_their_sections_with_charts_and_tables(folder):
    write_analyses("digits", [an_analysis(None, "teacher"), an_analysis() | {"utae_outcomes": []}])
    page = make_page()
    assert section(page, "digits--pairs").count('class="chart"') == 2
    assert "<td>3 → 5 11 of 20, 5 → 3 5 of 20, 5 → 8 2 of 16</td>" in section(page, "digits--pairs")
    assert "Fréchet distance" in section(page, "digits--images")


def test_tables_name_their_rows_and_columns(folder):
    table = section(make_page(), "digits--headline")
    assert '<th scope="row">ferd</th>' in table
    assert '<th scope="col" class="name">method</th>' in table
    assert "<td>62.5 ± 12.5</td>" in table


def test_the_lead_says_the_headline(folder):
    assert "keeps 25.0 ± 0.0 % of its test images under PGD-20 (3 seeds); the teacher 25.0." in make_page()


def test_the_lead_compares_methods_of_one_student(folder):
    write_result(folder, "real-data", 0, 0.75, student="resnet8-w32")
    assert "real images" not in make_page()
    write_result(folder, "real-data", 0, 0.75)
    assert "; the teacher 25.0, the same student on real images 25.0 (1 seed)." in make_page()


def test_a_figure_is_written_alone_by_its_command(folder, monkeypatch):
    monkeypatch.setattr("sys.argv", ["report", "--figure", "digits/headline", "--to", "headline.png"])
    report.main()
    assert (folder / "headline.png").read_bytes().startswith(b"\x89PNG")
    assert not report.PAGE.exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "digits/headlines",
            "report: figure 'digits/headlines' is unknown; choose digits/ and one of headline, ",
        ),
        ("mnist/headline", "report: benchmark 'mnist' is unknown; choose from digits, "),
        ("cifar100/headline", "report: figure headline: nothing to draw: No student or teacher"),
        ("digits/images", "report: figure images: nothing to draw: "),
    ],
)
def test_a_figure_that_cannot_be_written_is_one_line(folder, monkeypatch, capsys, name, message):
    monkeypatch.setattr("sys.argv", ["report", "--figure", name, "--to", "x.png"])
    with pytest.raises(SystemExit):
        report.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message)
