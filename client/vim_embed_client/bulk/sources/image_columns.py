"""Rows of a column of images beside columns of other values: HDF5 data sets and FITS tables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from vim_embed_client.bulk.sources.content import Content
from vim_embed_client.bulk.sources.faults import named
from vim_embed_client.bulk.sources.layout import Layout, array_entry, layout_of
from vim_embed_client.bulk.sources.options import ReadOptions
from vim_embed_client.bulk.sources.reader import (
    Description,
    Entry,
    FileReader,
    Image,
    Skipped,
    readable,
)
from vim_embed_client.bulk.sources.row_values import RowIds, plain_value, with_columns
from vim_embed_client.errors import InputError
from vim_embed_client.formats import Array

_BLOCK_BYTES = 8 << 20


class ImageColumn(Protocol):
    """A column of images. name: of it. bands: names of its bands, or nothing.

    chunk: rows that are stored together, so that it pays to read them together.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    bands: Sequence[str]
    chunk: int

    def rows(self, start: int, stop: int) -> Array:
        """(stop - start, …) images."""
        ...

    def values(self, column: str) -> list[Any]:
        """Another column, a value for each row. Raises InputError where it is not there."""
        ...


class ImageColumnReader(FileReader, ABC):
    """A row for each image of a file's column of images."""

    def __init__(self, content: Content, options: ReadOptions) -> None:
        super().__init__(content)
        self._options = options

    @abstractmethod
    def _column(self) -> AbstractContextManager[ImageColumn]:
        """The column, while the file is open. Raises InputError where there is none."""

    def count(self) -> int:
        with self._column() as column:
            return column.shape[0]

    def describe(self) -> Description:
        with self._column() as column:
            return describe_image_column(column, self._options)

    def read(self, start: int) -> Iterator[Entry]:
        with self._column() as column:
            yield from image_column_entries(column, readable(self.name), self._options, start)


def image_column_layout(column: ImageColumn, options: ReadOptions) -> tuple[Layout, ReadOptions]:
    """How each row of the column is taken, and the options with bands by number."""
    with named("it cannot be shown"):
        stretch = options.stretch.by_number(column.bands)
    options = replace(options, stretch=stretch, stack=True)
    return layout_of(column.shape, column.dtype.newbyteorder("="), options), options


def describe_image_column(column: ImageColumn, options: ReadOptions) -> Description:
    """What is in it, and which options have an effect."""
    layout, _ = image_column_layout(column, options)
    image = Image(name=column.name, shape=column.shape, dtype=str(column.dtype))
    effective = layout.options - {"--stack"} | {"--column", "--id-column", "--keep"}
    return Description(images=(image,), options=effective)


def image_column_entries(
    column: ImageColumn, name: str, options: ReadOptions, start: int
) -> Iterator[Entry]:
    """The rows from `start` on; ids are `name#row`, or the values of the id column."""
    layout, options = image_column_layout(column, options)
    count = column.shape[0]
    ids = RowIds(name, options.id_column)
    chosen = (
        ids.numbered(count, 0)
        if options.id_column is None
        else ids.of_values(column.values(options.id_column), 0)
    )
    kept = {one: [plain_value(v) for v in column.values(one)] for one in options.keep}
    row_bytes = int(np.prod(column.shape[1:], dtype=object)) * column.dtype.itemsize
    step = max(1, min(column.chunk, _BLOCK_BYTES // max(1, row_bytes)))
    for first in range(start - start % step, count, step):
        block = column.rows(first, min(first + step, count))
        for row in range(max(first, start), first + len(block)):
            yield _entry(chosen[row], block[row - first], layout, options, kept, row)


def _entry(
    row_id: str | Skipped,
    image: Array,
    layout: Layout,
    options: ReadOptions,
    kept: Mapping[str, list[Any]],
    row: int,
) -> Entry:
    if isinstance(row_id, Skipped):
        return row_id
    native = np.asarray(image, image.dtype.newbyteorder("="))
    try:
        entry = array_entry(row_id, native, layout, options)
    except InputError as error:
        return Skipped(id=row_id, reason=error.message)
    return with_columns(entry, {name: values[row] for name, values in kept.items()})
