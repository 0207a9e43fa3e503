"""Analyses as tables: the adaptive adversary, where UTAEs end up, how good the synthetic images are."""

from collections.abc import Iterator, Sequence
from typing import Any

from ferd.datasets import dataset
from tasks import params
from tasks.command import as_command, command_line
from tasks.paths import CHECKPOINTS
from tasks.results import stored_analyses
from tasks.results.text_table import Table

PAIRS = 3  # of classes that fail most, a row

ADVERSARY_NOTE = (
    "Percent of test images. Each is attacked toward its likeliest other classes, at most 9, and counts as "
    "right if it is without and under every one of these attacks; worst: the mean of the worst tenth of the "
    "classes. cat → dog 11 of 17: of 17 cats that are right without an attack, so many become dogs when "
    "attacked toward dog. The weakest class is the student's, of equals that of the lower clean accuracy; "
    "student / teacher: the best target against each, on the same images of that class."
)
UTAE_NOTE = (
    "A student's predictions on uniform-target adversarial examples (Eq. 10; γ = 0: no uniform term) of test "
    "images, as many of each class. Entropy: of the predicted classes over log C; 1 is even, also where all "
    "are still right (percent). Fooled: the images that were right and no longer are; same end: the chance "
    "that two of them, of one class, ended in the same class (percent; even over the others: 100 / (C − 1)). "
    "KL(U ‖ p): nats, the mean over images; 0 is uniform."
)
IMAGES_NOTE = (
    "The last images of a student's pool beside real validation images. Agreement: the percentage of "
    "synthetic images that a network takes for the class that was asked for. Fréchet distances compare at "
    "equal numbers of images only, and are far too large where these are fewer than the features (K). Class "
    "balance: entropy of the classes asked for over log C; 1 is even."
)


def tables(analyses: Sequence[dict[str, Any]], class_names: Sequence[str]) -> tuple[Table, Table, Table]:
    """The adversary's table, that of the UTAEs and that of the images; without rows what was not analysed."""
    students = [analysis for analysis in analyses if analysis["student"] is not None]
    return adversary_table(analyses, class_names), utae_table(students), images_table(students)


def adversary_table(analyses: Sequence[dict[str, Any]], class_names: Sequence[str]) -> Table:
    """Accuracy under every targeted attack, the pairs that fail most, and the student's weakest class."""
    figures = [analysis["adaptive_adversary"] for analysis in analyses]
    weakest = [analysis.get("weakest_classes", [None])[0] for analysis in analyses]
    names = identity(analyses)
    return Table(
        "Under an adversary that picks the target",
        ADVERSARY_NOTE,
        {
            **names,
            "images": [str(figure["n"]) for figure in figures],
            "clean": [_percent(figure["clean"]["average"]) for figure in figures],
            "average": [_percent(figure["union"]["average"]) for figure in figures],
            "worst": [_percent(figure["union"]["worst"]) for figure in figures],
            "fail most": [", ".join(_worst_pairs(figure, class_names)) for figure in figures],
            "weakest class": [class_names[row["class"]] if row else "" for row in weakest],
            "student / teacher": [
                f"{_best(row['student'], class_names)} / {_best(row['teacher'], class_names)}" if row else ""
                for row in weakest
            ],
        },
        len(names),
    )


def utae_table(students: Sequence[dict[str, Any]]) -> Table:
    """A row a student and γ: how evenly its UTAEs spread over the classes."""
    rows = [(analysis, outcome) for analysis in students for outcome in analysis["utae_outcomes"]]
    outcomes = [outcome for _, outcome in rows]
    names = identity([analysis for analysis, _ in rows])
    return Table(
        "Where uniform-target adversarial examples end up",
        UTAE_NOTE,
        {
            **names,
            "γ": [f"{outcome['gamma']:g}" for outcome in outcomes],
            "images": [str(outcome["n"]) for outcome in outcomes],
            "entropy": [_fraction(outcome["entropy"]) for outcome in outcomes],
            "fooled": [str(outcome["fooled"]) for outcome in outcomes],
            "same end": [
                "" if outcome["same_end"] is None else _percent(outcome["same_end"]) for outcome in outcomes
            ],
            "KL(U ‖ p)": [_fraction(outcome["kl_from_uniform"]) for outcome in outcomes],
            "still right": [_percent(outcome["correct"]) for outcome in outcomes],
        },
        len(names),
    )


