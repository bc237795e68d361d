"""Rows of Parquet files and of Hugging Face data sets, both a few Arrow rows at a time."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from typing import Any

from vim_embed_client.bulk.sources.arrow_values import Values, choose_column
from vim_embed_client.bulk.sources.flux import Stretch
from vim_embed_client.bulk.sources.reader import Entry, FileReader
from vim_embed_client.errors import ConfigurationError, InputError

_ROWS = 16


class TableColumns:
    """Which column holds images and which ids, and what the values mean."""

    def __init__(
        self,
        *,
        column: str | None = None,
        id_column: str | None = None,
        shape: Sequence[int] | None = None,
        stretch: Stretch | None = None,
    ) -> None:
        self.column, self.id_column = column, id_column
        self._shape, self._stretch = shape, stretch or Stretch()

    def with_column(self, column: str | None) -> TableColumns:
        """The same with another image column, where one is given."""
        twin = copy.copy(self)
        twin.column = column or self.column
        return twin

    def columns(self, schema: Any) -> list[str]:
        """The image column, then the id column if there is one. Raises InputError."""
        column = choose_column(schema, self.column)
        if self.id_column is None:
            return [column]
        return [column, choose_column(schema, self.id_column)]

    def entries(
        self, table: Any, columns: Sequence[str], name: str, first: int, folder: str = ""
    ) -> Iterator[Entry]:
        """The rows of an Arrow table whose first is number `first` of `name`."""
        values = Values(self._shape, self._stretch, folder)
        if len(columns) == 1:
            ids = [f"{name}#{first + row}" for row in range(len(table))]
        else:
            ids = [str(value) for value in table.column(columns[1]).to_pylist()]
        column = table.column(columns[0])
        yield from values.entries(_whole(column), ids)


def _whole(column: Any) -> Any:
    return column.combine_chunks() if hasattr(column, "combine_chunks") else column


class ParquetReader(FileReader):
    """A Parquet file with a column of images; ids are `path#row`, or from the id column."""

    def __init__(self, path: str, columns: TableColumns) -> None:
        super().__init__(path)
        self._columns = columns

    def count(self) -> int | None:
        try:
            return int(self._open().metadata.num_rows)
        except InputError:
            return None

    def read(self, start: int) -> Iterator[Entry]:
        pa = import_pyarrow()
        try:
            with self._open() as file:
                columns = self._columns.columns(file.schema_arrow)
                first, groups = _groups_from(file.metadata, start)
                for batch in file.iter_batches(_ROWS, row_groups=groups, columns=columns):
                    past = max(0, start - first)
                    rest = batch.slice(past)
                    folder = os.path.dirname(self.name)
                    yield from self._columns.entries(rest, columns, self.name, first + past, folder)
                    first += len(batch)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"cannot be read (any further) as Parquet ({error})") from None

    def _open(self) -> Any:
        pa = import_pyarrow()
        import pyarrow.parquet

        try:
            # Pages one after the other, not row groups whole: these can be of any size.
            return pyarrow.parquet.ParquetFile(self.name, buffer_size=1 << 20, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"cannot be read as Parquet ({error})") from None


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
