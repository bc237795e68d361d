"""Ids as text: the value itself, whatever type a file gives it. Knows no file formats."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from vim_embed_client.errors import InputError
from vim_embed_client.exact import EXACT, FIX, inexact

_ROW = re.compile(r"#\d+$")
# Of a file and of its compression; the 7 of J1234+56.7 is no ending.
_ENDING = re.compile(r"(?<=[^/])\.[A-Za-z]\w{0,8}(\.(gz|fz|bz2|xz|zst|Z))?$")
_SHOWN = 5


def id_texts(values: Iterable[Any], exact: int = EXACT) -> list[str | None]:
    """Each id as text, None where there is none.

    Bytes are read as UTF-8, and what is none of it is written as \\xff; 7.0 is the id 7, as when
    a table with missing values holds whole numbers. exact: as of `inexact`. Raises InputError for
    a list or a struct, and for floats too large to tell whole numbers apart.
    """
    return [_text(value, exact) for value in values]


def _text(value: Any, exact: int) -> str | None:
    if value is None or value != value:  # NaN
        return None
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace").rstrip("\0")
    if inexact(value, exact):
        raise InputError(f"the id {value} is a float that stands for several whole numbers: {FIX}")
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
            f"{where}: {counted(missing)} no id (null): give each row one; --by-row leaves ids "
            "out, and takes row i of two files for the same source"
        )
    return [name for name in ids if name is not None]


def refuse_repeats(names: Sequence[str], where: str, *, or_else: str = "") -> None:
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


def below_common_folder(ids: Sequence[str]) -> list[str]:
    """The ids without the folder that all of them have in common."""
    paths = [os.path.normpath(_ROW.sub("", name)) for name in ids]
    try:
        folder = os.path.commonpath(paths)
    except ValueError:  # absolute and relative paths mixed
        return list(ids)
    return [
        (os.path.relpath(path, folder) if folder else path) + name[len(_ROW.sub("", name)) :]
        for path, name in zip(paths, ids, strict=True)
    ]


def without_endings(ids: Sequence[str]) -> list[str]:
    """The ids below their common folder without a file's endings: `7.fits.gz#3` is `7#3`."""
    return [_without_ending(name) for name in below_common_folder(ids)]


def _without_ending(name: str) -> str:
    path = _ROW.sub("", name)
    return _ENDING.sub("", path) + name[len(path) :]


def spellings(ids: Sequence[str]) -> list[list[str]]:
    """Ids as they are, below their common folder, without endings, and as bare names."""
    return [
        list(ids),
        below_common_folder(ids),
        without_endings(ids),
        [_without_ending(os.path.basename(name)) for name in ids],
    ]
