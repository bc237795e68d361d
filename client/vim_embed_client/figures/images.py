"""Finds the image of each row of an embedding file, and shows it as the model saw it.

Rows are read by the reader, and with the options, that embedded them: these are in the file.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vim_embed_client.bulk.sources.arrays import open_array
from vim_embed_client.bulk.sources.faults import named
from vim_embed_client.bulk.sources.huggingface import PREFIX
from vim_embed_client.bulk.sources.options import ReadOptions
from vim_embed_client.bulk.sources.reader import Item, Reader
from vim_embed_client.bulk.sources.registry import open_reader
from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.formats import Array
from vim_embed_client.scoring.embedding_files import EmbeddingFile
from vim_embed_client.scoring.ids import below_common_folder
from vim_embed_pixels.libtiff import quiet

Picture = NDArray[np.uint8]

_ARRAY = ".npy"
_INDEXED = re.compile(r"^(?P<path>.+)#(?P<index>\d+)$")
_ENDS_OF_PATHS = re.compile(r"[#:\[/]|$")
_STRETCH = (0.5, 99.5)  # percentiles that become black and white
_LARGEST = 384  # pixels of a side, more than is printed
_HINT = (
    "give {} the folder that they are in, the file or data set (hf:…) that was embedded, the "
    "catalogue of cut-outs, or a .npy stack with an image for each row"
)


class Images:
    """The images of an embedding file's rows.

    source: a folder, a file or `hf:` data set as `vim-embed embed` reads it, a .npy stack
    (N, 3, H, W), (N, H, W, 3) or (N, H, W), or None for images that are where their ids say.
    option: of the command line, by which another source can be given; messages name it.
    Raises InputError where the rows cannot have images there.
    """

    def __init__(
        self, file: EmbeddingFile, source: Path | str | None, *, option: str = "--images"
    ) -> None:
        self._file = file
        self._hint = _HINT.format(option)
        self._options = file.options or ReadOptions()
        self._folder: Path | None = None
        self._rows: _Rows | None = None
        self._stack: Array | None = None
        self._known: dict[str, _Rows] = {}
        self._loaded: dict[int, Picture] = {}
        self.stretched = False
        text = "" if source is None else str(source)
        if text.endswith(_ARRAY) and not (self._options.fluxes or self._options.stack):
            self._stack = _open_stack(Path(text))
            self._places = _places(file, self._stack, Path(text))
        elif text.startswith(PREFIX) or (text and not Path(text).is_dir()):
            self._rows = _Rows(open_reader(text, self._options))
        elif file.ids is None:
            raise InputError(f"{file.label} has no ids that would lead to its images: {self._hint}")
        else:
            self._folder = Path(text) if text else None
            self._below = below_common_folder(file.ids)

    def __getitem__(self, row: int) -> Picture:
        """(H, W, 3) of a row, read once; raises InputError if it cannot be found or read."""
        if row not in self._loaded:
            self._loaded[row] = self._load(row)
        return self._loaded[row]

    def _load(self, row: int) -> Picture:
        if self._stack is not None:
            return self._shown(self._stack[self._places[row]])
        name = self._file.name(row)
        if self._rows is not None:
            item = self._rows.item(name) or self._rows.numbered(name, int(self._file.numbers[row]))
        else:
            item = self._find(row)
        if item is None:
            where = f" in {self._folder}" if self._folder else ""
            raise InputError(f"there is no image {name}{where}: {self._hint}")
        return self._drawn(item)

    def _drawn(self, item: Item) -> Picture:
        if callable(item.data):
            return _small(as_picture(item.data()))
        if isinstance(item.data, np.ndarray):
            return _small(self._shown(item.data))
        encoded = io.BytesIO(item.data) if isinstance(item.data, bytes) else item.data
        unread = f"{item.id} cannot be read as an image, {self._hint}"
        with named(unread), quiet(), Image.open(encoded) as image:
            return _small(np.asarray(image.convert("RGB")))

    def _shown(self, array: Array) -> Picture:
        self.stretched |= array.dtype != np.uint8
        return as_picture(array)

    def _find(self, row: int) -> Item | None:
        name = self._file.name(row)
        for candidate in self._candidates(name, self._below[row]):
            for source in self._sources(candidate):
                if source not in self._known:
                    self._known[source] = _Rows(open_reader(source, self._options))
                with self._mosaics_named():
                    if item := self._known[source].item(candidate):
                        return item
        return None

    @contextmanager
    def _mosaics_named(self) -> Iterator[None]:
        """Say of mosaics that are not found from where they were named."""
        try:
            yield
        except (InputError, ConfigurationError) as error:
            if self._options.sky is None:
                raise
            told = f"{error.message}: {self._file.label} was cut out of mosaics that were named as "
            told += "seen from the folder of that run: give this command there"
            raise type(error)(told) from None

    def _sources(self, row_id: str) -> Iterator[str]:
        """What can be read of which `row_id` is a row: the files that its beginning names."""
        if row_id.startswith(PREFIX):
            head = row_id.partition("#")[0]
            yield head.replace(f"@{self._options.config}:", ":", 1)
            return
        if self._options.join_bands is not None and "{" in row_id:
            yield row_id
        if self._options.sky is not None:
            yield from self._options.sky.catalogues
        for end in _ENDS_OF_PATHS.finditer(row_id):
            if Path(row_id[: end.start()]).is_file():
                yield row_id[: end.start()]

    def _candidates(self, name: str, below: str) -> Iterator[str]:
        if self._folder is None:
            yield name
            if not name.startswith(PREFIX):
                yield str(self._file.path.parent / name)
            return
        for path in dict.fromkeys((name.lstrip("/"), below, Path(name).name)):
            yield str(self._folder / path)
            yield from (str(self._folder / f"{path}{end}") for end in (".png", ".jpg", ".npy"))


class _Rows:
    """The rows of one source, by their ids."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._numbers: dict[str, int] | None = None

    def item(self, row_id: str) -> Item | None:
        """The row of an id, or None. Raises InputError where the source cannot be read."""
        match = _INDEXED.match(row_id)
        for guess in {int(match["index"]) if match else 0, 0}:
            entry = next(self._reader.read(guess), None)
            if isinstance(entry, Item) and entry.id == row_id:
                return entry
        number = self._all().get(row_id)
        return None if number is None else self._at(number)

    def numbered(self, row_id: str, number: int) -> Item | None:
        """The row whose id ends like this one, else the one with this number among the rows."""
        ids = self._all()
        ending = [place for name, place in ids.items() if name.endswith(f"/{Path(row_id).name}")]
        if len(ending) == 1:
            return self._at(ending[0])
        places = list(ids.values())
        return self._at(places[number]) if number < len(places) else None

    def _at(self, number: int) -> Item | None:
        entry = next(self._reader.read(number), None)
        return entry if isinstance(entry, Item) else None

    def _all(self) -> dict[str, int]:
        """Places of all rows by their ids, as far as the source can be read."""
        if self._numbers is None:
            self._numbers = {}
            try:
                for number, entry in enumerate(self._reader.read(0)):
                    if isinstance(entry, Item):
                        self._numbers[entry.id] = number
            except InputError:
                if not self._numbers:
                    raise
        return self._numbers


def _small(picture: Picture) -> Picture:
    if max(picture.shape[:2]) <= _LARGEST:
        return picture
    image = Image.fromarray(picture)
    image.thumbnail((_LARGEST, _LARGEST))
    return np.asarray(image)


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
