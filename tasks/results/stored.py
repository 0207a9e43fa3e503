"""Result files read back, grouped over seeds."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ferd.errors import FerdError
from ferd.files import NUMBER, check_fields, read_json, read_json_lines
from tasks.params import CONTROLS
from tasks.paths import RESULT_SCHEMA, RESULTS
from tasks.results.remembered import remembered

FIGURES = ("average", "worst", "nsd")
FIELDS = {
    "benchmark": str,
    "student": str | None,
    "method": str,
    "network": str,
    "seed": int,
    "attacks": dict,
}
FIGURE_FIELDS = {"n": int, "per_class": [NUMBER], **dict.fromkeys(FIGURES, NUMBER)}
BALL_FIELDS = {"threat_model": {"epsilon": NUMBER}, "attacks": dict}
COMPARISON_FIELDS = {"weaker": str, "stronger": str, "images": int, "weaker_accuracy": NUMBER}
OPTIONAL_FIELDS = {  # older results lack them
    "other_balls": [BALL_FIELDS],
    "checks": {"warnings": [str], "comparisons": [COMPARISON_FIELDS]},
}
COST_FIELDS = {"device": str, "threads": int, "seconds": NUMBER}


@dataclass(frozen=True)
class Group:
    """The results of one (student, method), a seed each; the teacher's student is None."""

    student: str | None
    method: str
    results: tuple[dict[str, Any], ...]
    paths: tuple[Path, ...]
    outdated: Mapping[str, Sequence[int]] = field(default_factory=dict)  # seeds, by what holds no more

    @property
    def seeds(self) -> list[int]:
        """Seeds in order."""
        return [result["seed"] for result in self.results]

    @property
    def attacks(self) -> list[str]:
        """What every one of the results was judged under; older ones lack ``all``."""
        first, *others = (result["attacks"] for result in self.results)
        return [attack for attack in first if all(attack in other for other in others)]

    @property
    def in_other_balls(self) -> list[str]:
        """The same in further balls, as ``figures_by_attack`` names them."""
        first, *others = map(figures_by_attack, self.results)
        return [name for name in first if name not in self.attacks and all(name in other for other in others)]

    def values(self, attack: str, figure: str) -> list[float]:
        """One value a seed; none where a result lacks the attack."""
        found = [figures_by_attack(result).get(attack) for result in self.results]
        return [figures[figure] for figures in found if figures] if all(found) else []

    def on_the_images_of(self, stronger: str, weaker: str) -> tuple[int, list[float]]:
        """How many images the stronger attack was run on, and the accuracy under the weaker one on those.

        One value a seed; none where a result has no such comparison (``ferd.validity``).
        """
        found = [
            comparison
            for result in self.results
            for comparison in result.get("checks", {}).get("comparisons", [])
            if (comparison["weaker"], comparison["stronger"]) == (weaker, stronger)
        ]
        if len(found) != len(self.results):
            return 0, []
        return found[0]["images"], [comparison["weaker_accuracy"] for comparison in found]

    def agreements(self) -> list[float]:
        """Share of the pool that the teacher gives the requested label, one value a seed; students only."""
        recorded = [read_rounds(path) for path in self.paths] if self.student else []
        return [mean(record["agreement"] for record in rounds) for rounds in recorded]

    def images(self, attack: str) -> int:
        """How many test images the attack was run on."""
        return int(figures_by_attack(self.results[0])[attack]["n"])

    @property
    def name(self) -> str:
        """``<student>/<method>`` or ``teacher``."""
        return "/".join(filter(None, (self.student, self.method)))

    def warnings(self) -> list[str]:
        """What speaks against the figures, a line a result and reason; older results were not checked."""
        return warnings([self])

    def doubts(self) -> list[str]:
        """What in the results themselves speaks against the figures."""
        of_seeds = [
            f"{self.name} s{result['seed']}: {warning}"
            for result in self.results
            for warning in result.get("checks", {}).get("warnings", [])
        ]
        seeds = [figures_by_attack(result) for result in self.results]
        unlike = [
            f"{self.name}: under {attack} its seeds have different numbers of images, or none; "
            "evaluate them alike"
            for attack in dict.fromkeys(attack for attacks in seeds for attack in attacks)
            if attack != "all" and len({attacks.get(attack, {}).get("n") for attacks in seeds}) > 1
        ]
        return [*of_seeds, *unlike]


def warnings(groups: Sequence[Group]) -> list[str]:
    """What speaks against any of the figures; what several groups were made with is one line."""
    outdated = defaultdict(list)
    for group in groups:
        for reason, seeds in group.outdated.items():
            outdated[reason].append(f"{group.name} {', '.join(f's{seed}' for seed in seeds)}")
    return [
        *(doubt for group in groups for doubt in group.doubts()),
        *(f"{'; '.join(names)}: {reason}" for reason, names in outdated.items()),
    ]


