"""Rows of .npy and .npz files. An .npy is mapped a stretch at a time, so that memory stays flat."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from vim_embed_client.bulk.sources.files import open_array
from vim_embed_client.bulk.sources.reader import Entry, FileReader, pixel_item
from vim_embed_client.errors import InputError
from vim_embed_client.formats import NPY_HEADER_LOCK, Array

# Rows that one mapping serves: pages of an older mapping no longer count as this process's.
_MAPPED_ROWS = 256


def check_pixels(shape: tuple[int, ...]) -> None:
    """Raise InputError unless `shape` is that of one image or of many."""
    if len(shape) not in (3, 4) or 3 not in (shape[-3], shape[-1]) or 0 in shape:
        raise InputError(f"its shape is {shape}: expected (3, H, W), or (B, 3, H, W) for B rows")


class NpyReader(FileReader):
    """An .npy file of one (3, H, W) or many (B, 3, H, W) rows."""

    def count(self) -> int | None:
        try:
            array = open_array(self.name)
        except InputError:
            return None
        return len(array) if array.ndim == 4 else 1

    def read(self, start: int) -> Iterator[Entry]:
        array = open_array(self.name)
        check_pixels(array.shape)
        if array.ndim == 3:
            yield from () if start else (pixel_item(self.name, array),)
            return
        rows = len(array)
        for first in range(start, rows, _MAPPED_ROWS):
            array = open_array(self.name)
            for row in range(first, min(first + _MAPPED_ROWS, rows)):
                yield pixel_item(f"{self.name}#{row}", array[row])


class NpzReader(FileReader):
    """The image arrays of an .npz file, or the one named; streamed, compressed or not."""

    def __init__(self, path: str, column: str | None) -> None:
        super().__init__(path)
        self._column = column

    def count(self) -> int | None:
        try:
            with zipfile.ZipFile(self.name) as archive:
                return sum(len(rows) for _, rows in self._members(archive))
        except (InputError, OSError, zipfile.BadZipFile):
            return None

    def read(self, start: int) -> Iterator[Entry]:
        try:
            with zipfile.ZipFile(self.name) as archive:
                for member, rows in self._members(archive):
                    yield from self._rows(archive, member, rows[start:])
                    start = max(0, start - len(rows))
        except (OSError, EOFError, ValueError, zipfile.BadZipFile, zipfile.zlib.error) as error:  # type: ignore[attr-defined]
            if isinstance(error, InputError):
                raise
            raise InputError(f"cannot be read as .npz ({error})") from None

    def _members(self, archive: zipfile.ZipFile) -> list[tuple[str, range]]:
        found = []
        for member in archive.namelist():
            if self._column is not None and member != f"{self._column}.npy":
                continue
            with archive.open(member) as file:
                shape, _, _ = read_header(file)
            if self._column is not None:
                check_pixels(shape)
            if len(shape) in (3, 4) and 3 in (shape[-3], shape[-1]) and 0 not in shape:
                found.append((member, range(shape[0] if len(shape) == 4 else 1)))
        if not found:
            what = "image arrays, (B, 3, H, W)" if self._column is None else f"{self._column!r}"
            raise InputError(f"there are no {what} in it: it holds {archive.namelist()}")
        return found

    def _rows(self, archive: zipfile.ZipFile, member: str, rows: range) -> Iterator[Entry]:
        with archive.open(member) as file:
            shape, fortran_order, dtype = read_header(file)
            name = f"{self.name}:{member.removesuffix('.npy')}"
            one = shape[-3:]
            if fortran_order:
                array = np.frombuffer(file.read(), dtype).reshape(shape[::-1]).T.reshape(-1, *one)
                blocks: Iterator[Array] = (array[row] for row in rows)
            else:
                blocks = _stream(file, one, dtype, rows)
            for row, block in zip(rows, blocks, strict=True):
                yield pixel_item(f"{name}#{row}" if len(shape) == 4 else name, block)


def _stream(
    file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any], rows: range
) -> Iterator[Array]:
    size = int(np.prod(shape)) * dtype.itemsize
    file.seek(rows.start * size, 1)
    for _ in rows:
        yield np.frombuffer(file.read(size), dtype).reshape(shape)


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order and dtype at the start of an npy stream. Raises InputError."""
    try:
        with NPY_HEADER_LOCK:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0
            if version != (1, 0):
                read = np.lib.format.read_array_header_2_0
            shape, fortran_order, dtype = read(file)
    except Exception as error:  # numpy lets its parser's own errors through
        raise InputError(f"holds no sound npy array ({error})") from None
    if dtype.hasobject:
        raise InputError("it holds Python objects, which are never unpickled")
    return shape, fortran_order, dtype
