"""A figure of the report: charts, the rows they are drawn from, and how to make them again."""

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from ferd.errors import FerdError
from ferd.files import atomic_write
from tasks.figures.style import CONFIG
from tasks.params import CONTROLS
from tasks.results.tidy import Row

SHARPNESS = 2.0  # pixels of a PNG a point
PANEL_WIDTH = 300  # of a picture, in points; on the page a panel is as wide as there is room


@dataclass(frozen=True)
class Figure:
    """What the page shows under one heading.

    Attributes:
        key: names it within its benchmark: in links, downloads and ``python -m tasks.report --figure``.
        reading: how to read it; also what a screen reader says of each panel.
        rows: the numbers that are drawn, of equal keys.
        panels: Vega-Lite charts by their titles; as wide as their container.
        command: what makes the numbers.
        gap: what is missing, and what makes it; with panels, what is missing beside them.
        columns: panels side by side where there is room.
        legend: what stands for what, (colour, symbol); on the page once for all panels.
        pictures: data URIs of images that are not charts, by their titles.
    """

    key: str
    title: str
    reading: str
    command: str
    rows: Sequence[Row] = ()
    panels: Mapping[str, alt.TopLevelMixin] = field(default_factory=dict)
    gap: str = ""
    columns: int = 1
    pictures: dict[str, str] = field(default_factory=dict)
    legend: dict[str, tuple[str, str]] = field(default_factory=dict)

    def specs(self) -> list[tuple[str, str]]:
        """(title, Vega-Lite JSON that can stand in a script element) of each panel, without a theme."""
        specs = []
        for title, chart in self.panels.items():
            spec = _spec(chart, self._says(title))
            specs.append((title, _json(_without_legends(spec) if self.legend else spec)))
        return specs

    def _says(self, panel: str) -> str:
        return ". ".join(filter(None, (self.title, panel, self.reading)))

    def csv(self) -> str:
        """The rows as comma-separated values under a head."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[0]) if self.rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()

    def download(self) -> str:
        """The rows as a data URI."""
        return f"data:text/csv;charset=utf-8;base64,{base64.b64encode(self.csv().encode()).decode()}"

    def save(self, path: Path) -> None:
        """Write all panels as one PNG or PDF, in the light theme.

        Raises:
            FerdError: there is nothing to draw, or the name ends otherwise.
        """
        if path.suffix not in (".png", ".pdf"):
            raise FerdError(f"{path}: pictures are written as .png or .pdf")
        if self.pictures:
            raise FerdError(f"figure {self.key}: pictures, not a chart: results/**/*.images.png")
        if not self.panels:
            raise FerdError(f"figure {self.key}: nothing to draw: {self.gap}")
        panels = [_sized(chart, title) for title, chart in self.panels.items()]
        datasets = {name: rows for panel in panels for name, rows in panel.pop("datasets", {}).items()}
        together = {
            "$schema": alt.SCHEMA_URL,
            "datasets": datasets,
            "concat": panels,
            "columns": self.columns,
            "spacing": 24,
            "background": "white",
        }
        if path.suffix == ".png":
            picture = vl_convert.vegalite_to_png(together, scale=SHARPNESS, config=CONFIG["light"])
        else:
            picture = vl_convert.vegalite_to_pdf(together, config=CONFIG["light"])
        with atomic_write(path) as part:
            part.write_bytes(picture)


def panel(rows: Sequence[Row]) -> alt.Chart:
    """An empty chart over these rows."""
    return alt.Chart(alt.InlineData(values=list(rows)))


def mean_and_std(form: str) -> list[alt.Tooltip]:
    """What a mark says of its mean when it is pointed at; ``form`` as of d3-format: ``.1f``."""
    return [alt.Tooltip("mean:Q", format=form), alt.Tooltip("std:Q", format=form)]


def missing(key: str, title: str, gap: str, command: str) -> Figure:
    """A figure for which there are no results: its place, and what makes them."""
    return Figure(key, title, "", command, gap=gap)


def _spec(chart: alt.TopLevelMixin, description: str) -> dict[str, Any]:
    spec: dict[str, Any] = chart.to_dict(validate=False)
    spec.pop("config", None)
    fit = {"type": "fit-x", "contains": "padding"}
    return spec | {"width": "container", "description": description, "autosize": fit}


def _sized(chart: alt.TopLevelMixin, title: str) -> dict[str, Any]:
    spec: dict[str, Any] = chart.to_dict(validate=False)
    for key in ("config", "$schema", "autosize"):
        spec.pop(key, None)
    return spec | {"width": PANEL_WIDTH, **({"title": title} if title else {})}


def _without_legends(spec: dict[str, Any]) -> dict[str, Any]:
    """The same layers; colours and shapes are explained elsewhere."""
    for layer in spec.get("layer", [spec]):
        for channel in ("color", "shape"):
            if "field" in layer.get("encoding", {}).get(channel, {}):
                layer["encoding"][channel]["legend"] = None
    return spec


def _json(spec: dict[str, Any]) -> str:
    return json.dumps(spec, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")


def scale_of(rows: Sequence[Row], key: str, least: float) -> float:
    """The largest size of a figure but for controls, which would wash out all others."""
    compared = [row for row in rows if row["method"] not in CONTROLS] or rows
    return max(least, *(abs(row[key]) for row in compared))
