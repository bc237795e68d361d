"""Ids of a table's rows, and values of other columns that are written beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vim_embed_client.bulk.sources.arrow_values import plain
from vim_embed_client.bulk.sources.reader import Entry, Item, Skipped
from vim_embed_client.errors import InputError
from vim_embed_client.exact import EXACT, FIX, inexact


class RowIds:
    """The ids of a table's rows: its number, or the value of a column.

    A value that is null, no text or number, no UTF-8, a float too large to tell whole numbers
    apart, or that an earlier row had, is a fault of its row, which is then named by its number.
    exact: as of `inexact`.
    """

    def __init__(self, name: str, column: str | None, exact: int = EXACT) -> None:
        self._name, self._column, self._exact = name, column, exact
        self._seen: set[int] = set()

    def of(self, table: Any, first: int) -> list[str | Skipped]:
        """The ids of an Arrow table whose first row is number `first`."""
        if self._column is None:
            return self.numbered(len(table), first)
        values = table.column(self._column)
        values = values.combine_chunks() if hasattr(values, "combine_chunks") else values
        self._exact = _EXACT_OF.get(str(values.type), EXACT)
        return self.of_values(plain(values).to_pylist(), first)

    def numbered(self, rows: int, first: int) -> list[str | Skipped]:
        """The ids of rows that have no others."""
        return [f"{self._name}#{first + row}" for row in range(rows)]

    def of_values(self, values: Sequence[Any], first: int) -> list[str | Skipped]:
        """The ids of rows whose id column has these values."""
        return [self._id(v, f"{self._name}#{first + row}") for row, v in enumerate(values)]

    def _id(self, value: Any, at: str) -> str | Skipped:
        try:
            found = _text(value, self._exact)
        except InputError as error:
            return Skipped(id=at, reason=f"its id in {self._column} {error.message}")
        if hash(found) in self._seen:
            return Skipped(id=at, reason=f"its id {found!r} is that of an earlier row too")
        self._seen.add(hash(found))
        return found


_EXACT_OF = {"float": 1 << 24, "halffloat": 1 << 11}  # of Arrow


def _text(value: Any, exact: int) -> str:
    """An id as text, the value itself; 7.0 is the id 7. Raises InputError."""
    if isinstance(value, np.floating):
        exact, value = 2 << int(np.finfo(value.dtype).nmant), float(value)
    if value is None or value != value:
        raise InputError("is null")
    if inexact(value, exact):
        raise InputError(f"is {value}, a float that stands for several whole numbers: {FIX}")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (list, dict)):
        raise InputError("is no text or number, but several values")
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise InputError(f"is no UTF-8: {value!r}") from None


def listed(values: Any) -> list[Any]:
    """A column (n,) of numpy as values of Python; floats of less than 64 bits keep their type."""
    small = values.dtype.kind == "f" and values.dtype.itemsize < np.dtype(float).itemsize
    return list(values if small else values.tolist())


def with_columns(entry: Entry, columns: Mapping[str, Any]) -> Entry:
    """The row with values beside it."""
    return replace(entry, columns=columns) if columns and isinstance(entry, Item) else entry


def plain_value(value: Any) -> Any:
    """A value of a table as text, number, bool or None. Raises InputError for several."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").rstrip("\0").strip()
    if isinstance(value, (list, tuple, dict, np.ndarray)):
        raise InputError("--keep takes columns of one value a row")
    if value is None or value != value:
        return None
    return value if isinstance(value, (bool, int, float, str)) else str(value)
