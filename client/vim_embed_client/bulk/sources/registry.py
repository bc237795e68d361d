"""Which reader a path belongs to: folders, patterns, images, arrays, shards, tables, FITS, hf:."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vim_embed_client.bulk.sources.arrays import NpyUnit, NpzUnit
from vim_embed_client.bulk.sources.files import (
    FITS_SUFFIXES,
    TABLE_SUFFIXES,
    TAR_SUFFIXES,
    find_files,
)
from vim_embed_client.bulk.sources.fits import FitsUnit, HduName
from vim_embed_client.bulk.sources.flux import Stretch
from vim_embed_client.bulk.sources.huggingface import PREFIX, HfUnit
from vim_embed_client.bulk.sources.parquet import ParquetUnit, TableReading
from vim_embed_client.bulk.sources.unit import ImageUnit, Unit
from vim_embed_client.bulk.sources.webdataset import TarUnit


@dataclass(frozen=True, kw_only=True)
class Reading:
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

    def table(self) -> TableReading:
        return TableReading(
            column=self.column, id_column=self.id_column, shape=self.shape, stretch=self.stretch
        )


def find_sources(paths: Sequence[str], *, leave_out: Path | None = None) -> list[str]:
    """Files in the order of their names, then `hf:` data sets in the order given.

    Raises InputError for a path or pattern that leads to nothing.
    """
    sets = list(dict.fromkeys(path for path in paths if path.startswith(PREFIX)))
    files = [path for path in paths if not path.startswith(PREFIX)]
    return find_files(files, leave_out=leave_out) + sets


def open_unit(source: str, reading: Reading) -> Unit:
    """The reader of one source; nothing is opened yet."""
    if source.startswith(PREFIX):
        return HfUnit(source, reading.table())
    lower = source.lower()
    for suffixes, make in _UNITS:
        if lower.endswith(suffixes):
            return make(source, reading)
    return ImageUnit(source)


_UNITS: tuple[tuple[str | tuple[str, ...], Callable[[str, Reading], Unit]], ...] = (
    (".npy", lambda path, reading: NpyUnit(path)),
    (".npz", lambda path, reading: NpzUnit(path, reading.column)),
    (TAR_SUFFIXES, lambda path, reading: TarUnit(path, reading.column)),
    (TABLE_SUFFIXES, lambda path, reading: ParquetUnit(path, reading.table())),
    (FITS_SUFFIXES, lambda path, reading: FitsUnit(path, reading.hdus, reading.stretch)),
)