def images_table(students: Sequence[dict[str, Any]]) -> Table:
    """A row a student: how good the images are that it was trained on."""
    images = [analysis["images"] for analysis in students]
    names = identity(students)
    return Table(
        "Synthetic images",
        IMAGES_NOTE,
        {
            **names,
            "synthetic": [str(image["n"]) for image in images],
            "real": [str(image["n_real"]) for image in images],
            "judge agrees": [_percent(image["agreement"]["judge"]) for image in images],
            "teacher agrees": [_percent(image["agreement"]["teacher"]) for image in images],
            "judge right on real": [_percent(image["judge_on_real"]) for image in images],
            **_by_features(images),
            "class balance": [_fraction(image["balance"]["entropy"]) for image in images],
        },
        len(names),
    )


def identity(analyses: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """What says which analysis a row is; student and seed only where there are several."""
    columns = {
        "student": [analysis["student"] or "" for analysis in analyses],
        "method": [analysis["method"] for analysis in analyses],
        "seed": [str(analysis["seed"]) if analysis["student"] else "" for analysis in analyses],
    }
    return {head: cells for head, cells in columns.items() if head == "method" or len({*cells} - {""}) > 1}


def markdown(benchmark: str) -> str:
    """All tables of a benchmark, or one line that says what makes its analyses."""
    class_names = dataset(params.read().benchmark(benchmark).data.dataset).class_names
    analyses = stored_analyses.load(benchmark, len(class_names))
    if not analyses:
        checkpoint = CHECKPOINTS / benchmark / "teacher.safetensors"
        return (
            f"{benchmark}: no analyses yet; stage `analyse` makes them: "
            f"`python -m tasks.analyse {checkpoint}`, and so for each student"
        )
    return "\n\n".join(table.markdown() for table in tables(analyses, class_names) if table.rows)


def _by_features(images: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Inception Score and Fréchet distance, columns of their own for each kind of features."""
    columns = {}
    for name, dim in dict.fromkeys((image["features"], image["feature_dim"]) for image in images):
        for title, key in (("Inception Score", "inception_score"), ("Fréchet distance", "frechet_distance")):
            columns[f"{title} ({name}, K = {dim})"] = [
                f"{image[key]:.2f}" if (image["features"], image["feature_dim"]) == (name, dim) else ""
                for image in images
            ]
    return columns


def _worst_pairs(figures: dict[str, Any], class_names: Sequence[str]) -> Iterator[str]:
    for pair in figures["worst_pairs"][:PAIRS]:
        source, target = class_names[pair["source"]], class_names[pair["target"]]
        yield f"{source} → {target} {pair['turned']} of {pair['attacked']}"


def _best(source: dict[str, Any], class_names: Sequence[str]) -> str:
    """The target that an adversary would pick for a class, and its success; or that none was right."""
    best = source["best_target"]
    if best is None:
        return "none right"
    turned, attacked = source["turned"][best], source["attacked"][best]
    return f"{f'→ {class_names[best]} ' if turned else ''}{turned} of {attacked}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _fraction(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def main() -> None:
    """``python -m tasks.analysis_table BENCHMARK``: the tables in Markdown."""
    parser = command_line(__doc__)
    parser.add_argument("benchmark")
    benchmark = parser.parse_args().benchmark
    with as_command("analysis table"):
        print(markdown(benchmark))


if __name__ == "__main__":
    main()
