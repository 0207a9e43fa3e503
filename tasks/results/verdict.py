"""Tonight's results against the committed ones: a verdict a figure. Pure: files are read elsewhere.

Where machine and versions are the same, a figure must be the same to the last bit. Where they are not, or
are not known, rounding makes another student of the same seed, so that a figure is compared as a mean over
seeds, and may be as far from the committed mean as the tolerances of ``params.yaml`` say.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import mean, stdev
from typing import Any

from tasks.params import Tolerances
from tasks.results import text_table
from tasks.results.stored import FIGURES, figures_by_attack

# What makes two computations the same to the last bit, as a stage's cost record has it.
ENVIRONMENT = ("device", "processor", "threads", "torch", "numpy", "pyautoattack", "scikit-learn")
ROUNDING = 1e-9  # of a difference of means
Identity = tuple[str, str | None, str]  # benchmark, student, method


class Outcome(StrEnum):
    """What became of a figure; the order is that of a table, the worst first."""

    FELL = "fell"  # a worst-class figure is lower than it may be
    CHANGED = "changed"
    INCOMPARABLE = "other settings"  # another threat model, other images, or an attack that is gone
    WITHIN = "within tolerance"
    NEW = "new"  # nothing was committed
    IDENTICAL = "identical"


FAULTS = (Outcome.FELL, Outcome.CHANGED, Outcome.INCOMPARABLE)


@dataclass(frozen=True)
class Pair:
    """A committed result, None where there is none, and tonight's; whether one environment made both."""

    committed: Mapping[str, Any] | None
    tonight: Mapping[str, Any]
    same_environment: bool


@dataclass(frozen=True)
class Verdict:
    """One figure of one (benchmark, student, method), the mean over ``seeds``; the teacher has no student.

    ``tolerance`` is 0 where the same bits are asked for, None where nothing is compared.
    """

    benchmark: str
    student: str | None
    method: str
    attack: str
    figure: str
    seeds: int
    committed: float | None
    tonight: float | None
    tolerance: float | None
    outcome: Outcome


def same_environment(
    committed: Sequence[Mapping[str, Any] | None], tonight: Sequence[Mapping[str, Any]]
) -> bool:
    """Whether the cost records of all stages behind a result name the same processor and versions.

    A record that is missing, or was written before all of this was recorded, is not known to be the same. A
    GPU never is: some of its sums are added in another order from run to run.
    """
    return all(
        isinstance(then, dict)
        and then.get("device") == "cpu"
        and all(key in then and then[key] == now.get(key) for key in ENVIRONMENT)
        for then, now in zip(committed, tonight, strict=True)
    )


def compare(pairs: Sequence[Pair], tolerances: Tolerances) -> list[Verdict]:
    """A verdict for each figure of each (benchmark, student, method), the worst outcomes first."""
    groups: dict[Identity, list[Pair]] = {}
    for pair in pairs:
        result = pair.tonight
        groups.setdefault((result["benchmark"], result["student"], result["method"]), []).append(pair)
    verdicts = [
        verdict for identity, group in groups.items() for verdict in _judge(identity, group, tolerances)
    ]
    order = list(Outcome)
    return sorted(verdicts, key=lambda verdict: order.index(verdict.outcome))  # stable within an outcome


def tolerance(figure: str, committed: Sequence[float], tonight: Sequence[float], given: Tolerances) -> float:
    """How far two means over seeds may be apart, one value a seed.

    The larger of the given tolerance and z·√(s²/n + s'²/n'), z = ``standard_errors``, with the sample
    standard deviations s; one seed has none, and so the given tolerance alone.
    """
    variance = sum(stdev(values) ** 2 / len(values) for values in (committed, tonight) if len(values) > 1)
    fixed: float = getattr(given, figure) * (mean(committed) if figure == "nsd" else 1.0)
    return max(fixed, given.standard_errors * math.sqrt(variance))


def faults(verdicts: Sequence[Verdict]) -> list[str]:
    """A line for each figure that did not come out as it was committed, the worst first."""
    return [
        f"{' '.join(filter(None, (name_of(verdict), verdict.attack, verdict.figure)))}: {verdict.outcome}"
        + (
            f", {shown(verdict, verdict.tonight)} where {shown(verdict, verdict.committed)} is committed"
            if verdict.committed is not None and verdict.tonight is not None
            else ""
        )
        for verdict in verdicts
        if verdict.outcome in FAULTS
    ]


def headline(verdicts: Sequence[Verdict]) -> str:
    """How many figures came out how: ``3 fell, 159 identical``."""
    counts = Counter(verdict.outcome for verdict in verdicts)
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in Outcome if counts[outcome]) or "no figures"


