"""Reads columns of catalogues: CSV, Parquet, HATS, and by astropy FITS, ECSV and VOTable."""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.paths import not_there
from vim_embed_client.sky.hats import hats_columns, is_hats
from vim_embed_pixels.fits import library
from vim_embed_pixels.spelling import absent

_FITS = (".fits", ".fit", ".fts", ".fits.gz", ".fit.gz", ".fits.bz2")
_VOTABLE = (".vot", ".votable", ".xml", ".vot.gz")
_TEXT = (".csv", ".tsv")
_PARQUET = (".parquet", ".pq")
ENDINGS = (*_TEXT, *_PARQUET, *_FITS, ".ecsv", *_VOTABLE)

# What stands in a text for a number that is missing.
NO_VALUE = frozenset({"", "null", "nan", "n/a", "none", "--"})
# Those of ids, such as 007 or 1_2, are no numbers.
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_NUMBER = re.compile(
    r"[-+]?(0|[1-9][0-9]*|[0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?inf", re.I
)

_FIRST_FK5 = 1984  # equinoxes before are of FK4 where no frame is told (FITS Standard, 8.3)

_PART = re.compile(r"\[([^\[\]]+)\]$")


class TableName(NamedTuple):
    """FILE[PART]:COLUMN taken apart; part and column are empty where they are not given."""

    path: Path
    part: str
    column: str


def split_table_name(argument: str) -> TableName | None:
    """`cat.fits[2]:z` as (cat.fits, 2, z); None where no table is named.

    The folder of a HATS catalogue is a table too.
    """
    for head, column in ((argument, ""), argument.rpartition(":")[::2]):
        found = _PART.search(head)
        path = head[: found.start()] if found else head
        if path.lower().endswith(ENDINGS) or is_hats(path):
            return TableName(Path(path), found[1] if found else "", column)
    return None


class Table:
    """A table's columns by name, or by a name that differs in case only.

    columns: name -> its values (what is missing is None or empty), and their unit. positions: the
    names of right ascension and declination, where the file tells them.
    """

    def __init__(
        self,
        path: Path,
        columns: Mapping[str, _Column],
        positions: tuple[str, str] | None = None,
    ) -> None:
        self.path, self._columns, self.positions = path, columns, positions

    @classmethod
    def of(cls, path: Path, columns: Mapping[str, list[Any]]) -> Table:
        """The table of columns that are read already. path: to be named in messages."""
        return cls(path, {name: _Column(partial(list, found)) for name, found in columns.items()})

    @property
    def names(self) -> list[str]:
        """Of all columns, in their order."""
        return list(self._columns)

    def unit(self, name: str) -> str:
        """The unit of a column as the file has it, empty where it tells none."""
        return self._columns[name].unit

    def frame(self, name: str) -> str:
        """The frame of a column of positions, as `_Column` has it."""
        return self._columns[name].frame

    def find(self, name: str) -> str | None:
        """The column's own name, or None if it is not there."""
        alike = [own for own in self._columns if own.lower() == name.lower()]
        return name if name in self._columns else alike[0] if len(alike) == 1 else None

    def typed(self, name: str) -> list[Any]:
        """A column as whole numbers, numbers, bools or texts; None where there is none.

        Texts that are all numbers, as in a CSV file, are numbers. Raises as `[name]`, and
        InputError for a column of several values a row.
        """
        values = [None if _is_missing(value) else value for value in self[name]]
        if any(isinstance(value, (list, dict, tuple)) for value in values):
            raise InputError(f"{self.path}: the column {name!r} has several values a row")
        if any(isinstance(value, str) for value in values):
            return _numbers(values) or [None if v is None else str(v) for v in values]
        return [v if v is None or isinstance(v, (bool, int, float)) else str(v) for v in values]

    def require(self, names: Iterable[str]) -> None:
        """Raise ConfigurationError, naming them, for those that are not there."""
        if missing := [name for name in names if self.find(name) is None]:
            raise ConfigurationError(f"{self.path} has {absent(missing, self.names)}")

    def __getitem__(self, name: str) -> list[Any]:
        """Its values, one a row. Raises ConfigurationError if it is not there."""
        own = self.find(name)
        if own is None:
            raise ConfigurationError(f"{self.path} has {absent([name], self.names)}")
        try:
            return self._columns[own].read()
        except (ConfigurationError, InputError):
            raise
        except Exception as error:  # of a damaged file, whose columns are read one by one
            raise InputError(f"{self.path}: the column {own!r} cannot be read: {error}") from None


