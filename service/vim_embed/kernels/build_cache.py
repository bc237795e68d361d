"""Keeps what was compiled, by content: machine code of the C++ and of the CUDA kernels.

A file is `<stem>-<digest of its content><suffix>`, and the stem carries a digest of all that
determines the content (source, flags, compiler): a stale or damaged file is never used. Files
appear by an atomic rename, so processes that compile at once do not disturb each other.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CACHE_VARIABLE = "VIM_EMBED_CACHE_DIR"


def cache_dir() -> Path:
    """VIM_EMBED_CACHE_DIR, or vim-embed in the platform's per-user cache folder."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "vim-embed"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "vim-embed"


def digest(*parts: bytes | str) -> str:
    """16 hexadecimal digits of SHA-256 of the parts, with zeros between."""
    encoded = (part.encode() if isinstance(part, str) else part for part in parts)
    return hashlib.sha256(b"\0".join(encoded)).hexdigest()[:16]


def intact(directory: Path, stem: str, suffix: str) -> Iterator[Path]:
    """Files whose name begins with `stem` and whose content is what was kept; removes the others.

    A stem may be the beginning of several: `<stem>-<more>-<digest><suffix>` counts too.
    """
    with suppress(OSError):
        for path in sorted(directory.glob(f"{stem}-*{suffix}")):
            if path.stem.rpartition("-")[2] == digest(path.read_bytes()):
                yield path
            else:
                with suppress(OSError):
                    path.unlink()


def publish(content: bytes, directory: Path, stem: str, suffix: str) -> Path:
    """Keep `content` and return its path. Raises OSError where the folder cannot be written."""
    target = directory / f"{stem}-{digest(content)}{suffix}"
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=directory, prefix=f".{stem}-")
    os.close(handle)
    partial = Path(name)
    try:
        partial.write_bytes(content)
        partial.chmod(0o755)
        partial.replace(target)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    return target
