"""What the report page shows of a benchmark, in the order in which it is read."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from ferd.config import Benchmark, Method
from ferd.datasets import dataset
from tasks import analysis_table
from tasks.figures import classes, cost, failures, gamma, images, robustness, rounds, sweep
from tasks.figures import paper as paper_figure
from tasks.figures.figure import Figure
from tasks.results import published, stored_analyses, tidy
from tasks.results.stored import Group, of_first_student, students, warnings
from tasks.results.stored_sweeps import SweepResults, beside_own_students
from tasks.results.text_table import Table
from tasks.table import NAMES, cell, figures, further

CARDS = ("teacher", "ferd", "no-reweighting", "dfhl-rs", "rslad", "real-data", "uniform-noise")
OPEN = "open"


@dataclass(frozen=True)
class Section:
    """A figure with the tables that belong to it."""

    figure: Figure
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Chapter:
    """A benchmark."""

    name: str
    about: str
    lead: str
    cards: Sequence[Mapping[str, str]]
    sections: Sequence[Section]
    warnings: Sequence[str] = field(default_factory=list)

    def figure(self, key: str) -> Figure | None:
        """The figure of that key."""
        return next((section.figure for section in self.sections if section.figure.key == key), None)


def chapter(
    name: str,
    benchmark: Benchmark,
    methods: Mapping[str, Method],
    groups: Sequence[Group],
    evaluated: Collection[str],
    sweeps: Sequence[SweepResults] = (),
) -> Chapter:
    """All of a benchmark; sections without results name what is missing and the command that makes it.

    ``evaluated``: the methods that dvc.yaml has for it.
    """
    again = f"python -m flows.reproduce --benchmark {name}"
    kinds = dataset(benchmark.data.dataset).class_names
    accuracy = tidy.accuracy(groups)
    by_class = tidy.per_class(groups, "pgd20", kinds)
    analyses = stored_analyses.load(name, len(kinds))
    adversary, utae, quality = (
        [table] if table.rows else [] for table in analysis_table.tables(analyses, kinds)
    )
    of_first = of_first_student(groups, benchmark.students)
    compared = published.compare(benchmark, groups)
    gamma_of = tidy.gammas(methods)
    by_gamma = tidy.over_gamma(groups, gamma_of)
    can_be_made = {method: value for method, value in gamma_of.items() if method in evaluated}
    varied = " ".join([again, "--methods", *sorted(can_be_made, key=can_be_made.__getitem__)])
    over_rounds = tidy.rounds(groups)
    return Chapter(
        name,
        _about(benchmark),
        _lead(of_first),
        _cards(of_first),
        [
            Section(
                robustness.headline(accuracy, again), [_results(groups), _further(groups)] if groups else []
            ),
            Section(paper_figure.beside(compared, again), _paper_tables(compared, benchmark)),
            Section(classes.profiles(by_class, again)),
            Section(classes.gains(by_class, again)),
            Section(robustness.trade_off(accuracy, again)),
            Section(gamma.over_gamma(by_gamma, can_be_made, varied if len(can_be_made) > 1 else "")),
            *_of_sweeps([beside_own_students(each, benchmark, methods, groups) for each in sweeps]),
            Section(failures.pairs(tidy.targeted(analyses, kinds), kinds, f"{again} --analyse"), adversary),
            Section(
                failures.utae_ends(tidy.utae_outcomes(analyses, kinds), kinds, f"{again} --analyse"), utae
            ),
            Section(rounds.proportions(tidy.proportions(groups, kinds), kinds, again)),
            Section(rounds.measures(over_rounds, again)),
            Section(images.grids(of_first, kinds, again), quality),
            Section(cost.seconds(tidy.costs(groups), again)),
        ],
        warnings(groups),
    )


def _of_sweeps(sweeps: Sequence[SweepResults]) -> list[Section]:
    """A figure a sweep; before those that several methods share, one of these beside each other."""
    sections = []
    for _, group in groupby(sweeps, key=lambda each: (each.key, each.student)):
        alike = list(group)
        compared = sweep.methods_compared(alike)
        sections += [Section(compared)] if compared else []
        sections += [Section(sweep.over_values(each, tidy.over_values(each.groups), alike)) for each in alike]
    return sections


def _about(benchmark: Benchmark) -> str:
    threat, schedule = benchmark.threat_model, benchmark.distillation
    return (
        f"Teacher {benchmark.teacher.network}; students {', '.join(benchmark.students)}; L∞, ε = "
        f"{threat.epsilon:.4g}. {schedule.rounds} rounds ({schedule.warmup_rounds} of warm-up) of "
        f"{schedule.batch_size} images, {schedule.synthesis.steps} generator and {schedule.student.steps} "
        "student steps a round."
    )


def _lead(by_method: Mapping[str, Group]) -> str:
    """The headline in a sentence."""
    if "ferd" not in by_method:
        return "No student of FERD has results here."
    ferd = by_method["ferd"]
    others = [
        f"{text} {cell(by_method[method], 'pgd20', 'worst')}"
        + (f" ({_seeds(by_method[method])})" if method != "teacher" else "")
        for method, text in (("teacher", "the teacher"), ("no-reweighting", "without reweighting"),
                             ("real-data", "the same student on real images"))
        if method in by_method
    ]  # fmt: skip
    return (
        f"The weakest class of a {ferd.student} distilled by FERD, without an image, keeps "
        f"{cell(ferd, 'pgd20', 'worst')} % of its test images under PGD-20 ({_seeds(ferd)})"
        + (f"; {', '.join(others)}." if others else ".")
        + " ± leaves out what other test images would change."
    )


def _seeds(group: Group) -> str:
    return f"{len(group.seeds)} seed{'s' * (len(group.seeds) > 1)}"


def _cards(by_method: Mapping[str, Group]) -> list[dict[str, str]]:
    """Worst-class robustness in large figures."""
    return [
        {
            "method": method,
            "figure": cell(by_method[method], "pgd20", "worst"),
            "average": f"average {cell(by_method[method], 'pgd20', 'average')}",
            "seeds": _seeds(by_method[method]),
        }
        for method in CARDS
        if method in by_method
    ]


def _results(groups: Sequence[Group]) -> Table:
    columns = {
        **_names(groups),
        "seeds": [str(len(group.seeds)) for group in groups],
        **figures(groups),
    }
    note = (
        "Accuracy in percent on so many test images: mean ± sample standard deviation over seeds, of two "
        "seeds both values. Worst: the mean of the worst tenth of the classes (at least one). NSD: "
        "population standard deviation over classes divided by their mean, a fraction. "
        "Pool agreement: percent of a student's images that the teacher gives the label they were asked for."
    )
    return Table("All figures", note, columns, len(_names(groups)))


def _further(groups: Sequence[Group]) -> Table:
    columns = {**_names(groups), **further(groups)}
    note = (
        "What the table above leaves out. CW-30: 30 steps up the margin. ε: in another ball than the rest. "
        "All attacks: right under every one, on the images that all were given."
    )
    return Table("Further attacks and balls", note, columns, len(_names(groups)))


def _names(groups: Sequence[Group]) -> dict[str, list[str]]:
    """What says which group a row is; the network only where there are several."""
    networks = {"network": [group.student or group.results[0]["network"] for group in groups]}
    return {"method": [group.method for group in groups]} | (networks if len(students(groups)) > 1 else {})


def _paper_tables(rows: Sequence[tidy.Row], benchmark: Benchmark) -> list[Table]:
    """For each of the paper's tables: its figures, ours, and the difference, a line each a method."""
    figures = published.read()
    tables = []
    for name, student in dict.fromkeys((row["table"], row["paper_student"]) for row in rows):
        of_table = [row for row in rows if (row["table"], row["paper_student"]) == (name, student)]
        ours = of_table[0]["student"]
        lines = []
        for method in dict.fromkeys(row["paper_method"] for row in of_table):
            cells = [row for row in of_table if row["paper_method"] == method]
            lines += [
                [method, f"paper, {student}", *(_figure(row["paper"], row["figure"]) for row in cells)],
                [method, f"ours, {ours or student}", *(_measured(row) for row in cells)],
                [method, "ours − paper", *(_difference(row) for row in cells)],
            ]
        there = figures["datasets"][benchmark.data.name]
        note = (
            f"Theirs: teacher {there['teacher']}, {there['schedule']}, the whole test set. "
            f"Ours: {_about(benchmark)} {_on(of_table)} A difference is within noise where it is at most "
            "t·s·√(1 + 1/n), s being the standard deviation over our n seeds and t Student's 97.5 % point "
            "(4.3 of three seeds); one seed cannot say, nor can part of the test images: of few, NSD is "
            "larger and the worst class lower by sampling alone. "
            + (
                ""
                if of_table[0]["same_networks"]
                else "Another network at another schedule: not a reproduction. "
            )
            + figures["source"]
        )
        heads = [
            f"{NAMES[attack]} {'NSD' if figure == 'nsd' else figure}" for attack, figure in published.COLUMNS
        ]
        columns = dict(zip(["method", "whose", *heads], map(list, zip(*lines, strict=True)), strict=True))
        tables.append(Table(f"{student}, the paper's {name} table", note, columns, names=2))
    return tables


def _on(rows: Sequence[tidy.Row]) -> str:
    sizes = {NAMES[row["attack"]]: row["images"] for row in rows if row["images"]}
    return f"Test images: {', '.join(f'{name} {size}' for name, size in sizes.items())}." if sizes else ""


def _figure(value: float | None, figure: str) -> str:
    return OPEN if value is None else f"{value:.3f}" if figure == "nsd" else f"{value:.1f}"


def _measured(row: tidy.Row) -> str:
    text = _figure(row["ours"], row["figure"])
    return text if row["std"] is None else f"{text} ± {_figure(row['std'], row['figure'])}"


def _difference(row: tidy.Row) -> str:
    if row["difference"] is None:
        return "–"
    places = 3 if row["figure"] == "nsd" else 1
    noise = {True: "within noise", False: "beyond noise", None: "one seed"}[row["within_noise"]]
    said = [] if row["same_networks"] else ["another network"]
    if row["images"] < published.WHOLE:
        said.append("part of the images")
    elif row["same_networks"]:
        said.append(noise)
    return ", ".join([f"{row['difference']:+.{places}f}", *said])
