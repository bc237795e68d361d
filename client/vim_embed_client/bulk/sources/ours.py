"""Tables and arrays that vim-embed wrote, and that lie among the images: they are passed over.

Embeddings are of two axes, as a grey image of fluxes is.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

from vim_embed_client.bulk.output_checks import has_metadata, is_embedding_table, is_sidecar
from vim_embed_client.bulk.outputs import sidecar
from vim_embed_client.bulk.sources.reader import Description, Entry, Reader, ReaderOver, Skipped

_EMBEDDINGS = "embeddings that vim-embed wrote"
_ATTENTION = "attention that `vim-embed explain` wrote"


class WithoutOurs(ReaderOver):
    """A reader whose file is passed over where vim-embed wrote it."""

    def __init__(self, reader: Reader, path: str) -> None:
        super().__init__(reader)
        self._path = Path(path)

    def count(self) -> int | None:
        """As of the reader."""
        return 1 if self._ours else self._reader.count()

    def describe(self) -> Description:
        """As of the reader."""
        return Description() if self._ours else self._reader.describe()

    def read(self, start: int) -> Iterator[Entry]:
        """As of the reader."""
        if not self._ours:
            yield from self._reader.read(start)
        elif start == 0:
            yield Skipped(id=self.name, reason=self._ours, fault=False, unread=True)

    @cached_property
    def _ours(self) -> str:
        """What vim-embed wrote there; "" for other files."""
        try:
            return _TOLD[self._path.suffix](self._path)
        except Exception:  # of files of all kinds: the reader says what is wrong
            return ""


def may_be_ours(path: str) -> bool:
    """Whether a file's name ends as those of such tables and arrays."""
    return Path(path).suffix in _TOLD


def holds_attention(path: Path) -> bool:
    """Whether `explain` wrote this .npz file."""
    with zipfile.ZipFile(path) as archive:
        return {"attention.npy", "norms.npy", "patches.npy"} <= set(archive.namelist())


def _of_npy(path: Path) -> str:
    return _EMBEDDINGS if is_sidecar(sidecar(path)) else ""


def _of_npz(path: Path) -> str:
    if holds_attention(path):
        return _ATTENTION
    return _EMBEDDINGS if has_metadata(path) else ""


def _of_parquet(path: Path) -> str:
    return _EMBEDDINGS if is_embedding_table(path) else ""


_TOLD: dict[str, Callable[[Path], str]] = {
    ".npy": _of_npy,
    ".npz": _of_npz,
    ".parquet": _of_parquet,
}
