"""Ids as text: the value itself, whatever type a file gives it. Knows no file formats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from vim_embed_client.errors import InputError

_SHOWN = 5
_BY_ROW = ", or pair rows by position with --by-row"


def id_texts(values: Iterable[Any]) -> list[str | None]:
    """Each id as text, None where there is none.

    Bytes are read as UTF-8, and what is none of it is written as \\xff; 7.0 is the id 7, as when
    a table with missing values holds whole numbers. Raises InputError for a list or a struct.
    """
    return [_text(value) for value in values]


def _text(value: Any) -> str | None:
    if value is None or value != value:  # NaN
        return None
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace").rstrip("\0")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (list, dict, tuple)):
        raise InputError(f"an id is one value, not {value!r}: choose another column for the ids")
    return str(value)


def complete(ids: Sequence[str | None], where: str) -> list[str]:
    """The ids, if there is one for each row. Raises InputError, naming the rows without one."""
    missing = [row for row, name in enumerate(ids) if name is None]
    if missing:
        raise InputError(
            f"{where}: {counted(missing)} no id (null): give each row one, or pair rows by "
            "position with --by-row"
        )
    return [name for name in ids if name is not None]


def refuse_repeats(names: Sequence[str], where: str, *, or_else: str = _BY_ROW) -> None:
    """Raise InputError, naming the rows, where an id stands for several of them."""
    times = Counter(names)
    if len(times) == len(names):
        return
    again = next(name for name, count in times.items() if count > 1)
    rows = [row for row, name in enumerate(names) if name == again]
    others = sum(count > 1 for count in times.values()) - 1
    more = f", and {others} other ids repeat too" if others else ""
    raise InputError(
        f"{where}: the id {again} stands for several rows ({listed(rows)}{more}); keep one row "
        f"for each id{or_else}"
    )


def counted(rows: Sequence[int]) -> str:
    """`row 7 has`, `3 rows (1, 5, 9) have`."""
    if len(rows) == 1:
        return f"row {rows[0]} has"
    return f"{len(rows):,} rows ({listed(rows)}) have"


def listed(rows: Sequence[int]) -> str:
    """The first rows by number, counted from 0."""
    return ", ".join(map(str, rows[:_SHOWN])) + (", …" if len(rows) > _SHOWN else "")
