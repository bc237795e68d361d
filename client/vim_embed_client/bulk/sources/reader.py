"""What a source yields: rows to embed, and what had to be left out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from vim_embed_client.errors import InputError
from vim_embed_client.formats import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One row. size: its bytes.

    data: a file's path, encoded bytes, a (3, H, W) array, or what makes uint8 pixels of any size
    when the row is sent (and may raise InputError).
    """

    id: str
    data: str | bytes | Array | Callable[[], Array]
    size: int

    @property
    def like(self) -> tuple[Any, ...] | None:
        """What rows that can share a request have in common; None for encoded images."""
        if isinstance(self.data, np.ndarray):
            return self.data.shape, self.data.dtype.str
        return ("made",) if callable(self.data) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A row or file that was left out, and why.

    fault: False where nothing is wrong with it, and it was passed over for what it is, such as
    the mask beside an image; such an entry never ends a run.
    """

    id: str
    reason: str
    fault: bool = True


Entry: TypeAlias = Item | Skipped


class Reader(Protocol):
    """One file, shard or data set, whose rows come in a fixed order.

    name: as the user knows it.
    """

    name: str

    def stamp(self) -> str:
        """Text that changes when the content may have."""
        ...

    def count(self) -> int | None:
        """How many rows, where that is cheap to say."""
        ...

    def read(self, start: int) -> Iterator[Entry]:
        """Rows from number `start` on. Raises InputError where the rest cannot be read."""
        ...


class FileReader:
    """Base of the readers of sources that are one file."""

    def __init__(self, path: str) -> None:
        self.name = path

    def stamp(self) -> str:
        try:
            found = os.stat(self.name)
        except OSError:
            return f"{self.name}\0gone"
        return f"{self.name}\0{found.st_size}\0{found.st_mtime_ns}"

    def count(self) -> int | None:
        return None


class ImageReader(FileReader):
    """An encoded image: one row, read only when it is sent."""

    def count(self) -> int:
        return 1

    def read(self, start: int) -> Iterator[Entry]:
        if start == 0:
            yield Item(id=self.name, data=self.name, size=file_size(self.name))


def file_size(path: str) -> int:
    """Bytes of a file. Raises InputError where it is not there."""
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})") from None


def pixel_item(row_id: str, pixels: Array) -> Entry:
    """A (3, H, W) or channels-last (H, W, 3) array as an item; any other shape is left out."""
    if pixels.ndim == 3 and pixels.shape[0] != 3 and pixels.shape[2] == 3:
        pixels = pixels.transpose(2, 0, 1)
    if pixels.ndim != 3 or pixels.shape[0] != 3 or pixels.size == 0:
        return Skipped(id=row_id, reason=f"its shape is {pixels.shape}: expected (3, H, W)")
    return Item(id=row_id, data=pixels, size=pixels.nbytes)
