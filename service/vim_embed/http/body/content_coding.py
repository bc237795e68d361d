"""Bodies without their Content-Encoding, piece by piece and in bounded memory. No HTTP objects.

A body may be several gzip members or zstd frames one after the other, as both formats allow.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from typing import Protocol

from vim_embed.errors import MalformedRequest, PayloadTooLarge, UnsupportedEncoding

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PIECE = 1024 * 1024  # bytes of a decompressed piece, at most
_SLICE = 16 * 1024  # of input at once: what follows the end of a member is copied
_ZSTD_WINDOW_LOG = 23  # 8 MiB, as RFC 9659 has it; a sender may otherwise ask for gigabytes
# Each gzip member or zstd frame costs a new decompressor, an empty one too: so many are taken, and
# one more for so many bytes of the compressed body. BGZF and pigz make them of tens of kilobytes.
_MEMBERS_AT_LEAST = 64
_MEMBER_BYTES = 1024
_ALIASES = {"x-gzip": "gzip"}


class _Member(Protocol):
    """A compressed stream with an end of its own."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Inflate:
    """zlib's object, which leaves it to its caller to keep input that there was no room for."""

    def __init__(self, window: int) -> None:
        self._stream = zlib.decompressobj(window)

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._stream.decompress(self._stream.unconsumed_tail + data, max_length)


def _zstd_frame() -> _Member:
    options = {int(zstd.DecompressionParameter.window_log_max): _ZSTD_WINDOW_LOG}
    return zstd.ZstdDecompressor(options=options)


_MEMBERS: dict[str, Callable[[], _Member]] = {
    "zstd": _zstd_frame,
    "gzip": lambda: _Inflate(16 + zlib.MAX_WBITS),
    "deflate": lambda: _Inflate(zlib.MAX_WBITS),
}
CODINGS = tuple(_MEMBERS)


def coding_of(header: str) -> str | None:
    """The coding that a Content-Encoding names, or None. Raises UnsupportedEncoding."""
    named = [part.strip().lower() for part in header.split(",")]
    codings = [_ALIASES.get(name, name) for name in named if name not in ("", "identity")]
    if not codings:
        return None
    if len(codings) > 1 or codings[0] not in _MEMBERS:
        raise UnsupportedEncoding(
            f"Content-Encoding {header[:80]!r} is not taken: send one of {', '.join(CODINGS)}, or "
            "the body as it is"
        )
    return codings[0]


class Decoder:
    """Decompresses what it is fed. Not for several threads at once, but for any one at a time."""

    def __init__(self, coding: str) -> None:
        self.coding = coding
        self._input = b""
        self._used = 0
        self._member: _Member | None = None
        self._full = False  # the last output had no room left: more may come without input
        self._members = 0
        self._fed = 0

    @property
    def memory(self) -> int:
        """Bytes that this needs beside input and output, at most."""
        return PIECE + (1 << _ZSTD_WINDOW_LOG if self.coding == "zstd" else 1 << 16)

    def feed(self, data: bytes) -> None:
        """The next part of the body, once `read` gave nothing any more."""
        self._input, self._used = data, 0
        self._fed += len(data)

    def read(self) -> bytes:
        """Up to PIECE bytes; none: the next part is needed. Raises ServiceError."""
        parts: list[bytes] = []
        room = PIECE
        while room and (self._full or self._used < len(self._input)):
            parts.append(self._step(room))
            room -= len(parts[-1])
        return b"".join(parts)

    def finish(self) -> None:
        """After the last part. Raises MalformedRequest if there should be more."""
        if self._member is not None or not self._members:
            raise MalformedRequest(
                f"the {self.coding} body is cut short, or other bytes follow its end"
            )

    def _step(self, room: int) -> bytes:
        if self._member is None:
            self._member = self._next_member()
        data = b"" if self._full else self._input[self._used : self._used + _SLICE]
        self._used += len(data)
        try:
            part = self._member.decompress(data, room)
        except (zlib.error, zstd.ZstdError) as error:
            raise self._refusal(error) from error
        self._full = len(part) == room
        if self._member.eof:
            self._used -= len(self._member.unused_data)
            self._member, self._full = None, False
            self._members += 1
        return part

    def _next_member(self) -> _Member:
        if self._members and self.coding == "deflate":
            raise MalformedRequest("other bytes follow the end of the deflate body")
        if self._members > _MEMBERS_AT_LEAST + self._fed // _MEMBER_BYTES:
            raise MalformedRequest(
                f"the {self.coding} body is made of {self._members} and more members, with less "
                f"than {_MEMBER_BYTES} bytes each: compress it in one piece"
            )
        return _MEMBERS[self.coding]()

    def _refusal(self, error: Exception) -> MalformedRequest | PayloadTooLarge:
        if "too much memory" in str(error):
            return PayloadTooLarge(
                f"the zstd body needs a window over {1 << _ZSTD_WINDOW_LOG} bytes: compress at "
                "level 19 or less, without --long"
            )
        if self._members:
            return MalformedRequest(f"no {self.coding}, but other bytes follow its end ({error})")
        return MalformedRequest(f"the body is not {self.coding}, or is damaged ({error})")
