"""Finds images and .npy files, and lists their rows in a fixed order."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from vim_embed_client.errors import InputError
from vim_embed_client.wire import NPY_HEADER_LOCK, Array

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm"}
)
ARRAY_SUFFIX = ".npy"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file.

    index: of the row in an array of many, else None. like: what rows that can share a request
    have in common: shape and dtype, or None for encoded images.
    """

    path: str
    index: int | None
    like: tuple[Any, ...] | None
    size: int

    @property
    def id(self) -> str:
        """`path`, or `path#index` in an array of many."""
        return self.path if self.index is None else f"{self.path}#{self.index}"


def find_files(paths: Iterable[str], *, leave_out: Path | None = None) -> list[str]:
    """The files named, in the folders named (with their subfolders) and matching the patterns.

    Sorted, each once. In folders only images and .npy files count, and no hidden ones.
    leave_out: a file that is not wanted, such as the output of an earlier run.
    Raises InputError for a path or pattern that leads to nothing.
    """
    found: set[str] = set()
    for path in paths:
        here = set(_expand(path))
        if not here:
            raise InputError(f"no images or .npy files in {path}")
        found |= here
    unwanted = leave_out.resolve() if leave_out else None
    return sorted(file for file in found if Path(file).resolve() != unwanted)


def _expand(path: str) -> Iterator[str]:
    if os.path.isdir(path):
        yield from _in_folder(path)
    elif os.path.exists(path):
        yield path
    else:
        matches = glob.glob(path, recursive=True)
        if not matches:
            raise InputError(f"no such file, folder or pattern: {path}")
        for match in matches:
            yield from _in_folder(match) if os.path.isdir(match) else [match]


def _in_folder(folder: str) -> Iterator[str]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if not name.startswith(".") and (suffix in IMAGE_SUFFIXES or suffix == ARRAY_SUFFIX):
                yield os.path.join(parent, name)


def rows_of(path: str) -> list[Row]:
    """The rows of one file: one of an image or a (3, H, W) array, B of a (B, 3, H, W) array.

    Raises InputError for a file that cannot be read or an array of another shape.
    """
    if not path.lower().endswith(ARRAY_SUFFIX):
        return [Row(path=path, index=None, like=None, size=_file_size(path))]
    array = open_array(path)
    if array.ndim not in (3, 4) or array.shape[-3] != 3 or array.size == 0:
        raise InputError(
            f"its shape is {array.shape}: expected (3, H, W), or (B, 3, H, W) for B rows"
        )
    like = (array.shape[-3:], array.dtype.str)
    if array.ndim == 3:
        return [Row(path=path, index=None, like=like, size=array.nbytes)]
    size = array[0].nbytes
    return [Row(path=path, index=i, like=like, size=size) for i in range(len(array))]


def _file_size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})") from None


def open_array(path: str) -> Array:
    """An .npy file as a read-only memory map; raises InputError where it is not sound."""
    try:
        with NPY_HEADER_LOCK:
            array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy lets its parser's own errors through
        raise InputError(f"cannot be read as .npy ({error})") from None
    return array


def load_rows(rows: Sequence[Row]) -> Array:
    """The rows of arrays as (B, 3, H, W): mapped where they are one range of one file."""
    blocks = []
    for path, group in groupby(rows, key=lambda row: row.path):
        indices = [row.index for row in group]
        array = open_array(path)
        first, last = indices[0], indices[-1]
        blocks.append(array[None] if first is None or last is None else array[first : last + 1])
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
