"""Rows of .npy and .npz files, read a row at a time, so that memory stays flat."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

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
from vim_embed_client.errors import InputError
from vim_embed_client.formats import NPY_HEADER_LOCK, Array
from vim_embed_pixels.names import is_auxiliary

_PIECE = 1 << 24


@dataclass(frozen=True)
class NpyHeader:
    """What an npy stream says before its numbers, and where they begin."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]
    offset: int


def read_header(file: IO[bytes]) -> NpyHeader:
    """The header at the start of an npy stream. Raises InputError."""
    try:
        with NPY_HEADER_LOCK:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0
            if version != (1, 0):
                read = np.lib.format.read_array_header_2_0
            shape, fortran_order, dtype = read(file)
    except Exception as error:  # numpy lets its parser's own errors through
        raise InputError(f"cannot be read as .npy: it holds no sound array ({error})") from None
    if dtype.hasobject:
        raise InputError("it holds Python objects, which are never unpickled")
    if dtype.subdtype or dtype.names:
        raise InputError(f"it holds records ({dtype}), which are no image: store plain numbers")
    return NpyHeader(shape, fortran_order, dtype, file.tell())


def open_array(path: str) -> Array:
    """An .npy file as a read-only memory map; raises InputError where it is not sound."""
    with named("cannot be read as .npy"), NPY_HEADER_LOCK:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


class NpyReader(FileReader):
    """An .npy file: one row of (3, H, W), (bands, H, W) or (H, W), or N rows of such."""

    def __init__(self, content: Content, options: ReadOptions) -> None:
        super().__init__(content)
        self._options = options

    def count(self) -> int | None:
        return _length(self._open()[1])

    def describe(self) -> Description:
        header, layout = self._open()
        image = Image(name="", shape=header.shape, dtype=str(header.dtype))
        return Description(images=(image,), options=layout.options)

    def read(self, start: int) -> Iterator[Entry]:
        with self.content.open() as file:
            header = read_header(file)
            layout = layout_of(header.shape, header.dtype, self._options)
            mapped = self.content.path if header.fortran_order and not self.content.packed else None
            yield from entries(
                file, header, layout, self._options, readable(self.name), start, mapped
            )

    def _open(self) -> tuple[NpyHeader, Layout]:
        with self.content.open() as file:
            header = read_header(file)
        return header, layout_of(header.shape, header.dtype, self._options)


def entries(
    file: IO[bytes],
    header: NpyHeader,
    layout: Layout,
    options: ReadOptions,
    name: str,
    start: int,
    mapped: str | None = None,
) -> Iterator[Entry]:
    """The rows of an array from `start` on; `file` stands right behind its header.

    mapped: a path where the array can be mapped instead. Raises InputError where it is cut short.
    """
    if layout.rows is None:
        if start == 0:
            (array,) = _blocks(file, header, (1, *header.shape), range(1), mapped)
            yield array_entry(name, array, layout, options)
        return
    rows = range(start, layout.rows)
    for row, array in zip(rows, _blocks(file, header, header.shape, rows, mapped), strict=True):
        yield array_entry(f"{name}#{row}", array, layout, options)


def _blocks(
    file: IO[bytes], header: NpyHeader, shape: tuple[int, ...], rows: range, mapped: str | None
) -> Iterator[Array]:
    if header.fortran_order:
        array = _fortran(file, header, mapped).reshape(shape)
        yield from (np.ascontiguousarray(array[row]) for row in rows)
        return
    size = math.prod(shape[1:]) * header.dtype.itemsize
    if rows.start:
        file.seek(rows.start * size, 1)
    for _ in rows:
        yield np.frombuffer(_exactly(file, size), header.dtype).reshape(shape[1:])


def _fortran(file: IO[bytes], header: NpyHeader, mapped: str | None) -> Array:
    if mapped is not None:
        return np.memmap(mapped, header.dtype, "r", header.offset, header.shape, "F")
    data = _exactly(file, math.prod(header.shape) * header.dtype.itemsize)
    return np.frombuffer(data, header.dtype).reshape(header.shape, order="F")


def _exactly(file: IO[bytes], size: int) -> bytes:
    """`size` bytes, however large a header says that is: no more memory than there are bytes."""
    pieces = []
    left = size
    while left:
        piece = file.read(min(left, _PIECE))
        if not piece:
            raise InputError("it ends in the middle of its array: was it cut short?")
        pieces.append(piece)
        left -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _length(layout: Layout) -> int:
    return 1 if layout.rows is None else layout.rows


class NpzReader(FileReader):
    """The image arrays of an .npz file, or the one named; streamed, compressed or not."""

    def __init__(self, content: Content, options: ReadOptions) -> None:
        super().__init__(content)
        self._options = options

    def count(self) -> int | None:
        with self._archive() as archive:
            return sum(_length(found.layout) for found in self._members(archive)[0])

    def describe(self) -> Description:
        with self._archive() as archive:
            taken, passed = self._members(archive)
        options = frozenset({"--column"}).union(*(one.layout.options for one in taken))
        return Description(images=(*(one.image for one in taken), *passed), options=options)

    def read(self, start: int) -> Iterator[Entry]:
        with self._archive() as archive:
            taken, passed = self._members(archive)
            for one in taken:
                yield from self._rows(archive, one, start)
                start = max(0, start - _length(one.layout))
        # Labels are passed over as what they are.
        for image in [image for image in passed if len(image.shape) != 1][start:]:
            name = f"{readable(self.name)}:{image.name}"
            yield Skipped(id=name, reason=image.note, fault=False)

    @contextmanager
    def _archive(self) -> Iterator[zipfile.ZipFile]:
        with self.content.open() as file, zipfile.ZipFile(file) as archive:
            yield archive

    def _members(self, archive: zipfile.ZipFile) -> tuple[list[_Member], list[Image]]:
        """Arrays that are rows, and those that are passed over. Raises InputError without any."""
        taken, passed = [], []
        for member in archive.namelist():
            name = member.removesuffix(".npy")
            if self._options.column not in (None, name):
                continue
            header = None
            try:
                with archive.open(member) as file:
                    header = read_header(file)
                layout = self._layout(name, header)
            except InputError as error:
                if self._options.column is not None:
                    raise
                shape = header.shape if header else ()
                passed.append(Image(name=name, shape=shape, dtype="array", note=error.message))
            else:
                image = Image(name=name, shape=header.shape, dtype=str(header.dtype))
                taken.append(_Member(member, header, layout, image))
        if not taken:
            what = "image arrays, (B, 3, H, W)," if self._options.column is None else ""
            wanted = what or repr(self._options.column)
            why = "; ".join(f"{one.name}: {one.note}" for one in passed) or archive.namelist()
            raise InputError(f"there are no {wanted} in it: it holds {why}")
        return taken, passed

    def _layout(self, name: str, header: NpyHeader) -> Layout:
        chosen = self._options.column is not None
        if not chosen and is_auxiliary(name):
            raise InputError("by its name it is a mask, error or weight (--column takes it)")
        if not chosen and len(header.shape) < 3:
            raise InputError(f"{header.dtype} of shape {header.shape} is no image")
        return layout_of(header.shape, header.dtype, self._options)

    def _rows(self, archive: zipfile.ZipFile, one: _Member, start: int) -> Iterator[Entry]:
        if start >= _length(one.layout):
            return
        name = f"{readable(self.name)}:{one.image.name}"
        with archive.open(one.member) as file:
            header = read_header(file)
            yield from entries(file, header, one.layout, self._options, name, start)


@dataclass(frozen=True)
class _Member:
    member: str
    header: NpyHeader
    layout: Layout
    image: Image
