"""Rows of HDF5 files: a data set of images beside data sets of other values.

So are Galaxy10 (`images`, `ans`, `ra`, `dec`), the files of the Multimodal Universe
(`image_array`, `image_band`, `object_id`), and what `vim-embed cutout` writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from vim_embed_client.bulk.sources.image_columns import ImageColumnReader
from vim_embed_client.bulk.sources.row_values import listed
from vim_embed_client.errors import InputError
from vim_embed_client.formats import Array
from vim_embed_client.sky.hdf5 import h5py
from vim_embed_pixels.names import is_auxiliary, is_science
from vim_embed_pixels.spelling import absent

_LEAST_AXES = 3

_PER_ROW = "of a value a row"


class Hdf5Reader(ImageColumnReader):
    """A row for each image of the data set that holds them; `--column` names it."""

    @contextmanager
    def _column(self) -> Iterator[_Images]:
        with self.content.open() as opened, h5py().File(opened, "r") as file:
            yield _Images(file, _chosen(file, self._options.column))


class _Images:
    """A data set as a column of images."""

    def __init__(self, file: Any, data: Any) -> None:
        self._file, self._data = file, data
        self.name = data.name.lstrip("/")
        self.shape: tuple[int, ...] = tuple(data.shape)
        self.dtype: np.dtype[Any] = data.dtype
        self.chunk = int(data.chunks[0]) if data.chunks else 64
        self.bands = _band_names(file, data)

    def rows(self, start: int, stop: int) -> Array:
        found: Array = self._data[start:stop]
        return found

    def values(self, column: str) -> list[Any]:
        path = self._path(column)
        data = self._file[path] if path else None
        if data is None or data.ndim != 1 or len(data) != self.shape[0]:
            beside = [one for one, shape in _listed(self._file).items() if shape == self.shape[:1]]
            raise InputError(f"it has {absent([column], beside, 'data set', _PER_ROW)}")
        values = listed(data[:])
        return [one.decode("utf-8", "replace") if isinstance(one, bytes) else one for one in values]

    def _path(self, column: str) -> str | None:
        """Of a data set: its path, or its name in the images' group, or else in the only group."""
        listed = _listed(self._file)
        beside = "/".join([*self.name.split("/")[:-1], column])
        for path in (column, beside):
            if path in listed:
                return path
        others = [path for path in listed if path.rpartition("/")[2] == column]
        if len(others) > 1:
            raise InputError(f"it has several data sets {column!r}: name {' or '.join(others)}")
        return others[0] if others else None


def _listed(file: Any) -> dict[str, tuple[int, ...]]:
    """The data sets by their paths, with their shapes."""
    found: dict[str, tuple[int, ...]] = {}

    def take(name: str, item: Any) -> None:
        if hasattr(item, "dtype") and item.shape is not None:
            found[name] = tuple(item.shape)

    file.visititems(take)
    return found


def _chosen(file: Any, wanted: str | None) -> Any:
    """The data set of images: the one named, else the only one that can be. Raises InputError."""
    listed = _listed(file)
    if wanted is not None:
        if wanted not in listed:
            raise InputError(f"it has {absent([wanted], list(listed), 'data set')}")
        return file[wanted]
    images = [
        name
        for name, shape in listed.items()
        if len(shape) >= _LEAST_AXES and 0 not in shape and file[name].dtype.kind in "iuf"
    ]
    named = [name for name in images if not is_auxiliary(name)]
    science = [name for name in named if is_science(name) or "images" in name]
    for some in (science, named):
        if len(some) == 1:
            return file[some[0]]
    told = ", ".join(f"{name} {shape}" for name, shape in listed.items())
    what = "several data sets could hold images" if named else "no data set seems to hold images"
    raise InputError(f"{what}: choose one with --column ({told})")


def _band_names(file: Any, data: Any) -> Sequence[str]:
    """Of `image_array`, what the first row of `image_band` says, as in the Multimodal Universe."""
    name = f"{data.name.removesuffix('_array')}_band"
    if name == data.name or name not in file or not len(file[name]):
        return ()
    first = np.atleast_1d(file[name][0])
    return tuple(
        one.decode("utf-8", "replace") if isinstance(one, bytes) else str(one) for one in first
    )
