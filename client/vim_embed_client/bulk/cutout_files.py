"""Writes cut-outs as they come: a folder of FITS files, a Parquet table, or an HDF5 file.

`vim-embed embed` reads each of them. Fluxes stay as they are: (bands, side, side) float32, NaN
where they are masked or off the edge.
"""

from __future__ import annotations

import csv
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vim_embed_client.bulk.output_checks import (
    is_skipped_list,
    parquet_metadata,
    refuse_foreign,
)
from vim_embed_client.bulk.outputs import skipped_line, skipped_list
from vim_embed_client.bulk.reasons import LeftOut, all_reasons
from vim_embed_client.bulk.row_columns import whole_column
from vim_embed_client.bulk.sources.catalogue import CutRow
from vim_embed_client.bulk.sources.faults import quiet
from vim_embed_client.bulk.sources.mosaics import LIST_OF_CUTOUTS
from vim_embed_client.bulk.sources.reader import Skipped
from vim_embed_client.errors import ConfigurationError, InputError, OutputError
from vim_embed_client.exact import EXACT
from vim_embed_client.formats import Array
from vim_embed_client.sky.hdf5 import h5py
from vim_embed_pixels import fits_library

_UNSAFE = re.compile(r"[^\w.+-]+")
_UNPRINTABLE = re.compile(r"[^ -~]")  # what a FITS header cannot hold
_ROWS = 64  # that are written at once
_MARK = "vim_embed.cutouts"  # in a file's metadata: `cutout` wrote it


class CutoutWriter(ABC):
    """Takes cut-outs one by one; what it writes is there whole after `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def add(self, row: CutRow, fluxes: Array) -> None: ...

    @abstractmethod
    def close(self) -> None: ...


class FolderWriter(CutoutWriter):
    """A FITS file for each, with its WCS, and `cutouts.csv` with the columns of all."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._library = fits_library.library()
        path.mkdir(exist_ok=True)
        if any(path.iterdir()):
            raise ConfigurationError(f"{path} is not empty: give a new folder")
        self._names: set[str] = set()
        self._rows: list[dict[str, Any]] = []

    def add(self, row: CutRow, fluxes: Array) -> None:
        name = self._name(row.id)
        image = fluxes[0] if len(fluxes) == 1 else fluxes
        hdu = self._library.PrimaryHDU(image)
        with quiet():  # where a comment has no room
            for key, told in row.cards().items():
                hdu.header[f"HIERARCH {key}" if "." in key else key] = told
        hdu.header["OBJECT"] = _UNPRINTABLE.sub("?", row.id)[:68]
        hdu.writeto(self.path / name)
        self._rows.append({"file": name, "id": row.id, **row.columns})

    def close(self) -> None:
        names = dict.fromkeys(name for row in self._rows for name in row)
        with (self.path / LIST_OF_CUTOUTS).open("w", newline="", encoding="utf-8") as lines:
            writer = csv.DictWriter(lines, list(names))
            writer.writeheader()
            writer.writerows(self._rows)

    def _name(self, row_id: str) -> str:
        stem = _UNSAFE.sub("_", row_id).strip("._") or "cutout"
        name, number = f"{stem}.fits", 2
        while name.lower() in self._names:
            name, number = f"{stem}_{number}.fits", number + 1
        self._names.add(name.lower())
        return name


