"""Stage ``report``: all results at hand -> one self-contained page, a summary, DVC's metrics and plots."""

from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, FileSystemLoader, select_autoescape

from ferd.datasets import dataset
from ferd.errors import FerdError
from ferd.files import atomic_write, write_json
from tasks import page, params, process
from tasks.command import as_command, command_line
from tasks.figures.style import CONFIG
from tasks.job import methods_of
from tasks.params import Params
from tasks.paths import PAGE, RESULTS
from tasks.results import stored_sweeps
from tasks.results.metrics import write_metrics, write_plots
from tasks.results.stored import FIGURES, Group, load, spread

SUMMARY = RESULTS / "summary.json"
GLOBALS = "window.vegaEmbed = vegaEmbed;"  # what the page needs of the libraries
TEMPLATE = Path(__file__).with_name("report.html.j2")


def main() -> None:
    """``python -m tasks.report``: the page; with ``--figure``: one of its figures as a picture."""
    parser = command_line(__doc__)
    parser.add_argument("--figure", metavar="BENCHMARK/FIGURE", help="write this figure alone")
    parser.add_argument("--to", type=Path, metavar="FILE", help="where to: a name in .png or .pdf")
    args = parser.parse_args()
    if bool(args.figure) != bool(args.to):
        parser.error("--figure and --to go together")
    if args.figure:
        with as_command("report"):
            save_figure(args.figure, args.to)
        return
    with process.running("report") as progress:
        progress.start()
        settings = params.read()
        groups = {name: _load(settings, name) for name in settings.benchmarks}
        write_json(SUMMARY, summary(groups))
        write_metrics(groups)
        write_plots(groups, settings.benchmarks, settings.methods)
        rendered = render(chapters(settings, groups))
        with atomic_write(PAGE) as part:
            part.write_text(rendered, "utf-8")


def _load(settings: Params, name: str) -> list[Group]:
    return load(name, classes=len(dataset(settings.benchmark(name).data.dataset).class_names))


def chapters(settings: Params, groups: dict[str, list[Group]]) -> list[page.Chapter]:
    """A chapter a benchmark: those with students first, those not run last."""
    made = [_chapter(settings, name, found) for name, found in groups.items()]
    return sorted(made, key=lambda chapter: not groups[chapter.name])


def _chapter(settings: Params, name: str, groups: list[Group]) -> page.Chapter:
    sweeps = stored_sweeps.of_benchmark(name)
    evaluated = methods_of(name)
    return page.chapter(name, settings.benchmark(name), settings.methods, groups, evaluated, sweeps)


def render(shown: list[page.Chapter]) -> str:
    """The page; everything that it needs is in it."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=select_autoescape(["j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE.name).render(
        chapters=shown,
        any_results=any(chapter.cards for chapter in shown),
        config=CONFIG,
        library=vl_convert.javascript_bundle(GLOBALS).replace("</script", "<\\/script"),
    )


def save_figure(name: str, path: Path) -> None:
    """Write ``<benchmark>/<figure>`` as a picture.

    Raises:
        FerdError: there is no such benchmark or figure, or nothing to draw.
    """
    benchmark, _, key = name.partition("/")
    settings = params.read()
    shown = _chapter(settings, benchmark, _load(settings, benchmark))
    figure = shown.figure(key)
    if figure is None:
        known = ", ".join(section.figure.key for section in shown.sections if not section.figure.pictures)
        raise FerdError(f"figure {name!r} is unknown; choose {benchmark}/ and one of {known}")
    figure.save(path)


def summary(groups: dict[str, list[Group]]) -> dict[str, Any]:
    """For each benchmark, student, method, attack and figure: mean and std over seeds."""
    return {
        "schema": "ferd-summary/1",
        "benchmarks": {
            name: [
                {
                    "student": group.student,
                    "method": group.method,
                    "seeds": group.seeds,
                    "attacks": {attack: _figures(group, attack) for attack in group.attacks},
                    "warnings": group.warnings(),
                }
                for group in found
            ]
            for name, found in groups.items()
            if found
        },
    }


def _figures(group: Group, attack: str) -> dict[str, Any]:
    figures: dict[str, Any] = {"n": group.images(attack)}
    for figure in FIGURES:
        average, deviation = spread(group.values(attack, figure))
        figures[figure] = {"mean": average, "std": deviation}
    return figures


if __name__ == "__main__":
    main()
