"""Finds the image of each row of an embedding file, and makes it fit to be shown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vim_embed_client.bulk.sources.arrays import open_array
from vim_embed_client.errors import InputError
from vim_embed_client.formats import Array
from vim_embed_client.scoring.embedding_files import EmbeddingFile
from vim_embed_client.scoring.pairing import below_common_folder

Picture = NDArray[np.uint8]

_ARRAY = ".npy"
_INDEXED = re.compile(r"^(?P<path>.+)#(?P<index>\d+)$")
_STRETCH = (0.5, 99.5)  # percentiles that become black and white
_LARGEST = 384  # pixels of a side, more than is printed
_HINT = "give --images the folder that they are in, or a .npy stack with an image for each row"


class Images:
    """The images of an embedding file's rows.

    source: a folder, a .npy stack (N, 3, H, W), (N, H, W, 3) or (N, H, W), or None for images
    that are where their ids say. Raises InputError where the rows cannot have images there.
    """

    def __init__(self, file: EmbeddingFile, source: Path | None) -> None:
        self._file = file
        self._folder = source
        self._stack: Array | None = None
        self._loaded: dict[int, Picture] = {}
        self.stretched = False
        if source is not None and source.suffix == _ARRAY:
            self._stack = _open_stack(source)
            self._places = _places(file, self._stack, source)
        elif file.ids is None:
            raise InputError(f"{file.label} has no ids that would lead to its images: {_HINT}")
        else:
            self._below = below_common_folder(file.ids)

    def __getitem__(self, row: int) -> Picture:
        """(H, W, 3) of a row, read once; raises InputError if it cannot be found or read."""
        if row not in self._loaded:
            self._loaded[row] = self._load(row)
        return self._loaded[row]

    def _load(self, row: int) -> Picture:
        if self._stack is not None:
            return self._shown(self._stack[self._places[row]])
        path, index = self._find(row)
        if path.suffix.lower() == _ARRAY:
            array = open_array(str(path))
            return self._shown(array if index is None else array[index])
        try:
            with Image.open(path) as image:
                image.thumbnail((_LARGEST, _LARGEST))
                return np.asarray(image.convert("RGB"))
        except (OSError, UnidentifiedImageError) as error:
            raise InputError(f"{path} cannot be read as an image ({error}): {_HINT}") from None

    def _shown(self, array: Array) -> Picture:
        self.stretched |= array.dtype != np.uint8
        return as_picture(array)

    def _find(self, row: int) -> tuple[Path, int | None]:
        name = self._file.name(row)
        for candidate in self._candidates(name, self._below[row]):
            if candidate.is_file():
                return candidate, None
            match = _INDEXED.match(str(candidate))
            if match and Path(match["path"]).is_file():
                return Path(match["path"]), int(match["index"])
        where = f" in {self._folder}" if self._folder else ""
        raise InputError(f"there is no image {name}{where}: {_HINT}")

    def _candidates(self, name: str, below: str) -> Iterator[Path]:
        if self._folder is None:
            yield Path(name)
            yield self._file.path.parent / name
            return
        for path in dict.fromkeys((name.lstrip("/"), below, Path(name).name)):
            yield self._folder / path
            yield from (self._folder / f"{path}{ending}" for ending in (".png", ".jpg", ".npy"))


def as_picture(array: Array) -> Picture:
    """(3, H, W), (H, W, 3) or (H, W) as (H, W, 3) uint8.

    What is not uint8 is stretched between its 0.5 and 99.5 percentiles; NaN becomes black.
    """
    if array.ndim == 3 and array.shape[0] in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3):
        raise InputError(f"an array of shape {array.shape} is no image: expected (3, H, W)")
    if array.dtype != np.uint8:
        array = _stretched(array)
    picture: Picture = np.broadcast_to(array, (*array.shape[:2], 3))
    return picture


def _stretched(array: Array) -> Array:
    values: NDArray[Any] = np.asarray(array, np.float64)
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, _STRETCH) if finite.size else (0.0, 1.0)
    scaled = (values - low) / (high - low if high > low else 1.0)
    stretched: Array = np.rint(255 * np.clip(np.nan_to_num(scaled), 0, 1)).astype(np.uint8)
    return stretched


def _open_stack(path: Path) -> Array:
    try:
        array = open_array(str(path))
    except InputError as error:
        raise InputError(f"{path} {error.message}") from None
    if array.ndim not in (3, 4):
        raise InputError(f"{path} has the shape {array.shape}: expected (N, 3, H, W)")
    return array


def _places(file: EmbeddingFile, stack: Array, path: Path) -> Array:
    """(n,) the image of each row: by `#index` in the ids of one array, else by position."""
    matches = [_INDEXED.match(name) for name in file.ids or ()]
    if matches and all(matches):
        found = [match for match in matches if match]
        indices = np.array([int(match["index"]) for match in found])
        if len({match["path"] for match in found}) == 1 and indices.max() < len(stack):
            return indices
    if file.numbers.max() >= len(stack) or (file.rows is None and len(file) != len(stack)):
        raise InputError(
            f"{path} has {len(stack)} images and {file.label} {len(file)} rows: give the stack "
            "that was embedded, or a folder in which the ids are found"
        )
    return file.numbers