def markdown(verdicts: Sequence[Verdict]) -> str:
    """All verdicts as a table, the worst first."""
    columns = {
        "outcome": [_outcome(verdict) for verdict in verdicts],
        "student": [name_of(verdict) for verdict in verdicts],
        "attack": [verdict.attack for verdict in verdicts],
        "figure": [verdict.figure for verdict in verdicts],
        "seeds": [str(verdict.seeds) for verdict in verdicts],
        "committed": [shown(verdict, verdict.committed) for verdict in verdicts],
        "tonight": [shown(verdict, verdict.tonight) for verdict in verdicts],
        "tolerated": [_tolerated(verdict) for verdict in verdicts],
    }
    return text_table.markdown(columns)


def name_of(verdict: Verdict) -> str:
    """``benchmark/student/method``; ``benchmark/teacher``."""
    return "/".join(filter(None, (verdict.benchmark, verdict.student, verdict.method)))


def shown(verdict: Verdict, value: float | None) -> str:
    """Percent, NSD as a fraction; empty without a value."""
    if value is None:
        return ""
    return f"{value:.3f}" if verdict.figure == "nsd" else f"{100 * value:.1f}"


def _outcome(verdict: Verdict) -> str:
    return f"**{verdict.outcome}**" if verdict.outcome in FAULTS else str(verdict.outcome)


def _tolerated(verdict: Verdict) -> str:
    """``± 5.0``; 0 where the same bits are asked for, empty where nothing is compared."""
    if verdict.tolerance:
        return f"± {shown(verdict, verdict.tolerance)}"
    return "" if verdict.tolerance is None else "0"


def _judge(identity: Identity, group: Sequence[Pair], tolerances: Tolerances) -> list[Verdict]:
    known = [(pair.committed, pair.tonight) for pair in group if pair.committed is not None]
    same = all(pair.same_environment for pair in group if pair.committed is not None)
    fresh = [pair.tonight for pair in group if pair.committed is None]
    verdicts = [
        Verdict(*identity, attack, figure, len(values), None, mean(values), None, Outcome.NEW)
        for attack, figure, values in _by_figure(fresh)
    ]
    if not known:
        return verdicts
    then, now = ([figures_by_attack(result) for result in side] for side in zip(*known, strict=True))
    for attack in {attack: None for figures in (*then, *now) for attack in figures}:  # in order
        before = [figures.get(attack) for figures in then]
        after = [figures.get(attack) for figures in now]
        verdicts += _judge_attack(identity, attack, before, after, same, tolerances)
    unequal = any(_unequal(committed, tonight) for committed, tonight in known)
    if same and unequal and all(verdict.outcome in (Outcome.IDENTICAL, Outcome.NEW) for verdict in verdicts):
        rest = "anything else in the file"
        verdicts.append(Verdict(*identity, "", rest, len(known), None, None, 0.0, Outcome.CHANGED))
    return verdicts


def _judge_attack(
    identity: Identity,
    attack: str,
    before: Sequence[Mapping[str, Any] | None],
    after: Sequence[Mapping[str, Any] | None],
    same: bool,
    tolerances: Tolerances,
) -> list[Verdict]:
    verdicts = []
    for figure in FIGURES:
        then = [figures[figure] for figures in before if figures]
        now = [figures[figure] for figures in after if figures]
        tolerated: float | None = None
        if not then:
            outcome = Outcome.NEW
        elif [_setting(figures) for figures in before] != [_setting(figures) for figures in after]:
            outcome = Outcome.INCOMPARABLE
        elif then == now:
            tolerated, outcome = 0.0, Outcome.IDENTICAL
        elif same:
            tolerated = 0.0
            fell = figure == "worst" and any(new < old for old, new in zip(then, now, strict=True))
            outcome = Outcome.FELL if fell else Outcome.CHANGED
        else:
            tolerated = tolerance(figure, then, now, tolerances)
            difference = mean(now) - mean(then)
            fell = figure == "worst" and difference < 0
            outcome = Outcome.FELL if fell else Outcome.CHANGED
            outcome = Outcome.WITHIN if abs(difference) <= tolerated + ROUNDING else outcome
        means = (mean(then) if then else None, mean(now) if now else None)
        verdicts.append(Verdict(*identity, attack, figure, len(before), *means, tolerated, outcome))
    return verdicts


def _setting(figures: Mapping[str, Any] | None) -> tuple[Any, ...]:
    return (figures["n"], figures["threat_model"]) if figures else ()


def _unequal(committed: Mapping[str, Any], tonight: Mapping[str, Any]) -> bool:
    """Whether anything differs; with a new attack, whose checks are new too, under the others alone."""
    before, after = figures_by_attack(committed), figures_by_attack(tonight)
    if before.keys() < after.keys():
        return any(after[attack] != figures for attack, figures in before.items())
    return committed != tonight


def _by_figure(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, list[float]]]:
    """For each attack and figure a value of each result that has the attack."""
    by_attack = [figures_by_attack(result) for result in results]
    return [
        (attack, figure, [figures[attack][figure] for figures in by_attack if attack in figures])
        for attack in dict.fromkeys(attack for figures in by_attack for attack in figures)
        for figure in FIGURES
    ]
