"""Positions on the sky out of a catalogue's columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.formats import Array
from vim_embed_client.sky.angles import astropy
from vim_embed_client.sky.tables import Table
from vim_embed_pixels.spelling import absent, listed

# Right ascension and declination as the large catalogues and tools call them, in small letters.
_NAMES = (
    ("ra", "dec"), ("raj2000", "dej2000"), ("raj2000", "decj2000"), ("_raj2000", "_dej2000"),
    ("ra_icrs", "de_icrs"), ("alpha_j2000", "delta_j2000"), ("alphawin_j2000", "deltawin_j2000"),
    ("alphapeak_j2000", "deltapeak_j2000"), ("ramean", "decmean"), ("rastack", "decstack"),
    ("meanra", "meandec"), ("coord_ra", "coord_dec"), ("ra_j2000", "dec_j2000"),
    ("ra_deg", "dec_deg"), ("radeg", "decdeg"), ("radeg", "dedeg"), ("x_world", "y_world"),
    ("target_ra", "target_dec"), ("i_ra", "i_dec"), ("right_ascension", "declination"),
    ("sky_coord.ra", "sky_coord.dec"),
)  # fmt: skip
_IN_HOURS = (":", " ", "h")
_HOURS = ("h", "hr", "hour", "hours", "hourangle")


class PositionColumn(NamedTuple):
    """A column of angles. unit: as the user gave it, else as the file has it."""

    name: str
    unit: str


def position_columns(
    table: Table, given: tuple[str, str] | None = None
) -> tuple[PositionColumn, PositionColumn]:
    """The columns with right ascension and declination.

    given: the names, where the user gave them; a unit may follow in brackets, as in
    `ra[hourangle]`. Raises ConfigurationError where there are none.
    """
    known = (table.positions, *_NAMES) if table.positions else _NAMES
    for names in (given,) if given else known:
        own = [_column(table, name) for name in names]
        if own[0] is not None and own[1] is not None:
            return own[0], own[1]
    fix = "name those of right ascension and declination with --position RA,DEC"
    if given:
        columns = zip(given, own, strict=True)
        missing = [name.partition("[")[0] for name, column in columns if column is None]
        raise ConfigurationError(f"{table.path} has {absent(missing, table.names)}: {fix}")
    raise ConfigurationError(
        f"{table.path} has no positions that are known, but {listed(table.names)}: {fix}"
    )


def _column(table: Table, name: str) -> PositionColumn | None:
    own = table.find(name)
    if own is not None:
        return PositionColumn(own, table.unit(own))
    head, bracket, unit = name.rstrip("]").partition("[")
    own = table.find(head) if bracket else None
    return None if own is None else PositionColumn(own, unit)


def read_positions(table: Table, given: tuple[str, str] | None = None) -> tuple[Array, Array]:
    """(n,) right ascension and declination in degrees, ICRS; NaN where a row has no position.

    Numbers are in the unit that the column has, else in degrees; texts such as `10:00:28.6` and
    `+02d12m21s` are hours and degrees. Raises ConfigurationError, InputError.
    """
    ra, dec = (
        _degrees(table[column.name], column, table, hours=place == 0)
        for place, column in enumerate(position_columns(table, given))
    )
    good = np.isfinite(ra) & np.isfinite(dec) & (np.abs(dec) <= 90) & (ra >= -180) & (ra <= 360)
    return np.where(good, ra % 360, np.nan), np.where(good, dec, np.nan)


def in_other_units(ra: Array, dec: Array) -> Iterator[tuple[str, Array, Array]]:
    """What positions would be whose unit is not told and not degrees: the unit, and degrees."""
    if np.nanmax(ra, initial=0) <= 24:
        yield "hourangle", ra * 15, dec
    if np.nanmax(ra, initial=0) <= 2 * np.pi and np.nanmax(np.abs(dec), initial=0) <= np.pi / 2:
        yield "rad", np.degrees(ra), np.degrees(dec)


def _degrees(values: Sequence[Any], column: PositionColumn, table: Table, *, hours: bool) -> Array:
    name, unit = column
    numbers = _numbers(values)
    if numbers is None:
        return _sexagesimal(values, table, name, hours=hours)
    if not unit:
        return numbers
    units: Any = astropy("units")
    if hours and unit.lower() in _HOURS:
        unit = "hourangle"
    try:
        factor = float(units.Unit(unit).to("deg"))
    except (ValueError, TypeError, units.UnitsError):
        raise InputError(
            f"{table.path}: the unit {unit!r} of {name!r} is no angle: say which it is with "
            f"--position, as in {name}[deg]"
        ) from None
    return numbers * factor


def _numbers(values: Sequence[Any]) -> Array | None:
    try:
        return np.array([np.nan if v is None or v == "" else float(v) for v in values], float)
    except (TypeError, ValueError):
        return None


def _sexagesimal(values: Sequence[Any], table: Table, name: str, *, hours: bool) -> Array:
    coordinates: Any = astropy("coordinates")
    found = np.full(len(values), np.nan)
    for row, value in enumerate(values):
        text = str(value or "").strip()
        in_hours = hours and any(mark in text for mark in _IN_HOURS) and "d" not in text
        try:
            if text:
                unit = "hourangle" if in_hours else "deg"
                found[row] = coordinates.Angle(text, unit=unit).degree
        except (ValueError, TypeError):
            raise InputError(
                f"{table.path}: {text!r} in row {row} of {name!r} is no angle"
            ) from None
    return found
