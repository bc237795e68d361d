"""Finds the files of a bulk run and lists them in a fixed order."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from vim_embed_client.bulk.sources.reader import Skipped
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


PassOver = Callable[[Skipped], None]


def find_files(
    paths: Iterable[str],
    *,
    leave_out: Path | None = None,
    pass_over: PassOver = lambda skipped: None,
) -> list[str]:
    """The files named, in the folders named (with their subfolders) and matching the patterns.

    Sorted, each once. In folders only files with one of SUFFIXES count, and no hidden ones.
    leave_out: a file that is not wanted, such as the output of an earlier run, with what that run
    wrote beside it. pass_over: called for every other file of a folder that does not count, and
    for folders that cannot be listed, which are faults.
    Raises InputError for a path or pattern that leads to nothing.
    """
    found: set[str] = set()
    walked: set[str] = set()
    ours = _Ours(leave_out)

    def tell(skipped: Skipped) -> None:
        if skipped.id not in ours:
            pass_over(skipped)

    for path in paths:
        again = os.path.abspath(path) in walked
        here = set(_expand(path, tell, walked))
        if not here and not again:
            raise InputError(_nothing_in(path))
        found |= here
    return sorted(file for file in found if file not in ours)


def _nothing_in(path: str) -> str:
    if any(os.path.exists(os.path.join(path, name)) for name in _DATA_SET_FILES):
        return f"{path} is a data set that save_to_disk wrote: give hf:{path}"
    endings = ", ".join(SUFFIXES)
    return f"no images, arrays or shards in {path}: expected names that end in {endings}"


class _Ours:
    """What a run writes: its output, the files beside that, and its unfinished parts."""

    def __init__(self, output: Path | None) -> None:
        self._output = str(output.resolve()) if output else ""
        self._name = os.path.basename(self._output)

    def __contains__(self, file: str) -> bool:
        # Most names differ already, which spares a look at the disk.
        if not self._output or self._name not in file:
            return False
        found = str(Path(file).resolve())
        beside = {self._output + ending for ending in ("", ".json", ".skipped.jsonl")}
        return found in beside or found.startswith(f"{self._output}.parts{os.sep}")


def _expand(path: str, pass_over: PassOver, walked: set[str]) -> Iterator[str]:
    if os.path.isdir(path):
        yield from _in_folder(path, pass_over, walked)
    elif os.path.exists(path):
        yield path
    else:
        matches = glob.glob(path, recursive=True)
        if not matches:
            raise InputError(f"no such file, folder or pattern: {path}")
        for match in matches:
            if os.path.isdir(match):
                yield from _in_folder(match, pass_over, walked)
            else:
                yield match


def _in_folder(folder: str, pass_over: PassOver, walked: set[str]) -> Iterator[str]:
    """The sources in a folder; nothing where it was walked through before."""

    def unlisted(error: OSError) -> None:
        reason = f"cannot be listed ({error.strerror})"
        pass_over(Skipped(id=str(error.filename), reason=reason))

    for parent, folders, names in os.walk(folder, onerror=unlisted):
        here = os.path.abspath(parent)
        if here in walked:
            folders.clear()
            continue
        walked.add(here)
        for name in [name for name in folders if name.startswith(".")]:
            folders.remove(name)
            pass_over(Skipped(id=os.path.join(parent, name), reason="a hidden folder", fault=False))
        for name in sorted(names):
            path = os.path.join(parent, name)
            reason = _no_source(name)
            if reason is None:
                yield path
            else:
                pass_over(Skipped(id=path, reason=reason, fault=False))


def _no_source(name: str) -> str | None:
    """Why a file in a folder is no source, or None where it is one."""
    if name.startswith("."):
        return "a hidden file"
    if name.lower().endswith(SUFFIXES):
        return None
    ending = os.path.splitext(name)[1]
    return f"{ending} files are not read" if ending else "files without an ending are not read"


def open_array(path: str) -> Array:
    """An .npy file as a read-only memory map; raises InputError where it is not sound."""
    try:
        with NPY_HEADER_LOCK:
            array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy lets its parser's own errors through
        raise InputError(f"cannot be read as .npy ({error})") from None
    return array