def read_table(
    path: Path,
    part: str = "",
    column: str = "",
    wanted: Callable[[Table], bool] | None = None,
) -> Table:
    """A table of one of ENDINGS. part: name or number of a FITS extension or VOTable table.

    Without it, it is the only one that has `column`, or is `wanted`. Raises ConfigurationError for
    what is not there or needs a package, InputError for a file that cannot be read.
    """
    if not path.exists():
        raise not_there(path)
    lower = path.name.lower()
    if path.is_dir() and not is_hats(path):
        raise ConfigurationError(f"{path} is a folder, and no HATS catalogue")
    if part and not lower.endswith((*_FITS, *_VOTABLE)):
        raise ConfigurationError(f"{path} is one table: leave out [{part}]")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # astropy's, on units and details of the standards
            if path.is_dir():
                return _hats(path)
            if lower.endswith(_TEXT):
                return Table(path, _csv(path))
            if lower.endswith(_PARQUET):
                return Table(path, _parquet(path))
            if lower.endswith(".ecsv"):
                return Table(path, _astropy_columns(_astropy().Table.read(path)))
            tables = _fits(path) if lower.endswith(_FITS) else _votable(path)
            return Table(path, _choose(tables, part, column, path, wanted))
    except (ConfigurationError, InputError):
        raise
    except Exception as error:  # readers of foreign files raise errors of every kind
        raise InputError(f"{path} cannot be read as a table: {error}") from None


class _Column(NamedTuple):
    """How the values of a column are read, their unit, and the frame of positions.

    frame: FK4 or FK5 and its equinox, such as `fk4 B1950`; empty for others and where none is told.
    """

    read: Callable[[], list[Any]]
    unit: str = ""
    frame: str = ""


_Columns = dict[str, _Column]


