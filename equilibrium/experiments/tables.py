"""Tables as text: columns that know their head, what they say of a row, and how they write a number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from contracting.display import text_table


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        head: what stands above it.
        value: what it says of a row: text, a number, or None, which is written as a dash; by default the attribute of
            the row that is called like the head.
        form: how its numbers are written.
    """

    head: str
    value: Callable[[Any], str | float | None] | None = None
    form: str = ".4f"

    def of(self, row: Any) -> str | float | None:
        """What the column says of the row."""
        said: str | float | None = getattr(row, self.head) if self.value is None else self.value(row)
        return said

    def cell(self, row: Any) -> str:
        """The same as text."""
        said = self.of(row)
        return "–" if said is None else said if isinstance(said, str) else f"{said:{self.form}}"


def aligned(columns: Sequence[Column], rows: Sequence[Any]) -> str:
    """A table for the terminal: text is aligned to the left, numbers to the right."""
    texts = [any(isinstance(column.of(row), str) for row in rows) for column in columns]
    lines = [[column.head for column in columns], *([column.cell(row) for column in columns] for row in rows)]
    head, *body = text_table(lines, [not text for text in texts])
    return "\n".join([head, "-" * len(head), *body])


def markdown(columns: Sequence[Column], rows: Sequence[Any]) -> str:
    """The same as a table of Markdown."""
    lines = [[column.head for column in columns], ["---"] * len(columns)]
    lines += [[column.cell(row) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