class _BlockWriter(CutoutWriter):
    """Writes so many rows at once; all of one shape."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._held: list[tuple[CutRow, Array]] = []
        self._shape: tuple[int, ...] | None = None

    def add(self, row: CutRow, fluxes: Array) -> None:
        self._shape = self._shape or fluxes.shape
        if fluxes.shape != self._shape:
            raise InputError(
                f"{row.id}: its cut-out is {fluxes.shape}, and the first one {self._shape}: the "
                "tiles have pixels of several sizes, of which --scale makes one"
            )
        self._held.append((row, fluxes.astype(np.float32)))
        if len(self._held) == _ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._held:
            self._write([row for row, _ in self._held], np.stack([flux for _, flux in self._held]))
        self._held = []

    @abstractmethod
    def _write(self, rows: list[CutRow], fluxes: Array) -> None: ...


class ParquetWriter(_BlockWriter):
    """Columns `id`, `image` (a struct with `flux`) and the others, of the `kinds` that are told."""

    def __init__(self, path: Path, kinds: Mapping[str, str]) -> None:
        super().__init__(path)
        self._kinds = kinds
        from vim_embed_client.bulk.sources.parquet import import_pyarrow

        self._pa = import_pyarrow()
        self._writer: Any = None

    def _write(self, rows: list[CutRow], fluxes: Array) -> None:
        import pyarrow.parquet

        pa = self._pa
        flux = pa.array(fluxes.reshape(-1))
        for size in reversed(fluxes.shape[1:]):
            flux = pa.FixedSizeListArray.from_arrays(flux, size)
        columns: dict[str, Any] = {
            "id": pa.array([row.id for row in rows]),
            "image": pa.StructArray.from_arrays([flux], ["flux"]),
        }
        for name in rows[0].columns:
            kind = self._kinds.get(name, "double")
            values = whole_column({name: [r.columns[name] for r in rows]}, name, kind, len(rows))
            columns[name] = pa.array(values, pa.type_for_alias(kind))
        table = pa.table(columns).replace_schema_metadata({_MARK: "1"})
        if self._writer is None:
            self._writer = pyarrow.parquet.ParquetWriter(self.path, table.schema)
        self._writer.write_table(table.cast(self._writer.schema))

    def close(self) -> None:
        self._flush()
        if self._writer is not None:
            self._writer.close()


class Hdf5Writer(_BlockWriter):
    """Data sets `images` (N, bands, side, side), `id` and the others (N,)."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file = h5py().File(path, "w")
        self._file.attrs[_MARK] = 1
        self._columns: dict[str, list[Any]] = {}

    def _write(self, rows: list[CutRow], fluxes: Array) -> None:
        self._append("images", fluxes)
        for row in rows:
            for name, value in {"id": row.id, **row.columns}.items():
                self._columns.setdefault(name, []).append(value)

    def _array(self, values: list[Any]) -> Array:
        if any(isinstance(value, str) for value in values):
            texts = ["" if value is None else str(value) for value in values]
            return np.array(texts, dtype=h5py().string_dtype())
        if all(isinstance(value, (bool, int)) for value in values):
            return np.array(values)
        if any(isinstance(value, int) and abs(value) > EXACT for value in values):
            texts = ["" if value is None else str(value) for value in values]
            return np.array(texts, dtype=h5py().string_dtype())
        return np.array([np.nan if value is None else float(value) for value in values])

    def _append(self, name: str, values: Array) -> None:
        if name not in self._file:
            options = {"chunks": (1, *values.shape[1:])} if values.ndim > 1 else {"chunks": True}
            self._file.create_dataset(
                name, shape=(0, *values.shape[1:]), maxshape=(None, *values.shape[1:]),
                dtype=values.dtype, **options,
            )  # fmt: skip
        found = self._file[name]
        found.resize(len(found) + len(values), axis=0)
        found[-len(values) :] = values

    def close(self) -> None:
        self._flush()
        for name, values in self._columns.items():  # of which one may tell what all of them are
            self._append(name, self._array(values))
        self._file.close()


ENDINGS = (".parquet", ".h5", ".hdf5")


def is_ours(path: Path) -> bool:
    """Whether `cutout` wrote this .parquet or HDF5 file."""
    if path.suffix.lower() == ".parquet":
        return _MARK.encode() in parquet_metadata(path)
    with h5py().File(path, "r") as file:
        return _MARK in file.attrs


def check_cutouts(path: Path) -> None:
    """Raise ConfigurationError for another ending, and for a file that `cutout` did not write."""
    if path.suffix.lower() not in ("", *ENDINGS):
        raise ConfigurationError(
            f"{path} is no folder, and does not end in one of {', '.join(ENDINGS)}"
        )
    refuse_foreign(path, is_ours, "vim-embed cutout")


@contextmanager
def writer_for(path: Path, kinds: Mapping[str, str]) -> Iterator[CutoutWriter]:
    """The writer of a path's ending; a file takes its place only when all is in it.

    kinds: of the columns that are kept, as `column_kinds` tells them.

    Raises ConfigurationError as `check_cutouts`, OutputError where it cannot be written.
    """
    check_cutouts(path)
    ending = path.suffix.lower()
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp") if ending else path
    try:
        writer: CutoutWriter
        if not ending:
            writer = FolderWriter(unfinished)
        elif ending == ".parquet":
            writer = ParquetWriter(unfinished, kinds)
        else:
            writer = Hdf5Writer(unfinished)
        yield writer
        writer.close()
        if unfinished != path:
            os.replace(unfinished, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror or error})") from None
    finally:
        if unfinished != path:
            unfinished.unlink(missing_ok=True)


def write_cutouts(
    path: Path, rows: Iterable[CutRow | Skipped], left_out: LeftOut, kinds: Mapping[str, str]
) -> int:
    """Write them all, as `writer_for` does; returns how many there were.

    What became no cut-out goes to `left_out`, and by name to `<path>.skipped.jsonl`.
    """
    written = 0
    with _listing(path) as add_to_list, writer_for(path, kinds) as writer:
        for row in rows:
            if isinstance(row, Skipped):
                left_out.add(row)
                add_to_list(row)
            else:
                writer.add(row, row.cutout())
                written += 1
        if not written:
            raise InputError(f"no position could be cut out{all_reasons(left_out)}")
    return written


@contextmanager
def _listing(path: Path) -> Iterator[Callable[[Skipped], None]]:
    """Yield what adds to the list beside the path, which takes the place of an older one."""
    listed = skipped_list(path)
    refuse_foreign(listed, is_skipped_list, "vim-embed cutout")
    unfinished = listed.with_name(f".{listed.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as lines:

            def add(one: Skipped) -> None:
                lines.write(skipped_line(one))

            yield add
        if unfinished.stat().st_size:
            os.replace(unfinished, listed)
        else:
            listed.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{listed} cannot be written ({error.strerror or error})") from None
    finally:
        unfinished.unlink(missing_ok=True)
