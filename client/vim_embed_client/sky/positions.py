"""Positions on the sky out of a catalogue's columns."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.formats import Array
from vim_embed_client.sky.angles import astropy
from vim_embed_client.sky.tables import NO_VALUE, Table, read_table
from vim_embed_pixels.spelling import absent, listed

# Right ascension and declination as the large catalogues and tools call them, in small letters.
_NAMES = (
    ("ra", "dec"), ("raj2000", "dej2000"), ("raj2000", "decj2000"), ("_raj2000", "_dej2000"),
    ("ra_icrs", "de_icrs"), ("alpha_j2000", "delta_j2000"), ("alphawin_j2000", "deltawin_j2000"),
    ("alphapeak_j2000", "deltapeak_j2000"), ("ramean", "decmean"), ("rastack", "decstack"),
    ("meanra", "meandec"), ("coord_ra", "coord_dec"), ("ra_j2000", "dec_j2000"),
    ("ra_deg", "dec_deg"), ("radeg", "decdeg"), ("radeg", "dedeg"), ("x_world", "y_world"),
    ("target_ra", "target_dec"), ("i_ra", "i_dec"), ("right_ascension", "declination"),
    ("sky_coord.ra", "sky_coord.dec"), ("plug_ra", "plug_dec"), ("ra2000", "dec2000"),
    ("_ra.icrs", "_de.icrs"), ("_ra_icrs", "_de_icrs"), ("_ra", "_de"), ("sc_ra", "sc_dec"),
    ("matchra", "matchdec"), ("alpha_sky", "delta_sky"),
)  # fmt: skip
# Parts of angles in columns of their own, as CDS and the journals write them.
_HMS, _DMS = ("rah", "ram", "ras"), ("de-", "ded", "dem", "des")
_UCDS = ("pos.eq.ra", "pos.eq.dec")
_BRACKETS = re.compile(r"[\s_]*[\[(](.+)[\])]$")  # about a unit, as in `RA (deg)`
_OF_NAMES = ("2000", "icrs")  # a name that tells the frame itself
_IN_HOURS = (":", " ", "h")
_HOURS = ("h", "hr", "hour", "hours", "hourangle")


class PositionColumn(NamedTuple):
    """A column of angles. unit: as the user gave it, else as the file has it.

    parts: the columns of its hours or degrees, minutes and seconds, if it is in several.
    """

    name: str
    unit: str
    parts: tuple[str, ...] = ()

    def values(self, table: Table) -> list[Any]:
        """Its values, of parts as texts such as `10 00 28.6`."""
        if not self.parts:
            return table[self.name]
        rows = zip(*(map(_text, table[part]) for part in self.parts), strict=True)
        signed = len(self.parts) == len(_DMS)
        return [
            "" if "" in row[signed:] else ("".join(row[:signed]) + " ".join(row[signed:]))
            for row in rows
        ]


def position_columns(
    table: Table, given: tuple[str, str] | None = None
) -> tuple[PositionColumn, PositionColumn]:
    """The columns with right ascension and declination.

    given: the names, where the user gave them; a unit may follow in brackets, as in
    `ra[hourangle]`. Raises ConfigurationError where there are none.
    """
    found = _position_columns(table, given)
    if found is not None:
        return found
    fix = "name those of right ascension and declination with --position RA,DEC"
    if given:
        missing = [name.partition("[")[0] for name in given if _column(table, name) is None]
        raise ConfigurationError(f"{table.path} has {absent(missing, table.names)}: {fix}")
    raise ConfigurationError(
        f"{table.path} has no positions that are known, but {listed(table.names)}: {fix}"
    )


def table_with_positions(path: Path, part: str = "", given: tuple[str, str] | None = None) -> Table:
    """The table of a file that has positions. part, and errors: as `read_table`.

    Raises ConfigurationError where several have some.
    """
    return read_table(path, part, wanted=lambda one: _position_columns(one, given) is not None)


def _position_columns(
    table: Table, given: tuple[str, str] | None
) -> tuple[PositionColumn, PositionColumn] | None:
    known = (table.positions, *_NAMES) if table.positions else _NAMES
    for names in (given,) if given else known:
        ra, dec = (_column(table, name) for name in names)
        if ra is not None and dec is not None:
            return ra, dec
    return None if given else _described(table)


def _described(
    table: Table,
) -> tuple[PositionColumn, PositionColumn] | None:
    """Columns whose names have a unit in brackets; in parts; or which their UCDs tell."""
    bare = {_BRACKETS.sub("", name).lower(): name for name in reversed(table.names)}
    pairs = [tuple(map(bare.get, names)) for names in _NAMES]
    pairs.append(tuple(map(table.with_ucd, _UCDS)))
    parts = _in_parts(table, _HMS, "hourangle"), _in_parts(table, _DMS, "deg")
    if parts[0] is not None and parts[1] is not None:
        return parts[0], parts[1]
    for ra, dec in pairs:
        if ra is not None and dec is not None:
            return _with_brackets(table, ra), _with_brackets(table, dec)
    return None


def _in_parts(table: Table, names: tuple[str, ...], unit: str) -> PositionColumn | None:
    found = [table.find(name) for name in names]
    parts = tuple(name for name in found if name is not None)
    return PositionColumn(parts[-1], unit, parts) if len(parts) == len(names) else None


def _with_brackets(table: Table, name: str) -> PositionColumn:
    """The column, in the unit that its name tells where the file does not."""
    unit = _BRACKETS.search(name)
    return PositionColumn(name, table.unit(name) or (unit[1] if unit else ""))


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
    `+02d12m21s` are hours and degrees, unless the column has another unit. Raises
    ConfigurationError, InputError.
    """
    columns = position_columns(table, given)
    ra, dec = (
        _degrees(column.values(table), column, table, hours=place == 0)
        for place, column in enumerate(columns)
    )
    good = np.isfinite(ra) & np.isfinite(dec) & (np.abs(dec) <= 90) & (ra >= -180) & (ra <= 360)
    ra, dec = np.where(good, ra % 360, np.nan), np.where(good, dec, np.nan)
    name = columns[0].name
    frame = "" if any(mark in name.lower() for mark in _OF_NAMES) else table.frame(name)
    return _icrs(ra, dec, frame) if frame else (ra, dec)


