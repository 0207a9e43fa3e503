"""Tables of text, as the page and documents show them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

CODE = ("student", "method")  # columns of names, set as code in Markdown


@dataclass(frozen=True)
class Table:
    """Columns by their heads, of which the first ``names`` name the rows, under a title and a note."""

    title: str
    note: str
    columns: Mapping[str, Sequence[str]]
    names: int = 1

    @property
    def heads(self) -> list[str]:
        """What stands above each column."""
        return list(self.columns)

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The cells, a row at a time."""
        return list(zip(*self.columns.values(), strict=True))

    def markdown(self) -> str:
        """Title, note and table for a document."""
        return f"**{self.title}.** {self.note}\n\n{markdown(self.columns)}"


def markdown(columns: Mapping[str, Sequence[str]]) -> str:
    """A table in Markdown."""
    cells = {
        head: [f"`{cell}`" if cell and head in CODE else cell for cell in column]
        for head, column in columns.items()
    }
    lines: Iterable[Sequence[str]] = ([*columns], ["---"] * len(columns), *zip(*cells.values(), strict=True))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