def _csv(path: Path) -> _Columns:
    """Separated by commas, semicolons or tabs; lines with # at the top are remarks."""
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path} is no UTF-8: save it as such (in Excel, CSV UTF-8)") from None
    remark = ""
    while text.startswith("#"):
        remark, _, text = text.partition("\n")
    if not text.strip():
        raise InputError(f"{path} is empty")
    text = _named(remark.lstrip("# "), text)
    separator = max(",;\t", key=text.partition("\n")[0].count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    header, *rows = (row for row in lines if any(row))
    names = [name.strip() for name in header]
    for number, row in enumerate(rows, 1):
        if any(row[len(names) :]):
            raise InputError(
                f"{path}: row {number} has {len(row)} values, and the first line {len(names)} "
                f"names: quote texts that hold a {separator!r}"
            )
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{path} has several columns {twice[0]!r}: name them apart")

    def reader(place: int) -> Callable[[], list[Any]]:
        return lambda: [row[place].strip() if place < len(row) else "" for row in rows]

    return {name: _Column(reader(place)) for place, name in enumerate(names)}


def _named(remark: str, text: str) -> str:
    """The lines below the names, which may stand in a remark: `#ra,dec` above `150.1,2.2`."""
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    fields = [field.strip() for field in first.split(separator)]
    if remark.count(separator) != len(fields) - 1 or separator not in first:
        return text
    return f"{remark}\n{text}" if any(map(_NUMBER.fullmatch, fields)) else text


def _hats(path: Path) -> Table:
    readers, positions = hats_columns(path)
    columns = {name: _Column(_with_text(read)) for name, read in readers.items()}
    return Table(path, columns, positions)


def _with_text(read: Callable[[], list[Any]]) -> Callable[[], list[Any]]:
    return lambda: [
        one.decode("utf-8", "replace") if isinstance(one, bytes) else one for one in read()
    ]


def _parquet(path: Path) -> _Columns:
    try:
        import pyarrow.parquet as parquet
    except ModuleNotFoundError:
        raise ConfigurationError(
            'reading .parquet needs pyarrow: pip install "vim-embed[parquet]"'
        ) from None
    file = parquet.ParquetFile(path)

    def reader(name: str) -> Callable[[], list[Any]]:
        return _with_text(lambda: list(file.read([name])[name].to_pylist()))

    return {name: _Column(reader(name)) for name in file.schema_arrow.names}


class _Part(NamedTuple):
    """One table of a file: its number and name there, and its columns."""

    number: int
    name: str
    columns: _Columns


def _fits(path: Path) -> list[_Part]:
    """The table extensions; compressed images are none."""
    table, fits = _astropy().Table, _astropy().fits
    with fits.open(path, memmap=False) as hdus:
        return [
            _Part(number, hdu.name, _in_frame(_astropy_columns(table.read(hdus, hdu=number)), hdu))
            for number, hdu in enumerate(hdus)
            if isinstance(hdu, (fits.BinTableHDU, fits.TableHDU))
            and not isinstance(hdu, fits.CompImageHDU)
        ]


def _in_frame(columns: _Columns, hdu: Any) -> _Columns:
    """The columns in the frame that the header of their table tells."""
    header = hdu.header
    told = str(header.get("RADESYS", header.get("RADECSYS", ""))).strip()
    frame = _frame(told, str(header.get("EQUINOX", "")))
    return {name: column._replace(frame=frame) for name, column in columns.items()}


def _frame(system: str, equinox: str) -> str:
    """`fk4 B1950` and the like, which differ from ICRS by more than a fraction of a pixel."""
    system, year = system.lower().removeprefix("eq_"), equinox.strip().upper().lstrip("BJ")
    try:
        number = float(year or (1950 if system == "fk4" else 2000))
    except ValueError:
        return ""
    if system == "fk4" or (not system and number < _FIRST_FK5):
        return f"fk4 B{number:g}"
    return f"fk5 J{number:g}" if system in ("", "fk5") and number != 2000 else ""


def _votable(path: Path) -> list[_Part]:
    _astropy()
    from astropy.io.votable import parse

    file = parse(path)
    return [
        _Part(number, table.name or table.ID or "", _votable_columns(file, table))
        for number, table in enumerate(file.iter_tables())
    ]


def _votable_columns(file: Any, table: Any) -> _Columns:
    columns = _astropy_columns(table.to_table(True))
    systems = {one.ID: one for one in file.iter_coosys()}
    for name, column in columns.items():
        field = next((one for one in table.fields if name in (one.name, one.ID)), None)
        system = systems.get(field.ref) if field is not None else None
        if system is not None:
            frame = _frame(str(system.system or ""), str(system.equinox or ""))
            columns[name] = column._replace(frame=frame)
    return columns


class _Astropy(NamedTuple):
    Table: Any
    fits: Any


def _astropy() -> _Astropy:
    try:
        from astropy.table import Table as AstropyTable
    except ModuleNotFoundError:
        raise ConfigurationError(
            'catalogues in FITS, ECSV and VOTable need astropy: pip install "vim-embed[astro]"'
        ) from None
    return _Astropy(AstropyTable, library())


def _astropy_columns(table: Any) -> _Columns:
    """Its columns; one of coordinates becomes two, `NAME.ra` and `NAME.dec`, in degrees."""

    def reader(column: Any, name: str) -> Callable[[], list[Any]]:
        return lambda: _values(column, name)

    found: _Columns = {}
    for name in table.colnames:
        column = table[name]
        if hasattr(column, "icrs"):
            sky = column.icrs
            for part, angle in (("ra", sky.ra), ("dec", sky.dec)):
                found[f"{name}.{part}"] = _Column(reader(angle.to("deg"), name), "deg")
        else:
            unit = getattr(column, "unit", None)
            found[name] = _Column(reader(column, name), str(unit or ""))
    return found


def _values(column: Any, name: str) -> list[Any]:
    values = np.ma.asarray(getattr(column, "value", column))
    if values.ndim != 1:
        raise InputError(f"the column {name!r} has {values.shape[1:]} values a row: choose another")
    return [
        value.decode("utf-8", "replace").strip() if isinstance(value, bytes) else value
        for value in values.tolist()
    ]


def _choose(
    parts: Sequence[_Part],
    part: str,
    column: str,
    path: Path,
    wanted: Callable[[Table], bool] | None,
) -> _Columns:
    listed = ", ".join(f"[{each.number}] {each.name}".strip() for each in parts)
    if not parts:
        raise ConfigurationError(f"{path} has no table")
    if part:
        fits = [p for p in parts if part == str(p.number) or part.lower() == p.name.lower()]
        if len(fits) != 1:
            raise ConfigurationError(f"{path} has no table [{part}], but {listed}")
        return fits[0].columns
    tables = [Table(path, p.columns) for p in parts]
    fit = [wanted(one) if wanted else one.find(column) is not None for one in tables]
    having = [p for p, fits in zip(parts, fit, strict=True) if fits]
    if len(having) > 1:
        raise ConfigurationError(
            f"{path} has several tables with {'positions' if wanted else repr(column)} ({listed}): "
            f"name one, as in {path}[{having[0].number}]{':' if column else ''}{column}"
        )
    return (having or parts)[0].columns


def _is_missing(value: Any) -> bool:
    return value is None or value != value or value == ""


def _numbers(values: Sequence[Any]) -> list[Any] | None:
    """Texts as whole numbers or numbers, or None where one is neither, as `007` and `1_2` are."""
    texts = [None if v is None or str(v).lower() in NO_VALUE else str(v) for v in values]
    known = [text for text in texts if text is not None]
    if not known:
        return texts
    for pattern, kind in ((_WHOLE, int), (_NUMBER, float)):
        if all(map(pattern.fullmatch, known)):
            return [None if text is None else kind(text) for text in texts]
    return None
