"""Rows of Parquet files and of Hugging Face data sets, both a few Arrow rows at a time."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from vim_embed_client.bulk.sources.arrow_values import (
    Values,
    are_lists_of_images,
    choose_column,
    plain,
)
from vim_embed_client.bulk.sources.content import Content
from vim_embed_client.bulk.sources.options import ReadOptions
from vim_embed_client.bulk.sources.reader import (
    Description,
    Entry,
    FileReader,
    Image,
    readable,
)
from vim_embed_client.bulk.sources.row_values import RowIds, plain_value, with_columns
from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_pixels.spelling import absent

_ROWS = 16
_ID_ROWS = 4096
_TABLE_OPTIONS = frozenset({"--column", "--id-column", "--keep"})


class TableColumns:
    """Which column holds images and which ids, and what the values mean."""

    def __init__(self, options: ReadOptions) -> None:
        self.options = options

    def with_column(self, column: str | None) -> TableColumns:
        """The same with another image column, where one is given."""
        return TableColumns(replace(self.options, column=column or self.options.column))

    def names(self, schema: Any) -> list[str]:
        """The image column, then the id column and those that are kept. Raises InputError."""
        wanted = (self.options.column, self.options.id_column, *self.options.keep)
        given = [one for one in wanted if one is not None]
        if missing := [one for one in given if one not in schema.names]:
            raise InputError(f"it has {absent(missing, schema.names)}")
        return list(dict.fromkeys([choose_column(schema, self.options.column), *given]))

    def describe(self, table: Any, names: Sequence[str]) -> Description:
        """Of an Arrow table with the first rows."""
        column = _whole(table.column(names[0]))
        found = Values(self.options).effective(column) | _TABLE_OPTIONS
        image = Image(name=names[0], shape=(), dtype=str(column.type))
        return Description(images=(image,), options=found)


def _whole(column: Any) -> Any:
    return column.combine_chunks() if hasattr(column, "combine_chunks") else column


def table_entries(
    tables: Iterator[Any], values: Values, column: str, ids: RowIds, first: int
) -> Iterator[Entry]:
    """The rows of Arrow tables that follow each other, the first of which is number `first`."""
    for table in tables:
        images, names = _whole(table.column(column)), ids.of(table, first)
        if not values.keep:
            yield from values.entries(images, names)
        for row, kept in enumerate(_kept(table, values.keep)):
            for entry in values.entries(images.slice(row, 1), names[row : row + 1]):
                yield with_columns(entry, kept)
        first += len(table)


def _kept(table: Any, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The values of each row in these columns; nothing where there are none."""
    columns = [plain(_whole(table.column(name))).to_pylist() for name in names]
    for values in zip(*columns, strict=True):
        yield {name: plain_value(v) for name, v in zip(names, values, strict=True)}


class ParquetReader(FileReader):
    """A Parquet file with a column of images; ids are `path#row`, or from the id column."""

    def __init__(self, content: Content, options: ReadOptions) -> None:
        super().__init__(content)
        self._columns = TableColumns(options)

    def count(self) -> int | None:
        with self._open() as file:
            schema = file.schema_arrow
            several = are_lists_of_images(schema.field(self._columns.names(schema)[0]).type)
            return None if several else int(file.metadata.num_rows)

    def describe(self) -> Description:
        with self._open() as file:
            names = self._columns.names(file.schema_arrow)
            rows = next(file.iter_batches(_ROWS, columns=names), None)
            empty = file.schema_arrow.empty_table()
            return self._columns.describe(empty if rows is None else rows, names)

    def read(self, start: int) -> Iterator[Entry]:
        with self._open() as file:
            names = self._columns.names(file.schema_arrow)
            values = Values(self._columns.options, os.path.dirname(self.name))
            ids = RowIds(readable(self.name), self._columns.options.id_column)
            if are_lists_of_images(file.schema_arrow.field(names[0]).type):
                # Rows give any number of entries: only reading them again tells which.
                tables = file.iter_batches(_ROWS, columns=names)
                found = table_entries(tables, values, names[0], ids, 0)
                yield from itertools.islice(found, start, None)
                return
            self._note_ids(file, ids, start)
            yield from table_entries(_batches(file, names, start), values, names[0], ids, start)

    def _note_ids(self, file: Any, ids: RowIds, rows: int) -> None:
        """Let `ids` see those of the first rows, which an earlier attempt has read."""
        column = self._columns.options.id_column
        first = 0
        for table in file.iter_batches(_ID_ROWS, columns=[column]) if column and rows else ():
            ids.of(table.slice(0, max(0, rows - first)), first)
            first += len(table)

    @contextmanager
    def _open(self) -> Iterator[Any]:
        import_pyarrow()
        from pyarrow.parquet import ParquetFile

        # Pages one after the other, not row groups whole: these can be of any size.
        with (
            self.content.open() as opened,
            ParquetFile(opened, buffer_size=1 << 20, pre_buffer=False) as file,
        ):
            yield file


def _batches(file: Any, names: list[str], start: int) -> Iterator[Any]:
    """Arrow batches of these columns from row `start` on."""
    first, groups = _groups_from(file.metadata, start)
    if not groups:  # older pyarrow (18) fails on an empty list
        return
    for batch in file.iter_batches(_ROWS, row_groups=groups, columns=names):
        yield batch.slice(max(0, start - first))
        first += len(batch)


def _groups_from(metadata: Any, start: int) -> tuple[int, list[int]]:
    """The first row of the row group that holds row `start`, and the groups from there on."""
    first = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if start < first + rows:
            return first, list(range(group, metadata.num_row_groups))
        first += rows
    return first, []


def import_pyarrow() -> Any:
    try:
        import pyarrow
    except ModuleNotFoundError:
        raise ConfigurationError(
            'reading .parquet needs pyarrow: pip install "vim-embed[parquet]"'
        ) from None
    return pyarrow
