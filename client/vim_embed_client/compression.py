"""Array bodies compressed while they are sent, for networks slower than compression.

zstd is Python's own from 3.14 on, before that of the extra `zstd`.
"""

from __future__ import annotations

import asyncio
import sys
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator
from importlib import import_module
from typing import Any, Literal, Protocol

import httpx

from vim_embed_client.errors import ConfigurationError

Compression = Literal["zstd", "gzip"]
CODINGS: tuple[Compression, ...] = ("zstd", "gzip")
_LEVEL = 1  # pixels gain little from more, and it is the sender who waits
_ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
_GZIP_WINDOW = 16 + zlib.MAX_WBITS


class _Compressor(Protocol):
    def compress(self, data: Any, /) -> bytes: ...

    def flush(self) -> bytes: ...


def check_compression(coding: object) -> None:
    """Raise ConfigurationError for a coding that is not known, or zstd where it is missing."""
    if coding is None:
        return
    if coding not in CODINGS:
        raise ConfigurationError(f"compression must be zstd, gzip or None, got {coding!r}")
    _compressor(coding)


class CompressedBody(httpx.SyncByteStream, httpx.AsyncByteStream):
    """The chunks of a body, compressed; each iteration begins anew."""

    def __init__(self, chunks: Iterable[bytes], coding: Compression, *, media_type: str) -> None:
        self._chunks = chunks
        self._coding = coding
        self._media_type = media_type

    @property
    def headers(self) -> dict[str, str]:
        """Those of a body whose length nobody knows yet."""
        return {
            "Content-Type": self._media_type,
            "Content-Encoding": self._coding,
            "Transfer-Encoding": "chunked",
        }

    def __iter__(self) -> Iterator[bytes]:
        compressor = _compressor(self._coding)
        for chunk in self._chunks:
            if part := compressor.compress(chunk):
                yield part
        yield compressor.flush()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        parts = iter(self)
        while part := await asyncio.to_thread(next, parts, b""):
            yield part


def _compressor(coding: Compression) -> _Compressor:
    if coding == "gzip":
        return zlib.compressobj(_LEVEL, wbits=_GZIP_WINDOW)
    try:
        zstd = import_module(_ZSTD)
    except ImportError:
        raise ConfigurationError(
            'zstd needs a package: pip install "vim-embed[zstd]", or use gzip'
        ) from None
    compressor: _Compressor = zstd.ZstdCompressor(level=_LEVEL)
    return compressor
