"""The bytes that a reader reads: a file of the disk or a member of an archive, uncompressed."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from vim_embed_client.packing import packing_of, unpacked


@dataclass(frozen=True)
class Content:
    """What is behind a name.

    name: with which ids begin. path: where it is a file of the disk. data: where it is not, the
    bytes of a member, or an open file of them that can be sought in.
    """

    name: str
    path: str | None = None
    data: bytes | IO[bytes] | None = None

    @contextmanager
    def raw(self) -> Iterator[IO[bytes]]:
        """The bytes as they are stored."""
        if isinstance(self.data, bytes):
            yield io.BytesIO(self.data)
        elif self.data is not None:
            self.data.seek(0)
            yield self.data  # of the archive, which closes it
        else:
            with open(self.path or self.name, "rb") as file:
                yield file

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The bytes, uncompressed, to be read and sought in. Raises InputError, OSError."""
        with self.raw() as file, unpacked(file) as opened:
            yield opened

    def size(self) -> int:
        """How many bytes are stored."""
        with self.raw() as file:
            return file.seek(0, io.SEEK_END)

    @property
    def packed(self) -> bool:
        """Whether the stored bytes are compressed."""
        with self.raw() as file:
            return packing_of(file) is not None
