"""Finds the files of a bulk run and lists them in a fixed order."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from vim_embed_client.errors import InputError
from vim_embed_client.formats import NPY_HEADER_LOCK, Array

IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm",
)  # fmt: skip
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
FITS_SUFFIXES = tuple(
    base + packed for base in (".fits", ".fit", ".fts") for packed in ("", ".gz", ".fz")
)
TABLE_SUFFIXES = (".parquet",)
ARRAY_SUFFIXES = (".npy", ".npz")
_DATA_SET_FILES = ("dataset_info.json", "dataset_dict.json")
SUFFIXES = (*IMAGE_SUFFIXES, *ARRAY_SUFFIXES, *TAR_SUFFIXES, *TABLE_SUFFIXES, *FITS_SUFFIXES)


def find_files(paths: Iterable[str], *, leave_out: Path | None = None) -> list[str]:
    """The files named, in the folders named (with their subfolders) and matching the patterns.

    Sorted, each once. In folders only files with one of SUFFIXES count, and no hidden ones.
    leave_out: a file that is not wanted, such as the output of an earlier run, with its parts.
    Raises InputError for a path or pattern that leads to nothing.
    """
    found: set[str] = set()
    for path in paths:
        here = set(_expand(path))
        if not here:
            raise InputError(_nothing_in(path))
        found |= here
    if leave_out is None:
        return sorted(found)
    unwanted = leave_out.resolve()
    parts = f"{unwanted}.parts{os.sep}"
    return sorted(file for file in found if not _within(file, str(unwanted), parts))


def _nothing_in(path: str) -> str:
    if any(os.path.exists(os.path.join(path, name)) for name in _DATA_SET_FILES):
        return f"{path} is a data set that save_to_disk wrote: give hf:{path}"
    endings = ", ".join(SUFFIXES)
    return f"no images, arrays or shards in {path}: expected names that end in {endings}"


def _within(file: str, unwanted: str, parts: str) -> bool:
    # Most names differ already at the end, which spares a look at the disk.
    if os.path.basename(file) != os.path.basename(unwanted) and ".parts" not in file:
        return False
    resolved = str(Path(file).resolve())
    return resolved == unwanted or resolved.startswith(parts)


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
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                yield os.path.join(parent, name)


def open_array(path: str) -> Array:
    """An .npy file as a read-only memory map; raises InputError where it is not sound."""
    try:
        with NPY_HEADER_LOCK:
            array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy lets its parser's own errors through
        raise InputError(f"cannot be read as .npy ({error})") from None
    return array
