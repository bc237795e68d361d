"""What a source yields: rows to embed, and what had to be left out."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np

from vim_embed_client.bulk.sources.content import Content
from vim_embed_client.bulk.sources.drawn import check_no_figure
from vim_embed_client.bulk.sources.faults import each_named, named, quiet
from vim_embed_client.errors import InputError
from vim_embed_client.formats import Array
from vim_embed_client.packing import unpacked_name
from vim_embed_pixels.images import decoded
from vim_embed_pixels.stretch import cropped

_LARGEST_IMAGE = 1 << 28


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One row. size: its bytes.

    data: a file's path, encoded bytes, a (3, H, W) array, or what makes uint8 pixels of any size
    when the row is sent (and may raise InputError or NoSource).
    columns: what is written beside its embedding, by name: texts, numbers, bools or None.
    """

    id: str
    data: str | bytes | Array | Callable[[], Array]
    size: int
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def like(self) -> tuple[Any, ...] | None:
        """What rows that can share a request have in common; None for encoded images."""
        if isinstance(self.data, np.ndarray):
            return self.data.shape, self.data.dtype.str
        return ("made",) if callable(self.data) else None

    @property
    def note(self) -> str:
        """A remark on what its pixels are made of, such as fluxes; "" where there is none."""
        return str(getattr(self.data, "note", ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A row or file that was left out, and why.

    fault: False where nothing is wrong with it, and it was passed over for what it is, such as
    the mask beside an image; such an entry never ends a run. asked_for: it is a source that was
    asked for all the same, which the output names one by one. unread: none of its pixels had to be
    looked at for it, so that it took no time.
    """

    id: str
    reason: str
    fault: bool = True
    asked_for: bool = False
    unread: bool = False


Entry: TypeAlias = Item | Skipped


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """Makes the pixels of an encoded image of which something else is sent than its bytes."""

    data: str | bytes
    crop: int

    def __call__(self) -> Array:
        """(3, H, W) uint8. Raises InputError or NoSource."""
        with named("it cannot be read"):
            data = self.data
            if isinstance(data, str):
                with open(data, "rb") as file:
                    data = file.read()
            check_no_figure(data)
            return cropped(decoded(data), self.crop)


def encoded_item(row_id: str, data: str | bytes, size: int, crop: int | None) -> Item:
    """An encoded image or its path: sent as it is, or decoded where only a part of it is wanted."""
    if crop is None:
        return Item(id=row_id, data=data, size=size)
    return Item(id=row_id, data=Decoded(data=data, crop=crop), size=size)


@dataclass(frozen=True, kw_only=True)
class Image:
    """One image, cube or stack in a file.

    note: why it is passed over, or nothing where rows are made of it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    note: str = ""

    def __str__(self) -> str:
        size = "×".join(map(str, self.shape)) or "no pixels"
        return f"{self.name or 'the image'} ({size} {self.dtype})"


@dataclass(frozen=True, kw_only=True)
class Description:
    """What is in a file: what embedding, figures and messages have in common.

    upwards: the first row of pixels is the lowest. options: those of the command line that have
    an effect on rows of this file.
    """

    images: tuple[Image, ...] = ()
    upwards: bool = False
    options: frozenset[str] = frozenset()


class Reader(Protocol):
    """One file, shard or data set, whose rows come in a fixed order.

    name: as the user knows it.
    """

    name: str

    def stamp(self) -> str:
        """Text that changes when the content may have."""
        ...

    def count(self) -> int | None:
        """How many rows, where that is cheap to say. Raises any error where it cannot be read."""
        ...

    def describe(self) -> Description:
        """What is in it. Raises any error where it cannot be read."""
        ...

    def read(self, start: int) -> Iterator[Entry]:
        """Entries from number `start` on. Raises any error where the rest cannot be read."""
        ...


class ReaderOver:
    """A reader on top of another one, which tells of the source; it changes what is read."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.name = reader.name
        self.counted_unread = bool(getattr(reader, "counted_unread", False))

    def stamp(self) -> str:
        """As of the reader."""
        return self._reader.stamp()

    def count(self) -> int | None:
        """As of the reader."""
        return self._reader.count()

    def describe(self) -> Description:
        """As of the reader."""
        return self._reader.describe()


class FileReader:
    """Base of the readers of sources that are one file, or a member of one.

    counted_unread: whether `count` needs no look into the file.
    """

    counted_unread = False

    def __init__(self, content: Content) -> None:
        self.content = content
        self.name = content.name

    def stamp(self) -> str:
        try:
            found = os.stat(self.content.path or self.name)
        except OSError:
            return f"{self.name}\0gone"
        return f"{self.name}\0{found.st_size}\0{found.st_mtime_ns}"

    def count(self) -> int | None:
        return None

    def describe(self) -> Description:
        return Description()


class ImageReader(FileReader):
    """An encoded image: one row; a file of the disk is read only when it is sent."""

    counted_unread = True

    def __init__(self, content: Content, crop: int | None = None) -> None:
        super().__init__(content)
        self._crop = crop

    def describe(self) -> Description:
        return Description(options=frozenset({"--crop"}))

    def count(self) -> int:
        return 1

    def read(self, start: int) -> Iterator[Entry]:
        if start:
            return
        path = self.content.path
        if path is not None and unpacked_name(path) == path:
            yield self._item(path, file_size(path))
            return
        with self.content.open() as file:
            data = file.read(_LARGEST_IMAGE + 1)
        if len(data) > _LARGEST_IMAGE:
            raise InputError(f"it unpacks to more than {_LARGEST_IMAGE >> 20} MiB")
        if not data:
            raise InputError("it is empty")
        yield self._item(data, len(data))

    def _item(self, data: str | bytes, size: int) -> Item:
        return encoded_item(readable(self.name), data, size, self._crop)


class UnreadReader(FileReader):
    """A file of a kind that is not read. reason: what to do with it."""

    def __init__(self, content: Content, reason: str) -> None:
        super().__init__(content)
        self._reason = reason

    def read(self, start: int) -> Iterator[Entry]:
        raise InputError(self._reason)


class NamedFaults:
    """A reader whose every exception is an InputError that says what cannot be read.

    what: the file's format, in words. Where rows were read before the fault, they came first.
    """

    def __init__(self, reader: Reader, what: str) -> None:
        self._reader, self._what = reader, what
        self.name = reader.name
        self.counted_unread = isinstance(reader, ImageReader)

    def stamp(self) -> str:
        """As of the reader. Raises InputError."""
        with named(self._what):
            return self._reader.stamp()

    def count(self) -> int | None:
        try:
            with named(self._what), quiet():
                return self._reader.count()
        except InputError:
            return None

    def describe(self) -> Description:
        """As of the reader. Raises InputError."""
        with named(self._what), quiet():
            return self._reader.describe()

    def read(self, start: int) -> Iterator[Entry]:
        """As of the reader. Raises InputError."""
        return each_named(self._reader.read(start), f"{self._what} (any further)")


def readable(name: str) -> str:
    """A name as an id: bytes that are no UTF-8 are written `\\xff`, so that names stay apart."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def file_size(path: str) -> int:
    """Bytes of a plain file. Raises InputError where it is not there, or is a pipe or device.

    Such a one is never opened, since that waits for whoever is at the other end.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise InputError(f"is {kind} and no file: write what comes out of it to one first")
    return found.st_size


_KINDS = {
    stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device", stat.S_IFDIR: "a folder",
}  # fmt: skip
