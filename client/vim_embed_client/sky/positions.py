"""Positions on the sky out of a catalogue's columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.formats import Array
from vim_embed_client.sky.angles import astropy
from vim_embed_client.sky.tables import Table

# Right ascension and declination as the large catalogues and tools call them, in small letters.
_NAMES = (
    ("ra", "dec"), ("raj2000", "dej2000"), ("_raj2000", "_dej2000"), ("ra_icrs", "de_icrs"),
    ("alpha_j2000", "delta_j2000"), ("alphawin_j2000", "deltawin_j2000"),
    ("alphapeak_j2000", "deltapeak_j2000"), ("ramean", "decmean"), ("meanra", "meandec"),
    ("coord_ra", "coord_dec"), ("ra_j2000", "dec_j2000"), ("ra_deg", "dec_deg"),
    ("radeg", "decdeg"), ("radeg", "dedeg"), ("x_world", "y_world"), ("target_ra", "target_dec"),
    ("i_ra", "i_dec"), ("right_ascension", "declination"), ("sky_coord.ra", "sky_coord.dec"),
)  # fmt: skip
_IN_HOURS = (":", " ", "h")


def position_columns(table: Table, given: tuple[str, str] | None = None) -> tuple[str, str]:
    """The names of the columns with right ascension and declination.

    given: the names, where the user gave them. Raises ConfigurationError where there are none.
    """
    for names in (given,) if given else _NAMES:
        own = [table.find(name) for name in names]
        if own[0] is not None and own[1] is not None:
            return own[0], own[1]
    wanted = f"columns {given[0]!r} and {given[1]!r}" if given else "positions that are known"
    raise ConfigurationError(
        f"{table.path} has no {wanted}, but the columns {', '.join(table.names)}: name those of "
        "right ascension and declination with --position RA,DEC"
    )


def read_positions(table: Table, given: tuple[str, str] | None = None) -> tuple[Array, Array]:
    """(n,) right ascension and declination in degrees, ICRS; NaN where a row has no position.

    Numbers are in the unit that the column has, else in degrees; texts such as `10:00:28.6` and
    `+02d12m21s` are hours and degrees. Raises ConfigurationError, InputError.
    """
    names = position_columns(table, given)
    ra, dec = (
        _degrees(table[name], table.unit(name), table, name, hours=place == 0)
        for place, name in enumerate(names)
    )
    good = np.isfinite(ra) & np.isfinite(dec) & (np.abs(dec) <= 90) & (ra >= -180) & (ra <= 360)
    return np.where(good, ra % 360, np.nan), np.where(good, dec, np.nan)


def _degrees(values: Sequence[Any], unit: str, table: Table, name: str, *, hours: bool) -> Array:
    numbers = _numbers(values)
    if numbers is None:
        return _sexagesimal(values, table, name, hours=hours)
    if not unit:
        return numbers
    units: Any = astropy("units")
    try:
        factor = float(units.Unit(unit).to("deg"))
    except (ValueError, TypeError, units.UnitsError):
        raise InputError(f"{table.path}: the unit {unit!r} of {name!r} is no angle") from None
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
