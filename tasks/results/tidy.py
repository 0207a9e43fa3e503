"""Results as tidy rows, one observation each: what the report draws and offers as downloads."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ferd.config import Method
from tasks import paths
from tasks.results.stored import FIGURES, Group, own_seconds, read_cost, read_rounds, spread, students
from tasks.results.stored_sweeps import Value

Row = dict[str, Any]
PLACES = 6  # below what is ever shown: 0.2135 is 21.35 percent, not 21.349999999999998
ROUNDS_SHOWN = 60  # at most, evenly spread over a schedule
MACHINE = ("device", "processor", "threads")  # of a cost record: what its seconds are of
WORK = ("distill", "train", "evaluate")  # whose seconds are shown


def labels(groups: Sequence[Group]) -> dict[tuple[str | None, str], str]:
    """What a (student, method) is called on charts; the student only where there are several."""
    names = students(groups)
    families = {name.rpartition("-")[0] for name in names}
    short = {name: name.rpartition("-")[2] if len(families) == 1 else name for name in names}
    return {
        (group.student, group.method): (
            f"{group.method} · {short[group.student]}" if group.student and len(names) > 1 else group.method
        )
        for group in groups
    }


def accuracy(groups: Sequence[Group]) -> list[Row]:
    """A row a (student, method, attack, figure); percent, but for NSD; std over seeds, None of one."""
    names = labels(groups)
    return [
        {**_who(group, names), "attack": attack, "images": group.images(attack), "figure": figure,
         **_interval(group.values(attack, figure), 1 if figure == "nsd" else 100)}
        for group in groups
        for attack in group.attacks
        for figure in FIGURES
    ]  # fmt: skip


def per_class(groups: Sequence[Group], attack: str, class_names: Sequence[str]) -> list[Row]:
    """A row a (student, method, class): percent of its test images."""
    rows, names = [], labels(groups)
    for group in groups:
        if attack in group.attacks:
            by_seed = [result["attacks"][attack]["per_class"] for result in group.results]
            for name, values in zip(class_names, zip(*by_seed, strict=True), strict=True):
                rows.append({**_who(group, names), "attack": attack, "class": name, **_interval(values, 100)})
    return rows


def gammas(methods: Mapping[str, Method]) -> dict[str, float]:
    """γ of every method that differs from FERD in γ alone; none where there is no FERD."""
    if "ferd" not in methods:
        return {}
    block = methods["ferd"].model_dump()
    return {
        name: method.utae.gamma
        for name, method in methods.items()
        if method.model_dump() | {"utae": None} == block | {"utae": None}
        and method.utae.model == methods["ferd"].utae.model
    }


def over_gamma(groups: Sequence[Group], gamma_of: Mapping[str, float]) -> list[Row]:
    """``accuracy`` of the methods that differ in γ alone, with γ, in its order."""
    rows = [row | {"gamma": gamma_of[row["method"]]} for row in accuracy(groups) if row["method"] in gamma_of]
    return sorted(rows, key=lambda row: row["gamma"])


def compared(rows: Sequence[Row], key: str) -> list[Row]:
    """The rows of those students that have several values of ``key``."""
    values = defaultdict(set)
    for row in rows:
        values[row["student"]].add(row[key])
    return [row for row in rows if len(values[row["student"]]) > 1]


def over_values(groups: Mapping[Value, Group]) -> list[Row]:
    """``accuracy`` of a sweep's points, with the value that its key had."""
    return [row | {"value": value} for value, group in groups.items() for row in accuracy([group])]


def rounds(groups: Sequence[Group]) -> list[Row]:
    """A row a (student, method, round, quantity): mean and std over seeds of what ``distill`` recorded.

    Quantities: ``agreement`` and ``robust_fraction`` in percent, losses by name.
    """
    rows, names = [], labels(groups)
    for group, recorded in _recorded(groups):
        who = _who(group, names)
        for number, records in recorded.items():
            for quantity, values in _quantities(records).items():
                factor = 100 if quantity in ("agreement", "robust_fraction") else 1
                rows.append({**who, "round": number, "quantity": quantity, **_interval(values, factor)})
    return rows