def _icrs(ra: Array, dec: Array, frame: str) -> tuple[Array, Array]:
    """Positions (n,) of FK4 or FK5 of another equinox, in ICRS degrees."""
    kind, equinox = frame.split()
    coordinates: Any = astropy("coordinates")
    there = np.isfinite(ra)
    sky = coordinates.SkyCoord(ra[there], dec[there], unit="deg", frame=kind, equinox=equinox).icrs
    ra, dec = ra.copy(), dec.copy()
    ra[there], dec[there] = sky.ra.degree, sky.dec.degree
    return ra, dec


def in_other_units(ra: Array, dec: Array) -> Iterator[tuple[str, Array, Array]]:
    """What positions would be whose unit is not told and not degrees: the unit, and degrees."""
    if np.nanmax(ra, initial=0) <= 24:
        yield "hourangle", ra * 15, dec
    if np.nanmax(ra, initial=0) <= 2 * np.pi and np.nanmax(np.abs(dec), initial=0) <= np.pi / 2:
        yield "rad", np.degrees(ra), np.degrees(dec)


def _degrees(values: Sequence[Any], column: PositionColumn, table: Table, *, hours: bool) -> Array:
    name, unit, _ = column
    numbers = _numbers(values)
    if numbers is None:
        return _sexagesimal(values, table, column, hours=hours)
    if not unit:
        return numbers
    factor = _in_degrees(unit, hours=hours)
    if factor is None:
        raise InputError(
            f"{table.path}: the unit {unit!r} of {name!r} is no angle: say which it is with "
            f"--position, as in {name}[deg]"
        )
    return numbers * factor


def _in_degrees(unit: str, *, hours: bool) -> float | None:
    """Degrees in a unit however it is written, such as `Degrees`; None where it is no angle."""
    units: Any = astropy("units")
    lower = unit.lower().strip()
    if hours and lower in _HOURS:
        return 15.0
    for spelled in (unit, lower, lower.rstrip("s")):
        try:
            return float(units.Unit(spelled).to("deg"))
        except (ValueError, TypeError, units.UnitsError):
            continue
    return None


def _numbers(values: Sequence[Any]) -> Array | None:
    try:
        return np.array([np.nan if _no_value(v) else float(v) for v in values], float)
    except (TypeError, ValueError):
        return None


def _text(value: Any) -> str:
    """A part of an angle, empty where there is none."""
    text = "" if _no_value(value) or value != value else str(value).strip()
    return text.removesuffix(".0")


def _no_value(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() in NO_VALUE)


def _sexagesimal(
    values: Sequence[Any], table: Table, column: PositionColumn, *, hours: bool
) -> Array:
    coordinates: Any = astropy("coordinates")
    found = np.full(len(values), np.nan)
    told = _in_degrees(column.unit, hours=hours) if column.unit else None
    for row, value in enumerate(values):
        if _no_value(value):
            continue
        text = str(value).strip()
        in_hours = hours and any(mark in text for mark in _IN_HOURS) and "d" not in text
        if told is not None:  # the unit of the column, and not a guess
            in_hours = told == 15
        try:
            found[row] = coordinates.Angle(text, unit="hourangle" if in_hours else "deg").degree
        except (ValueError, TypeError):
            raise InputError(
                f"{table.path}: {text!r} in row {row} of {column.name!r} is no angle: write it as "
                "150.119 in degrees, or as 10:00:28.6 in hours; leave it empty where there is none"
            ) from None
    return found
