"""What a bulk run on a cluster reads: arrays, Parquet tables and images, cut into parts.

Parts follow from the files and the number of rows alone, so that a run which goes on cuts the
same. Knows neither Ray nor models.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vim_embed.types.pixels import PixelArray

_IMAGES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif"))
_ARRAY, _TABLE = ".npy", ".parquet"


class SourceError(ValueError):
    """A file that cannot be read as it should; the message names it and the fix."""


@dataclass(frozen=True)
class Reading:
    """How to read tables. column: of images, else the only one that may hold them. id_column:
    of ids, else `path#row`. shape: (3, H, W) of rows that are flat lists.
    """

    column: str | None = None
    id_column: str | None = None
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Part:
    """Rows [start, stop) of one array or table, or whole images, one a row."""

    number: int
    paths: tuple[str, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Rows:
    """Their ids, and their pixels (n, 3, H, W), or n encoded images."""

    ids: list[str]
    images: PixelArray | list[bytes]


def find_sources(paths: Sequence[str]) -> list[str]:
    """The files named and those in the folders named, sorted, each once. Raises SourceError."""
    found: set[str] = set()
    for path in paths:
        here = set(_in_folder(path)) if os.path.isdir(path) else {path}
        if not here:
            raise SourceError(f"no .npy, .parquet or images in {path}")
        missing = next((file for file in here if not os.path.exists(file)), None)
        if missing is not None:
            raise SourceError(f"no such file: {missing}")
        found |= here
    return sorted(found)


def cut(files: Sequence[str], rows: int, reading: Reading) -> list[Part]:
    """All parts in order, of at most `rows` rows each. Raises SourceError."""
    pieces: list[tuple[tuple[str, ...], int, int]] = []
    images: list[str] = []
    for file in files:
        if _suffix(file) not in (_ARRAY, _TABLE):
            images.append(file)
            continue
        count = _count(file, reading)
        pieces += [((file,), i, min(i + rows, count)) for i in range(0, count, rows)]
    for i in range(0, len(images), rows):
        some = tuple(images[i : i + rows])
        pieces.append((some, 0, len(some)))
    return [Part(number, *piece) for number, piece in enumerate(pieces)]


def read(part: Part, reading: Reading) -> Rows:
    """The part's rows. Raises SourceError."""
    path = part.paths[0]
    if _suffix(path) == _ARRAY:
        array = _open_array(path)
        if array.ndim == 3:
            return Rows([path], np.array(array[None]))
        ids = [f"{path}#{row}" for row in range(part.start, part.stop)]
        return Rows(ids, np.array(array[part.start : part.stop]))
    if _suffix(path) == _TABLE:
        return _read_table(part, reading)
    return Rows(list(part.paths), [_read_file(one) for one in part.paths])


def _in_folder(folder: str) -> Iterator[str]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and _suffix(name) in {*_IMAGES, _ARRAY, _TABLE}:
                yield os.path.join(parent, name)


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _count(file: str, reading: Reading) -> int:
    if _suffix(file) == _ARRAY:
        array = _open_array(file)
        if array.ndim not in (3, 4) or array.shape[-3] != 3:
            raise SourceError(f"{file} has shape {array.shape}: expected (3, H, W) or (B, 3, H, W)")
        return 1 if array.ndim == 3 else len(array)
    with _open_table(file) as table:
        _column(table.schema_arrow, file, reading)
        return int(table.metadata.num_rows)


def _open_array(path: str) -> PixelArray:
    try:
        array: PixelArray = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy lets its parser's own errors through
        raise SourceError(f"{path} cannot be read as .npy ({error})") from error
    return array


def _open_table(path: str) -> Any:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path} cannot be read as Parquet ({error})") from error


def _read_file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror})") from error


def _read_table(part: Part, reading: Reading) -> Rows:
    path = part.paths[0]
    with _open_table(path) as table:
        column = _column(table.schema_arrow, path, reading)
        wanted = [column] if reading.id_column is None else [column, reading.id_column]
        first, groups = _groups(table.metadata, part)
        try:
            rows = table.read_row_groups(groups, columns=wanted)
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"{path} cannot be read any further ({error})") from error
    rows = rows.slice(part.start - first, part.stop - part.start)
    if reading.id_column is None:
        ids = [f"{path}#{row}" for row in range(part.start, part.stop)]
    else:
        ids = [str(value) for value in rows.column(reading.id_column).to_pylist()]
    return Rows(ids, _values(rows.column(column).combine_chunks(), path, reading))


def _groups(metadata: Any, part: Part) -> tuple[int, list[int]]:
    """The first row of the first row group that the part needs, and all that it needs."""
    needed: list[int] = []
    first = begin = 0
    for group in range(metadata.num_row_groups):
        end = begin + metadata.row_group(group).num_rows
        if begin < part.stop and end > part.start:
            first = first if needed else begin
            needed.append(group)
        begin = end
    return first, needed


def _column(schema: Any, path: str, reading: Reading) -> str:
    names = [reading.column] if reading.column else [f.name for f in schema if _may_hold(f.type)]
    for name in (*names, *([reading.id_column] if reading.id_column else [])):
        if name not in schema.names:
            raise SourceError(f"{path} has no column {name!r}; it has {', '.join(schema.names)}")
    if len(names) != 1:
        raise SourceError(
            f"{path} has {len(names)} columns that may hold images ({', '.join(names)}): name one"
        )
    return names[0]


def _may_hold(kind: Any) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)
    return lists or _encoded(kind) or isinstance(kind, pa.FixedShapeTensorType)


def _encoded(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _values(column: Any, path: str, reading: Reading) -> PixelArray | list[bytes]:
    if _encoded(column.type):
        whole = pa.types.is_struct(column.type)
        data = column.field("bytes") if whole else column
        return [value or b"" for value in data.to_pylist()]
    if isinstance(column.type, pa.FixedShapeTensorType):
        return np.array(column.to_numpy_ndarray())
    if reading.shape is None:
        raise SourceError(f"{path} holds flat lists: give their shape, such as 3,224,224")
    flat = column.flatten()
    while pa.types.is_list(flat.type) or pa.types.is_fixed_size_list(flat.type):
        flat = flat.flatten()
    try:
        return np.array(flat).reshape(len(column), *reading.shape)
    except ValueError as error:
        raise SourceError(f"{path}: rows are not of shape {reading.shape} ({error})") from error