def proportions(groups: Sequence[Group], class_names: Sequence[str]) -> list[Row]:
    """A row a (student, method, round, class): p in percent, for those whose p ever leaves 1/C."""
    rows, names = [], labels(groups)
    for group, recorded in _recorded(groups):
        by_round = {
            number: [record["proportions"] for record in records if "proportions" in record]
            for number, records in recorded.items()
        }
        if any(max(p) - min(p) > 1e-6 for seeds in by_round.values() for p in seeds):
            rows += [
                {**_who(group, names), "round": number, "class": name, **_interval(values, 100)}
                for number, seeds in by_round.items()
                for name, values in zip(class_names, zip(*seeds, strict=True), strict=True)
            ]
    return rows


def targeted(analyses: Sequence[dict[str, Any]], class_names: Sequence[str]) -> list[Row]:
    """A row an (analysis, source, target): images that are right and attacked, and those that it turns."""
    return [
        {**_analysed(analysis), "source": source, "target": target, "turned": hits, "attacked": tries}
        | {"percent": round(100 * hits / tries, PLACES)}
        for analysis in analyses
        for figures in [analysis["adaptive_adversary"]]
        for source, *lines in zip(class_names, figures["turned"], figures["attacked"], strict=True)
        for target, hits, tries in zip(class_names, *lines, strict=True)
        if tries
    ]


def utae_outcomes(analyses: Sequence[dict[str, Any]], class_names: Sequence[str]) -> list[Row]:
    """A row an (analysis, γ, class): percent of the UTAEs that the student takes for the class."""
    return [
        {
            **_analysed(analysis),
            "gamma": outcome["gamma"],
            "class": name,
            "percent": round(100 * share, PLACES),
        }
        for analysis in analyses
        for outcome in analysis.get("utae_outcomes", [])
        for name, share in zip(class_names, outcome["distribution"], strict=True)
    ]


def costs(groups: Sequence[Group]) -> list[Row]:
    """A row a (student, method, stage, machine): ``own_seconds``, mean and std over seeds."""
    rows, names = [], labels(groups)
    for group in groups:
        for stage in WORK:
            found: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
            for path in group.paths:
                if record := read_cost(paths.cost_of(path, stage)):
                    found[tuple(record.get(key) for key in MACHINE)].append(record)
            for machine, records in found.items():
                seconds = [own_seconds(record) for record in records]
                seeds = {"seeds": len(records)} if len(found) > 1 else {}
                named = dict(zip(MACHINE, machine, strict=True)) | {"torch": records[0].get("torch")}
                rows.append({**_who(group, names), **seeds, "stage": stage, **_interval(seconds, 1), **named})
    return rows


def _who(group: Group, names: Mapping[tuple[str | None, str], str]) -> Row:
    return {
        "label": names[group.student, group.method],
        "student": group.student or group.results[0].get("network", ""),
        "method": group.method,
        "seeds": len(group.seeds),
    }


def _analysed(analysis: dict[str, Any]) -> Row:
    return {"student": analysis["student"] or "", "method": analysis["method"], "seed": analysis["seed"]}


def _interval(values: Sequence[float], factor: float) -> Row:
    """Mean, std and mean ± std."""
    average, deviation = spread(values)
    low, high = average - (deviation or 0), average + (deviation or 0)
    return {
        "mean": round(factor * average, PLACES),
        "std": None if deviation is None else round(factor * deviation, PLACES),
        "low": round(factor * low, PLACES),
        "high": round(factor * high, PLACES),
    }


def _recorded(groups: Sequence[Group]) -> Iterator[tuple[Group, dict[int, list[dict[str, Any]]]]]:
    """Of each student group: the records of all its seeds, by round."""
    for group in groups:
        by_round: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for path in group.paths if group.student else ():
            for record in read_rounds(path):
                if "round" in record:
                    by_round[record["round"]].append(record)
        last = max(by_round, default=0)
        step = max(1, -(-last // ROUNDS_SHOWN))
        kept = {number: by_round[number] for number in sorted(by_round) if (last - number) % step == 0}
        if kept:
            yield group, kept


def _quantities(records: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    values: dict[str, list[float]] = defaultdict(list)
    for record in records:
        values["agreement"].append(record["agreement"])
        for part in ("generator", "student"):
            for name, value in record.get(part, {}).items():
                values[name if name == "robust_fraction" else f"{part} {name}"].append(value)
    return values
