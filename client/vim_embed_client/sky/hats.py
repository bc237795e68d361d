"""Columns of HATS catalogues: folders of Parquet files, one for each piece of the sky.

The library hats knows their layout. It is imported where a catalogue is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from vim_embed_client.errors import ConfigurationError

# Files of which a folder of a catalogue, or of a collection of catalogues, has one.
_PROPERTIES = ("hats.properties", "properties", "collection.properties")
# The catalogue's first rows again, beside the rows themselves.
THUMBNAIL = "data_thumbnail.parquet"


class HatsColumns(NamedTuple):
    """readers: of each column's values, by its name. positions: names of RA and Dec."""

    readers: Mapping[str, Callable[[], list[Any]]]
    positions: tuple[str, str]


def is_hats(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is a HATS catalogue, by the files in it."""
    return any(os.path.isfile(os.path.join(path, name)) for name in _PROPERTIES)


def hats_files(path: str) -> Iterator[str]:
    """All files of a catalogue, in a fixed order."""
    for folder, folders, files in os.walk(path):
        folders.sort()
        yield from (os.path.join(folder, name) for name in sorted(files))


def hats_columns(path: Path) -> HatsColumns:
    """The columns of a catalogue, or of the main catalogue of a collection.

    Rows are in the order of the pieces, as hats lists them. Raises ConfigurationError where hats
    is not installed, and whatever hats raises for a catalogue that cannot be read.
    """
    try:
        from hats import read_hats
    except ModuleNotFoundError:
        raise ConfigurationError(
            f'{path} is a HATS catalogue, which needs hats: pip install "vim-embed[hats]"'
        ) from None
    found: Any = read_hats(path)
    catalogue = getattr(found, "main_catalog", found)
    told = catalogue.catalog_info
    if not told.ra_column or not told.dec_column:
        raise ConfigurationError(f"{path} is a HATS {told.catalog_type}, which has no positions")
    readers = {name: partial(_values, catalogue, name) for name in catalogue.schema.names}
    return HatsColumns(readers, (told.ra_column, told.dec_column))


def _values(catalogue: Any, name: str) -> list[Any]:
    import pyarrow

    pieces = (
        catalogue.read_pixel_to_pandas(pixel, columns=[name])[name]
        for pixel in catalogue.get_healpix_pixels()
    )
    return [value for piece in pieces for value in pyarrow.array(piece, from_pandas=True).tolist()]
