"""Compressed files, told by their first bytes and not by their names.

Servers send `x.fits` that is gzip, and `x.fits.gz` that is not.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import IO, Any

from vim_embed_client.errors import InputError

# Endings that a file of any format may have in addition.
PACKED = (".gz", ".bz2", ".xz", ".zst", ".Z")

_ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"


def packing_of(file: IO[bytes]) -> str | None:
    """The compression that the first bytes tell, or None; `file` is at its start again."""
    start = file.read(6)
    file.seek(0)
    return next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)


def unpacked_name(name: str) -> str:
    """A name without the ending of a compression."""
    lower = name.lower()
    ending = next((end for end in PACKED if lower.endswith(end.lower())), "")
    return name[: len(name) - len(ending)]


@contextmanager
def unpacked(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """The bytes of an open file, uncompressed, to be read and sought in. Raises InputError."""
    packing = packing_of(file)
    if packing is None:
        yield file
    else:
        with _OPENERS[packing](file) as opened:
            yield opened


def _zstd(file: IO[bytes]) -> IO[bytes]:
    try:
        opened: IO[bytes] = import_module(_ZSTD).open(file)
    except ImportError:
        raise InputError('zstd needs a package: pip install "vim-embed[zstd]"') from None
    return opened


def _compress(file: IO[bytes]) -> IO[bytes]:
    raise InputError("it is packed with compress (.Z), which is not read: `gzip -d` unpacks it")


_MAGIC = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd",
    b"\x1f\x9d": "compress",
}  # fmt: skip
_OPENERS: dict[str, Callable[[IO[bytes]], Any]] = {
    "gzip": lambda file: gzip.GzipFile(fileobj=file),
    "bzip2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
    "zstd": _zstd,
    "compress": _compress,
}
