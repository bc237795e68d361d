"""Reads the column that colours a map, and brings it to the rows of the embeddings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.exact import inexact
from vim_embed_client.formats import Array
from vim_embed_client.scoring.embedding_files import EmbeddingFile
from vim_embed_client.scoring.ids import id_texts, refuse_repeats, spellings
from vim_embed_client.scoring.kept_columns import kept_table
from vim_embed_client.scoring.matching import row_matches
from vim_embed_client.sky.tables import ENDINGS, Table, read_table, split_table_name

Kind = Literal["categorical", "continuous"]

# What stands for no value in many catalogues, if all other values are far from it.
_STAND_INS = (-99.0, -99.9, -999.0, -999.9, -9999.0)
_APART = 0.5
_FEW = 8  # whole numbers: at most so many are classes


@dataclass(frozen=True, kw_only=True)
class Column:
    """A value for each row of an embedding file.

    values: (n,) float64, NaN where there is none, if continuous; else str, empty for none. joined:
    how a table's rows were found, such as "row by row"; empty for columns of the file itself.
    """

    name: str
    kind: Kind
    values: Array
    joined: str = ""

    @property
    def missing(self) -> int:
        """How many rows have no value."""
        none = np.isnan(self.values) if self.kind == "continuous" else self.values == ""
        return int(none.sum())

    @property
    def remark(self) -> str:
        """What to say of numbers that look as if they stood for no value, or nothing."""
        if self.kind != "continuous":
            return ""
        suspects = np.isin(self.values, _STAND_INS)
        others = self.values[~suspects & ~np.isnan(self.values)]
        if not suspects.any() or not len(others) or others.min() < _APART * max(_STAND_INS):
            return ""
        shown = ", ".join(f"{value:g}" for value in np.unique(self.values[suspects]))
        return (
            f"{int(suspects.sum()):,} values of {self.name} are {shown}, which count as numbers: "
            "if they stand for no value, leave them empty, or write nan"
        )


def read_column(
    argument: str,
    file: EmbeddingFile,
    *,
    id_column: str = "id",
    kind: Kind | None = None,
    match: float | None = None,
    ids_first: bool = False,
) -> Column:
    """COLUMN of the embedding file itself, or TABLE:COLUMN of a catalogue (tables.ENDINGS).

    A table's rows are joined by id where both have ids, else they go by their numbers. match: they
    are joined by position on the sky, within so many arcseconds; with `ids_first`, only where the
    table has no such id column. kind: found out from the values if not given. Raises
    ConfigurationError for a table or column that is not there, and InputError where the rows do
    not fit.
    """
    named = split_table_name(argument)
    if named is None:
        kept = kept_table(file)
        if not kept.names:
            raise ConfigurationError(
                f"{file.path} has no columns beside the embeddings: colour by FILE:COLUMN, "
                f"with a FILE of {', '.join(ENDINGS)}, or embed with --keep"
            )
        values = kept[argument]
        return _column(argument, [values[i] for i in file.numbers], kind)
    path, part, name = named
    if not name:
        raise ConfigurationError(f"{argument} lacks the column: give {argument}:COLUMN")
    table = read_table(path, part, name)
    values = table[name]
    by_id = file.ids is not None and table.find(id_column) is not None
    if match is not None and not (ids_first and by_id):
        rows = row_matches(file, table, match)
        found, how = [values[row] if row >= 0 else None for row in rows], "by position"
    elif by_id:
        ids = id_texts(table[id_column], table.exact(id_column))
        found, how = _join(file, ids, values, path), f"by its column {id_column}"
    else:
        _refuse_ids_elsewhere(file, table)
        found, how = _by_row(file, values, path, id_column), "row by row"
    return replace(_column(name, found, kind), joined=how)


def _refuse_ids_elsewhere(file: EmbeddingFile, table: Table) -> None:
    """Raise InputError where most of the ids are in a column of the table: its rows go by these."""
    least = len(file) // 2 + 1
    mine = [set(names) for names in spellings(file.ids or [])]
    for name in table.names if file.ids else []:
        values = table.typed(name)
        if all(v is None or (isinstance(v, (str, int)) and not inexact(v)) for v in values):
            theirs = {text for text in id_texts(values) if text}
            if any(len(names & theirs) >= least for names in mine):
                raise InputError(
                    f"{table.path} has the ids of {file.label} in its column {name!r}: give "
                    f"--id-column {name}, or its rows would be taken in their order"
                )


def _by_row(file: EmbeddingFile, values: list[Any], table: Path, id_column: str) -> list[Any]:
    if len(values) <= file.numbers.max() or (file.rows is None and len(values) != len(file)):
        raise InputError(
            f"{table} has {len(values)} rows and {file.label} {len(file)}: join them by id, with "
            f"ids in both (--id-column names the table's; it is {id_column!r} now)"
        )
    return [values[i] for i in file.numbers]


def _join(file: EmbeddingFile, ids: list[str | None], values: list[Any], table: Path) -> list[Any]:
    rows = [(key, value) for key, value in zip(ids, values, strict=True) if key]
    keys = [key for key, _ in rows]
    refuse_repeats(keys, str(table), or_else="")
    places = dict(rows)
    for mine in spellings(file.ids or []):
        if any(name in places for name in mine):
            return [places.get(name) for name in mine]
    raise InputError(
        f"no id of {table} is one of {file.label}: {', '.join(keys[:2])} there, "
        f"{', '.join((file.ids or [])[:2])} here"
    )


def _column(name: str, values: list[Any], kind: Kind | None) -> Column:
    texts = ["" if _is_missing(value) else str(value) for value in values]
    if not any(texts):
        raise InputError(f"the column {name!r} has no value for any of the rows")
    numbers = _numbers(texts)
    if kind == "continuous" and numbers is None:
        raise InputError(f"the column {name!r} is not numeric: leave out --continuous")
    if numbers is not None and (kind or _kind(numbers)) == "continuous":
        return Column(name=name, kind="continuous", values=numbers)
    return Column(name=name, kind="categorical", values=np.array(texts))


def _is_missing(value: Any) -> bool:
    return value is None or str(value).strip().lower() in ("", "nan", "null", "none", "na")


def _numbers(texts: list[str]) -> Array | None:
    try:
        values = np.array([float(text) if text else np.nan for text in texts])
    except ValueError:
        return None
    values[np.isinf(values)] = np.nan
    return values


def _kind(numbers: Array) -> Kind:
    known = numbers[~np.isnan(numbers)]
    whole = bool(np.all(known == np.round(known)))
    return "categorical" if whole and len(np.unique(known)) <= _FEW else "continuous"