def figures_by_attack(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each attack's figures with the ball it was run in; attacks in a further ball are named so.

    ``pgd20`` and ``pgd20 at ε 0.0157``.
    """
    balls = [("", result.get("threat_model"), result["attacks"])] + [
        (f" at ε {ball['threat_model']['epsilon']:.3g}", ball["threat_model"], ball["attacks"])
        for ball in result.get("other_balls", [])
    ]
    return {
        f"{attack}{suffix}": {**figures, "threat_model": threat_model}
        for suffix, threat_model, attacks in balls
        for attack, figures in attacks.items()
    }


def students(groups: Sequence[Group]) -> list[str]:
    """The students' networks, by name."""
    return sorted({group.student for group in groups if group.student is not None})


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation over seeds; None of one seed."""
    return mean(values), stdev(values) if len(values) > 1 else None


def of_first_student(groups: Sequence[Group], names: Sequence[str]) -> dict[str, Group]:
    """The teacher, and the methods of the first of these students that FERD has distilled; by method."""
    distilled = {group.student for group in groups if group.student and group.method == "ferd"}
    first = next((name for name in [*names, *sorted(distilled)] if name in distilled), None)
    return {group.method: group for group in groups if group.student in (None, first)}


def own_seconds(cost: Mapping[str, Any]) -> float:
    """How long a stage would have taken alone: on a CPU its processor time over its threads.

    Wall time on a GPU, and of a record that has no other.
    """
    if cost["device"] == "cpu" and "processor_seconds" in cost:
        return float(cost["processor_seconds"]) / int(cost["threads"])
    return float(cost["seconds"])


def read_cost(path: Path) -> dict[str, Any] | None:
    """The record of what a stage took; None where there is none, or only that of its last attempt.

    Raises:
        FerdError: the file is no such record.
    """
    if not path.exists():
        return None
    cost = read_json(path, COST_FIELDS, again="run the stage that writes it")
    return None if cost.get("resumed") else cost


def read_rounds(result: Path) -> list[dict[str, Any]]:
    """What ``distill`` recorded of a result's student, a record a round.

    Raises:
        FerdError: it is missing or damaged.
    """
    path = result.with_suffix(".rounds.jsonl")
    return read_json_lines(path, {"agreement": NUMBER}, again="run its distill stage")


def load(
    benchmark: str,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    classes: int | None = None,
) -> list[Group]:
    """A benchmark's results: the teacher first, controls last, methods by name between.

    Raises:
        FerdError: a file is not a result of this project, or of another number of ``classes``; or
            ``dvc.lock`` is damaged.
    """
    grouped: dict[tuple[str | None, str], list[tuple[Path, dict[str, Any]]]] = {}
    for path in [*RESULTS.glob(f"{benchmark}/teacher.json"), *RESULTS.glob(f"{benchmark}/*/*/s*.json")]:
        if path.stem != "teacher" and not path.stem.removeprefix("s").isdecimal():
            continue  # costs
        result = _read(path)
        method = result["method"]
        if method == "teacher" or (
            (methods is None or method in methods) and (seeds is None or result["seed"] in seeds)
        ):
            for figures in result["attacks"].values():
                require_classes(path, len(figures["per_class"]), classes, "evaluate")
            grouped.setdefault((result["student"], method), []).append((path, result))
    groups, known = [], remembered()
    for (student, method), found in grouped.items():
        paths, results = zip(*sorted(found, key=lambda item: int(item[1]["seed"])), strict=True)
        group = Group(student, method, results, paths)
        groups.append(replace(group, outdated=known.outdated(dict(zip(group.seeds, paths, strict=True)))))
    return sorted(groups, key=_place)


def require_classes(path: Path, found: int, classes: int | None, stage: str) -> None:
    """Refuse a file of another number of classes than the benchmark has now; None takes any.

    Raises:
        FerdError: says which, and the stage that writes it.
    """
    if classes not in (None, found):
        raise FerdError(
            f"{path}: of {found} classes, where params.yaml has {classes}; run its {stage} stage or delete it"
        )


def _place(group: Group) -> tuple[int, str, int, str]:
    if group.student is None:
        return (0, "", 0, "")
    if group.method in CONTROLS:
        return (2, group.student, CONTROLS.index(group.method), "")
    return (1, group.student, group.method != "ferd", group.method)


def _read(path: Path) -> dict[str, Any]:
    again = "run its evaluate stage"
    result = read_json(path, FIELDS, schema=RESULT_SCHEMA, again=again)
    check_figures(result, str(path), again)
    return result


def check_figures(result: Mapping[str, Any], where: str, again: str) -> None:
    """Refuse a result of which an attack lacks a figure or has other classes, or whose checks are no checks.

    Raises:
        FerdError: says where.
    """
    check_fields(result, {key: kind for key, kind in OPTIONAL_FIELDS.items() if key in result}, where, again)
    classes = set()
    for attacks in (result["attacks"], *(ball["attacks"] for ball in result.get("other_balls", []))):
        for attack, figures in attacks.items():
            check_fields(figures, FIGURE_FIELDS, f"{where}: attacks: {attack}", again)
            classes.add(len(figures["per_class"]))
    if len(classes) > 1:
        raise FerdError(f"{where}: per_class has {sorted(classes)} classes; delete the file and {again}")
