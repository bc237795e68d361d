"""Reads the column that colours a map, and brings it to the rows of the embeddings."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.formats import Array
from vim_embed_client.scoring.embedding_files import EmbeddingFile, split_argument
from vim_embed_client.scoring.pairing import below_common_folder

Kind = Literal["categorical", "continuous"]

_FEW = 8  # whole numbers: at most so many are classes
_TABLES = (".csv", ".parquet")


@dataclass(frozen=True, kw_only=True)
class Column:
    """A value for each row of an embedding file.

    values: (n,) float64, NaN where there is none, if continuous; else str, empty for none.
    """

    name: str
    kind: Kind
    values: Array

    @property
    def missing(self) -> int:
        """How many rows have no value."""
        none = np.isnan(self.values) if self.kind == "continuous" else self.values == ""
        return int(none.sum())


def read_column(
    argument: str, file: EmbeddingFile, *, id_column: str = "id", kind: Kind | None = None
) -> Column:
    """COLUMN of the embedding file itself, or TABLE:COLUMN of a .csv or .parquet file.

    A table's rows are joined by id where both have ids, else they go by position. kind: found
    out from the values if not given. Raises ConfigurationError for a table or column that is not
    there, and InputError where the rows do not fit.
    """
    table, name = split_argument(argument) if _names_a_table(argument) else (None, argument)
    if table is None:
        path = file.path
        (values,) = _read(path, [argument])
        return _column(argument, [values[i] for i in file.numbers], kind)
    if name is None:
        raise ConfigurationError(f"{argument} lacks the column: give {argument}:COLUMN")
    keyed = file.ids is not None and id_column in _header(table)
    values, *ids = _read(table, [name, id_column] if keyed else [name])
    joined = (
        _join(file, ids[0], values, table) if keyed else _by_row(file, values, table, id_column)
    )
    return _column(name, joined, kind)


def _names_a_table(argument: str) -> bool:
    path = Path(argument.rpartition(":")[0] if ":" in argument else argument)
    return path.suffix.lower() in _TABLES


def _header(path: Path) -> list[str]:
    if path.suffix.lower() == ".csv":
        with path.open(newline="", encoding="utf-8-sig") as lines:
            return next(csv.reader(lines), [])
    if path.suffix.lower() == ".parquet":
        names: list[str] = _parquet().read_schema(path).names
        return names
    raise ConfigurationError(
        f"{path} has no columns beside the embeddings: colour by FILE.csv:COLUMN"
    )


def _read(path: Path, names: Sequence[str]) -> list[list[Any]]:
    """Columns of a .csv or .parquet file; what is missing is None or empty."""
    header = _header(path)
    for name in names:
        if name not in header:
            raise ConfigurationError(f"{path} has no column {name!r}, but {', '.join(header)}")
    if path.suffix.lower() == ".parquet":
        table = _parquet().read_table(path, columns=list(names))
        return [table[name].to_pylist() for name in names]
    with path.open(newline="", encoding="utf-8-sig") as lines:
        rows = list(csv.DictReader(lines))
    return [[(row[name] or "").strip() for row in rows] for name in names]


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ConfigurationError(
            'reading .parquet needs pyarrow: pip install "vim-embed[parquet]"'
        ) from None
    return pyarrow.parquet


def _by_row(file: EmbeddingFile, values: list[Any], table: Path, id_column: str) -> list[Any]:
    if len(values) <= file.numbers.max() or (file.rows is None and len(values) != len(file)):
        raise InputError(
            f"{table} has {len(values)} rows and {file.label} {len(file)}: join them by id, with "
            f"ids in both (--id-column names the table's; it is {id_column!r} now)"
        )
    return [values[i] for i in file.numbers]


def _join(file: EmbeddingFile, ids: list[Any], values: list[Any], table: Path) -> list[Any]:
    keys = [str(name) for name in ids]
    if len(set(keys)) < len(keys):
        raise InputError(f"{table}: an id stands for several rows; keep one row for each")
    places = dict(zip(keys, values, strict=True))
    for mine in _spellings(file.ids or []):
        if any(name in places for name in mine):
            return [places.get(name) for name in mine]
    raise InputError(
        f"no id of {table} is one of {file.label}: {', '.join(keys[:2])} there, "
        f"{', '.join((file.ids or [])[:2])} here"
    )


def _spellings(ids: list[str]) -> list[list[str]]:
    """Ids as they are, below their common folder, and as bare names without an ending."""
    return [ids, below_common_folder(ids), [Path(name).stem for name in ids]]


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
