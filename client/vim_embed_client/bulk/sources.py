"""Which reader a path belongs to: folders, patterns, images, arrays, shards, tables, FITS, hf:."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vim_embed_client.bulk.arrays import NpyUnit, NpzUnit
from vim_embed_client.bulk.items import ImageUnit, Unit
from vim_embed_client.files import find_files

HF = "hf:"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How rows are taken out of sources.

    column: of tables and data sets, array of an .npz, or extension in a webdataset shard.
    """

    column: str | None = None

    def identity(self) -> dict[str, Any]:
        """Everything that changes rows."""
        return asdict(self)


def find_sources(paths: Sequence[str], *, leave_out: Path | None = None) -> list[str]:
    """Files in the order of their names, then `hf:` data sets in the order given.

    Raises InputError for a path or pattern that leads to nothing.
    """
    sets = list(dict.fromkeys(path for path in paths if path.startswith(HF)))
    files = [path for path in paths if not path.startswith(HF)]
    return find_files(files, leave_out=leave_out) + sets


def open_unit(source: str, reading: Reading) -> Unit:
    """The reader of one source; nothing is opened yet."""
    lower = source.lower()
    for suffixes, make in _UNITS:
        if lower.endswith(suffixes):
            return make(source, reading)
    return ImageUnit(source)


_UNITS: tuple[tuple[str | tuple[str, ...], Callable[[str, Reading], Unit]], ...] = (
    (".npy", lambda path, reading: NpyUnit(path)),
    (".npz", lambda path, reading: NpzUnit(path, reading.column)),
)
