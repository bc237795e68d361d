"""Which reader a path belongs to: folders, patterns, images, arrays, shards, tables, FITS, hf:."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vim_embed_client.bulk.sources.arrays import NpyReader, NpzReader
from vim_embed_client.bulk.sources.files import (
    FITS_SUFFIXES,
    TABLE_SUFFIXES,
    TAR_SUFFIXES,
    PassOver,
    find_files,
)
from vim_embed_client.bulk.sources.fits import FitsReader, HduName
from vim_embed_client.bulk.sources.flux import Stretch
from vim_embed_client.bulk.sources.huggingface import PREFIX, HfReader
from vim_embed_client.bulk.sources.parquet import ParquetReader, TableColumns
from vim_embed_client.bulk.sources.reader import ImageReader, Reader
from vim_embed_client.bulk.sources.webdataset import TarReader


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How rows are taken out of sources.

    column: of tables and data sets, array of an .npz, or extension in a webdataset shard.
    id_column: of tables and data sets, with the ids of rows. shape: of flat lists in tables.
    stretch: of fluxes. hdus: of FITS files. resize: uint8 arrays too to the model's size.
    """

    column: str | None = None
    id_column: str | None = None
    shape: tuple[int, ...] | None = None
    stretch: Stretch = field(default_factory=Stretch)
    hdus: tuple[HduName, ...] | None = None
    resize: bool = False

    def identity(self) -> dict[str, Any]:
        """Everything that changes rows."""
        return asdict(self)

    def table(self) -> TableColumns:
        return TableColumns(
            column=self.column, id_column=self.id_column, shape=self.shape, stretch=self.stretch
        )


def find_sources(
    paths: Sequence[str],
    *,
    leave_out: Path | None = None,
    pass_over: PassOver = lambda skipped: None,
) -> list[str]:
    """Files in the order of their names, then `hf:` data sets in the order given.

    leave_out, pass_over: as of find_files.
    Raises InputError for a path or pattern that leads to nothing.
    """
    sets = list(dict.fromkeys(path for path in paths if path.startswith(PREFIX)))
    files = [path for path in paths if not path.startswith(PREFIX)]
    return find_files(files, leave_out=leave_out, pass_over=pass_over) + sets


def open_reader(source: str, options: ReadOptions) -> Reader:
    """The reader of one source; nothing is opened yet."""
    if source.startswith(PREFIX):
        return HfReader(source, options.table())
    lower = source.lower()
    for suffixes, make in _READERS:
        if lower.endswith(suffixes):
            return make(source, options)
    return ImageReader(source)


_READERS: tuple[tuple[str | tuple[str, ...], Callable[[str, ReadOptions], Reader]], ...] = (
    (".npy", lambda path, options: NpyReader(path)),
    (".npz", lambda path, options: NpzReader(path, options.column)),
    (TAR_SUFFIXES, lambda path, options: TarReader(path, options.column)),
    (TABLE_SUFFIXES, lambda path, options: ParquetReader(path, options.table())),
    (FITS_SUFFIXES, lambda path, options: FitsReader(path, options.hdus, options.stretch)),
)
