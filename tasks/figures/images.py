"""What the synthetic images look like: FERD's beside plain synthesis, a row a class."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from tasks.figures.figure import Figure, missing
from tasks.results.stored import Group

SHOWN = {"ferd": "FERD: fairness-aware examples", "no-fae": "Plain synthesis (no-fae)"}
QUALITY = 92  # as JPEG, with whole colours: 40 % of the bytes of these noisy images as PNG
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
        grid = by_method[method].paths[0].with_suffix(".images.png") if method in by_method else None
        if grid is None or not grid.exists():
            absent.append(f"{method} (no grid on this machine)")
        elif len(jpeg := as_jpeg(grid)) > MOST_BYTES:
            absent.append(f"{method} (too large for this page)")
        else:
            pictures[text] = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
    gap = (
        f"Not shown: {', '.join(absent)}. Grids are made with the students and are not in Git."
        if absent
        else ""
    )
    if not pictures:
        return missing("images", title, gap, command)
    return Figure("images", title, reading, command, gap=gap, pictures=pictures)


def as_jpeg(path: Path) -> bytes:
    """A picture, in fewer bytes."""
    file = io.BytesIO()
    with Image.open(path) as picture:
        picture.save(file, format="jpeg", quality=QUALITY, subsampling=0)
    return file.getvalue()
