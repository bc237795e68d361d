"""Catalogues as tables: columns by name. `table_formats` knows the kinds of files."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.paths import not_there
from vim_embed_client.sky.hats import is_hats
from vim_embed_client.sky.table_columns import Column, Columns, Part
from vim_embed_client.sky.table_files import TableFile
from vim_embed_client.sky.table_formats import ENDINGS, has_ending, hats_parts, parts_of
from vim_embed_client.sky.text_tables import NO_VALUE
from vim_embed_pixels.spelling import absent

__all__ = ["ENDINGS", "NO_VALUE", "Table", "TableName", "read_table", "split_table_name"]

# Those of ids, such as 007 or 1_2, are no numbers.
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_NUMBER = re.compile(
    r"[-+]?(0|[1-9][0-9]*|[0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?inf", re.I
)

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
        if has_ending(path) or is_hats(path):
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
        columns: Mapping[str, Column],
        positions: tuple[str, str] | None = None,
    ) -> None:
        self.path, self._columns, self.positions = path, columns, positions

    @classmethod
    def of(cls, path: Path, columns: Mapping[str, list[Any]]) -> Table:
        """The table of columns that are read already. path: to be named in messages."""
        return cls(path, {name: Column(partial(list, found)) for name, found in columns.items()})

    @property
    def names(self) -> list[str]:
        """Of all columns, in their order."""
        return list(self._columns)

    def unit(self, name: str) -> str:
        """The unit of a column as the file has it, empty where it tells none."""
        return self._columns[name].unit

    def frame(self, name: str) -> str:
        """The frame of a column of positions, as `Column` has it."""
        return self._columns[name].frame

    def exact(self, name: str) -> int:
        """Up to which number the floats of a column tell all whole numbers apart."""
        return self._columns[self.find(name) or name].exact

    def with_ucd(self, start: str) -> str | None:
        """The one column whose UCD begins so, of several that which is the main one, or None."""
        ucds = {own: column.ucd.lower() for own, column in self._columns.items()}
        found = [own for own, ucd in ucds.items() if ucd.split(";")[0] == start]
        main = [own for own in found if "meta.main" in ucds[own]]
        found = main or found
        return found[0] if len(found) == 1 else None

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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # astropy's, on units and details of the standards
            if path.is_dir():
                return Table(path, *hats_parts(path))
            parts, several = parts_of(TableFile(path))
            if part and not several:
                raise ConfigurationError(f"{path} is one table: leave out [{part}]")
            return Table(path, _choose(parts, part, column, path, wanted))
    except (ConfigurationError, InputError):
        raise
    except Exception as error:  # readers of foreign files raise errors of every kind
        raise InputError(f"{path} cannot be read as a table: {error}") from None


def _choose(
    parts: Sequence[Part],
    part: str,
    column: str,
    path: Path,
    wanted: Callable[[Table], bool] | None,
) -> Columns:
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
