"""Rows of FITS tables with a column of images, such as cut-outs that a survey's archive sends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from vim_embed_client.bulk.sources.image_columns import ImageColumnReader
from vim_embed_client.bulk.sources.row_values import listed
from vim_embed_client.errors import InputError
from vim_embed_client.formats import Array
from vim_embed_pixels import fits, fits_library
from vim_embed_pixels.spelling import absent


class FitsTableReader(ImageColumnReader):
    """A row for each of a table, whose column `options.column` holds an image in each."""

    @contextmanager
    def _column(self) -> Iterator[_Images]:
        library = fits_library.library()
        with self.content.open() as opened, library.open(opened, memmap=False) as file:
            hdus, _ = fits_library.sound_hdus(file)
            wanted = str(self._options.column).lower()
            tables = [hdu for hdu in hdus if fits.is_table(hdu)]
            for table in tables:
                for name in table.columns.names:
                    if name.lower() == wanted:
                        yield _Images(table, name)
                        return
            listed = [name for table in tables for name in table.columns.names]
            if not tables:
                raise InputError(f"it has no table for the column {self._options.column!r}")
            raise InputError(f"it has {absent([str(self._options.column)], listed)}")


class _Images:
    """A column of a table as a column of images."""

    chunk = 64

    def __init__(self, table: Any, name: str) -> None:
        self._table, self.name = table, name
        first = np.asarray(table.data[name])
        if first.ndim < 3 or first.dtype.kind not in "iuf":
            raise InputError(f"its column {name} holds no image in a row: it is {first.shape}")
        self._data: Array = first
        self.shape: tuple[int, ...] = first.shape
        self.dtype: np.dtype[Any] = first.dtype
        self.bands: Sequence[str] = tuple(
            str(table.header.get("BANDS", "")).replace(",", " ").split()
        )

    def rows(self, start: int, stop: int) -> Array:
        return self._data[start:stop]

    def values(self, column: str) -> list[Any]:
        own = {name.lower(): name for name in self._table.columns.names}.get(column.lower())
        if own is None or np.ndim(self._table.data[own]) != 1:
            single = [
                name for name in self._table.columns.names if np.ndim(self._table.data[name]) == 1
            ]
            raise InputError(f"its table has {absent([column], single, which='of a value a row')}")
        return listed(np.asarray(self._table.data[own]))
