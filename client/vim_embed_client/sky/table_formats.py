"""Catalogues: the table of their formats, by endings of names and by what files begin with.

A new format is a function that reads its tables, and a row of FORMATS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.packing import unpacked_name
from vim_embed_client.sky import astropy_tables, parquet_table, text_tables
from vim_embed_client.sky.hats import hats_columns, is_hats
from vim_embed_client.sky.table_columns import Column, Columns, Part, with_text
from vim_embed_client.sky.table_files import TableFile


@dataclass(frozen=True, kw_only=True)
class TableFormat:
    """A kind of catalogue.

    endings: of names, in small letters, to which those of PACKED may come. tells: whether a file
    is one, by its first bytes. several: whether a file may hold several tables
    by its format.
    """

    name: str
    endings: tuple[str, ...]
    tells: Callable[[TableFile], bool]
    read: Callable[[TableFile], list[Part]]
    several: bool = False


# The first that a file's bytes tell counts, so that plain text, which any text may be, is last.
FORMATS: tuple[TableFormat, ...] = (
    TableFormat(
        name="FITS", endings=(".fits", ".fit", ".fts"),
        tells=lambda file: file.start.startswith(b"SIMPLE  ="),
        read=astropy_tables.fits_tables, several=True,
    ),
    TableFormat(
        name="Parquet", endings=(".parquet", ".pq"),
        tells=lambda file: file.start.startswith(b"PAR1"),
        read=parquet_table.parquet_table,
    ),
    TableFormat(
        name="VOTable", endings=(".vot", ".votable", ".xml"), tells=astropy_tables.is_votable,
        read=astropy_tables.votables, several=True,
    ),
    TableFormat(
        name="ECSV", endings=(".ecsv",), tells=astropy_tables.is_ecsv, read=astropy_tables.ecsv,
    ),
    TableFormat(
        name="IPAC", endings=(".tbl", ".ipac"), tells=astropy_tables.is_ipac,
        read=astropy_tables.ipac,
    ),
    TableFormat(
        name="CDS or MRT", endings=(".mrt", ".dat"), tells=astropy_tables.is_cds,
        read=astropy_tables.cds,
    ),
    TableFormat(
        name="SExtractor", endings=(".cat",), tells=astropy_tables.is_sextractor,
        read=astropy_tables.sextractor,
    ),
    TableFormat(
        name="text", endings=(".csv", ".tsv", ".txt", ".asc", ".ascii"),
        tells=lambda file: False, read=text_tables.text_tables,
    ),
)  # fmt: skip
ENDINGS = tuple(ending for one in FORMATS for ending in one.endings)

# What is no text at all; without one of their marks, a file of these endings is damaged.
_OF_BYTES = ("FITS", "Parquet", "VOTable")


def has_ending(name: str) -> bool:
    """Whether a name is that of a table, packed or not."""
    return unpacked_name(name).lower().endswith(ENDINGS)


def format_of(file: TableFile) -> TableFormat:
    """What a file is by its content, else by its name. Raises InputError where it is no table."""
    found = next((one for one in FORMATS if one.tells(file)), None)
    if found is not None:
        return found
    name = unpacked_name(file.path.name).lower()
    named = next((one for one in FORMATS if name.endswith(one.endings)), FORMATS[-1])
    if named.name in _OF_BYTES:
        return named
    if b"<html" in file.start.lower() or b"<!doctype html" in file.start.lower():
        raise InputError(f"{file.path} is a web page, and no table: download the table itself")
    if b"\0" in file.start and not file.start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(
            f"{file.path} is neither text nor {', '.join(_OF_BYTES)}: save it as one of them"
        )
    return FORMATS[-1]


def parts_of(file: TableFile) -> tuple[list[Part], bool]:
    """The tables of a file, and whether there are or might be several."""
    kind = format_of(file)
    parts = kind.read(file)
    return parts, kind.several or len(parts) > 1


def hats_parts(path: Path) -> tuple[Columns, tuple[str, str]]:
    """Columns of a HATS catalogue, and which of them its positions are."""
    if not is_hats(path):
        raise ConfigurationError(f"{path} is a folder, and no HATS catalogue")
    readers, positions = hats_columns(path)
    return {name: Column(with_text(read)) for name, read in readers.items()}, positions
