"""How records show themselves: in one line, as a text and as a table in a notebook, tensors by their sizes.

A record names its rows once, (name, value, unit); by default they are its fields. A notebook never prints a tensor:
whatever a record holds, each of its three forms stays below two thousand characters.
"""

from __future__ import annotations

import dataclasses
import html
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from contracting import checks

_LISTED = 4  # A tensor or a sequence with at most so many entries is written out; a longer one by its size.
_WIDEST = 72  # A value takes at most so many characters, about a line of a terminal beside its name.
_MOST_RECORDS = 10  # A notebook shows so many records; ten rows of eight columns stay below 2,000 characters.


class Row(NamedTuple):
    """One line of what is shown of a record: a name in words, a value of any kind, and its unit."""

    name: str
    value: Any
    unit: str = ""


def brief(value: Any) -> str:
    """A value in at most a line: six digits of a number, the size of a tensor, the short form of a record."""
    if value is None:
        return "–"
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple | list) and type(value).__repr__ in (tuple.__repr__, list.__repr__):
        if not value:
            return "none"
        if len(value) > _LISTED or any(isinstance(entry, Displayed) for entry in value):
            return f"{len(value)} × {type(value[0]).__name__}"
        return f"({', '.join(map(brief, value))})"
    said = Displayed.__repr__ if isinstance(value, Displayed) else repr  # a dataclass of a user's has its own
    text = value if isinstance(value, str) else re.sub(r" at 0x[0-9a-fA-F]+", "", said(value))
    text = " ".join(text.split())
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"


def _tensor(value: Tensor) -> str:
    dtype = str(value.dtype).removeprefix("torch.")
    if value.ndim < 2 and value.numel() <= _LISTED and not value.is_meta and not checks.on_trust(value):
        return brief(value.detach().tolist())
    return f"{dtype} {tuple(value.shape)}"


def text_table(lines: Sequence[Sequence[str]], numeric: Sequence[bool]) -> list[str]:
    """Lines of cells with columns of one width, numbers aligned to the right and everything else to the left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    ]


def html_table(lines: Iterable[Sequence[str]], *, caption: str = "", head: Sequence[str] = ()) -> str:
    """The same as a table of HTML; cells are text, in which nothing is markup."""
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
    top = f"<tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in head)}</tr>" if head else ""
    name = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f"<table>{name}{top}{body}</table>"


class Displayed:
    """A record that shows itself; a dataclass of this kind leaves ``repr=False`` to it.

    ``_units`` names the unit of a field by the name of the field; ``shown`` is overridden where the fields are not what
    one wants to see.
    """

    _units: ClassVar[Mapping[str, str]] = {}

    def shown(self) -> Sequence[Row]:
        """What is shown, row by row; here the fields of the record."""
        if not dataclasses.is_dataclass(self):
            return ()
        names = [field.name for field in dataclasses.fields(self) if field.repr]
        return [Row(name, getattr(self, name), self._units.get(name, "")) for name in names]

    def __repr__(self) -> str:
        rows = [row for row in self.shown() if row.value is not None]
        said = [f"{row.name.replace(' ', '_')}={_quoted(row.value)}" for row in rows]
        return f"{type(self).__name__}({', '.join(said)})"

    def __str__(self) -> str:
        lines = [(row.name, brief(row.value), row.unit) for row in self.shown()]
        return "\n".join([type(self).__name__, *(f"  {line}" for line in text_table(lines, [False] * 3))])

    def _repr_html_(self) -> str:
        lines = [(row.name.replace("_", " "), brief(row.value), row.unit) for row in self.shown()]
        return html_table(lines, caption=type(self).__name__)


class Tabular(Displayed):
    """A record of many alike: a table of its own, to be read, filtered and saved."""

    def _each(self) -> Iterator[dict[str, Any]]:
        """One dict of plain numbers and texts for each row, all with the same keys, as they are asked for."""
        raise NotImplementedError

    def to_records(self) -> list[dict[str, Any]]:
        """One dict of plain numbers and texts for each row, all with the same keys."""
        return list(self._each())

    def to_dataframe(self) -> Any:
        """The same as a ``pandas.DataFrame``.

        Raises:
            MissingExtraError: without pandas, the extra ``notebook``.
        """
        return checks.extra("pandas", "notebook", "to_dataframe()").DataFrame.from_records(self.to_records())

    def _repr_html_(self) -> str:
        records = list(itertools.islice(self._each(), _MOST_RECORDS + 1))
        lines = [[_cell(value) for value in record.values()] for record in records[:_MOST_RECORDS]]
        head = [name.replace("_", " ") for name in records[0]] if records else []
        more = "<p>… and more: to_dataframe()</p>" if len(records) > len(lines) else ""
        return super()._repr_html_() + html_table(lines, head=head) + more


def _quoted(value: Any) -> str:
    return repr(value) if isinstance(value, str) else brief(value)


def _cell(value: Any) -> str:
    """A value in a column, where four digits tell rows apart."""
    text = f"{value:.4g}" if isinstance(value, float) else brief(value)
    return text if len(text) <= 30 else text[:29] + "…"
