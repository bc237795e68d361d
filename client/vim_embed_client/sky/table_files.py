"""The bytes and the text of a catalogue, packed or not."""

from __future__ import annotations

import io
from functools import cached_property
from pathlib import Path
from typing import IO

from vim_embed_client.errors import InputError
from vim_embed_client.packing import packing_of, unpacked

_START = 1 << 16
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


class TableFile:
    """A file that is read when it is asked for. Raises InputError, OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def start(self) -> bytes:
        """Its first bytes, unpacked: as many as tell what it is."""
        with self.path.open("rb") as file, unpacked(file) as opened:
            return opened.read(_START)

    @cached_property
    def head(self) -> list[str]:
        """Lines of `start`, of which the last may be cut off."""
        return self.start.decode("utf-8-sig", "replace").splitlines()

    @cached_property
    def text(self) -> str:
        """The whole of it. Raises InputError where it is no text."""
        try:
            coding = "utf-16" if self.start.startswith(_UTF_16) else "utf-8-sig"
            return self.unpacked().decode(coding).replace("\r\n", "\n")
        except UnicodeDecodeError:
            raise InputError(
                f"{self.path} is no UTF-8: save it as such (in Excel, CSV UTF-8)"
            ) from None

    def unpacked(self) -> bytes:
        """All bytes."""
        with self.path.open("rb") as file, unpacked(file) as opened:
            return opened.read()

    def seekable(self) -> Path | IO[bytes]:
        """Where readers read what they need: the file itself, or a packed one's bytes."""
        with self.path.open("rb") as file:
            packed = packing_of(file) is not None
        return io.BytesIO(self.unpacked()) if packed else self.path
