"""What the synthetic images look like: FERD's beside plain synthesis, a row a class."""

import base64
from collections.abc import Mapping, Sequence

from tasks.figures.figure import Figure, missing
from tasks.results import Group

SHOWN = {"ferd": "FERD: fairness-aware examples", "no-fae": "Plain synthesis (no-fae)"}
MOST_BYTES = 500_000  # a grid; larger ones are left beside the page


def grids(by_method: Mapping[str, Group], classes: Sequence[str], command: str) -> Figure:
    """The image grids of a student's first seed, where this machine has made them."""
    title = "Synthetic images"
    reading = (
        f"The last images of a pool, a row a class, top to bottom: {', '.join(classes)}. No generator "
        "has seen a real image."
    )
    pictures, absent = {}, []
    for method, text in SHOWN.items():
        paths = [by_method[method].paths[0]] if method in by_method else []
        files = [file for path in paths if (file := path.with_suffix(".images.png")).exists()]
        if files and files[0].stat().st_size <= MOST_BYTES:
            data = base64.b64encode(files[0].read_bytes()).decode()
            pictures[text] = f"data:image/png;base64,{data}"
        else:
            absent.append(f"{method} ({'too large for this page' if files else 'no grid on this machine'})")
    gap = (
        f"Not shown: {', '.join(absent)}. Grids are made with the students and are not in Git."
        if absent
        else ""
    )
    if not pictures:
        return missing("images", title, gap, command)
    return Figure("images", title, reading, command, gap=gap, pictures=pictures, columns=2)
