"""What readers of catalogues give: columns of a table, of which a file may have several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from vim_embed_client.errors import InputError
from vim_embed_client.exact import EXACT

_FIRST_FK5 = 1984  # equinoxes before are of FK4 where no frame is told (FITS Standard, 8.3)


class Column(NamedTuple):
    """How the values of a column are read, their unit, and the frame of positions.

    frame: FK4 or FK5 and its equinox, such as `fk4 B1950`; empty for others and where none is
    told. ucd: what the IVOA calls the quantity, such as `pos.eq.ra;meta.main`. exact: up to which
    number its floats tell all whole numbers apart.
    """

    read: Callable[[], list[Any]]
    unit: str = ""
    frame: str = ""
    ucd: str = ""
    exact: int = EXACT


Columns = dict[str, Column]


class Part(NamedTuple):
    """One table of a file: its number and name there, and its columns."""

    number: int
    name: str
    columns: Columns


def frame_of(system: str, equinox: str) -> str:
    """`fk4 B1950` and the like, which differ from ICRS by more than a fraction of a pixel."""
    system, year = system.lower().removeprefix("eq_"), equinox.strip().upper().lstrip("BJ")
    try:
        number = float(year or (1950 if system == "fk4" else 2000))
    except ValueError:
        return ""
    if system == "fk4" or (not system and number < _FIRST_FK5):
        return f"fk4 B{number:g}"
    return f"fk5 J{number:g}" if system in ("", "fk5") and number != 2000 else ""


def with_text(read: Callable[[], list[Any]]) -> Callable[[], list[Any]]:
    """The same with bytes as text."""
    return lambda: [
        one.decode("utf-8", "replace") if isinstance(one, bytes) else one for one in read()
    ]


def exact_of(dtype: Any) -> int:
    """As `Column.exact`, of a dtype of numpy."""
    return 2 << int(np.finfo(dtype).nmant) if dtype.kind == "f" else EXACT


def of_astropy(table: Any) -> Columns:
    """The columns of an astropy Table.

    One of coordinates becomes two, `NAME.ra` and `NAME.dec`, in degrees.
    """

    def reader(column: Any, name: str) -> Callable[[], list[Any]]:
        return lambda: _values(column, name)

    found: Columns = {}
    for name in table.colnames:
        column = table[name]
        if hasattr(column, "icrs"):
            sky = column.icrs
            for part, angle in (("ra", sky.ra), ("dec", sky.dec)):
                found[f"{name}.{part}"] = Column(reader(angle.to("deg"), name), "deg")
            continue
        found[name] = Column(
            reader(column, name),
            unit=str(getattr(column, "unit", None) or ""),
            ucd=str(getattr(column, "meta", {}).get("ucd", "")),
            exact=exact_of(np.asarray(column).dtype),
        )
    return found


def _values(column: Any, name: str) -> list[Any]:
    values = np.ma.asarray(getattr(column, "value", column))
    if values.ndim != 1:
        raise InputError(f"the column {name!r} has {values.shape[1:]} values a row: choose another")
    return [_stripped(value) for value in values.tolist()]


def _stripped(value: Any) -> Any:
    """Texts without spaces about them: SDSS fills its ids with spaces from the left."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return value.strip() if isinstance(value, str) else value
