"""γ, the weight of the uniform target in the attack (Eq. 10), against everything that is measured."""

from collections.abc import Mapping, Sequence

import altair as alt

from tasks.figures import curves
from tasks.figures.figure import Figure, missing
from tasks.results import tidy
from tasks.results.tidy import Row

READING = (
    "A line an attack, over γ: the weight of the uniform target in the student's adversarial examples; "
    "γ = 0 is plain KL-PGD, γ = 0.5 is FERD. Bands: ± one standard deviation over seeds (none: one seed)."
)


def over_gamma(rows: Sequence[Row], gamma_of: Mapping[str, float], command: str) -> Figure:
    """Panels of average, worst and NSD for each student; ``rows``: ``tidy.over_gamma``.

    ``gamma_of``: the methods that ``command`` can make, by which it is seen what is missing.
    """
    title = "γ, the weight of the uniform target"
    ran = {row["method"] for row in rows}
    absent = [name for name in sorted(gamma_of, key=gamma_of.__getitem__) if name not in ran]
    without = ", ".join(f"γ = {gamma_of[name]:g}" for name in absent)
    missing_note = f"No student for {without}." if absent else ""
    shown = tidy.compared(curves.drawn(rows), "gamma")
    students = list(dict.fromkeys(row["student"] for row in shown))
    if not students:
        return missing("gamma", title, f"Needs two values of γ or more. {missing_note}".rstrip(), command)
    panels: dict[str, alt.TopLevelMixin] = {}
    for student in students:
        of_student = [row for row in shown if row["student"] == student]
        panels |= curves.panels(of_student, "gamma", "γ", "" if len(students) == 1 else f"{student}: ")
    return Figure(
        "gamma",
        title,
        f"{READING} {curves.sizes(shown)}",
        command,
        shown,
        panels,
        missing_note,
        columns=3,
        legend=curves.legend(shown),
    )
