"""Files of every kind from arrays, and everything that comes of a folder of them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from astropy.io import fits

from vim_embed_client.bulk.sources.options import ReadOptions
from vim_embed_client.bulk.sources.reader import Item, Skipped
from vim_embed_client.bulk.sources.registry import find_sources, open_reader
from vim_embed_client.errors import InputError
from vim_embed_pixels.stretch import Stretch, to_rgb
from vim_embed_pixels.surveys import survey_stretch

from .survey import Array, galaxy, pictures, png

SKY = galaxy(5, 16, seed=3)
G, R, Z = (galaxy(1, 16, seed=seed)[0] for seed in (10, 11, 12))
PIXELS = pictures(3, seed=5)


def up(rgb: Array) -> Array:
    """FITS counts rows of pixels from the lowest."""
    return rgb[:, ::-1]


def grey(flux: Array, how: Stretch | None = None) -> Array:
    return to_rgb(flux, how or Stretch())


def colour(*bands: Array, how: Stretch | None = None) -> Array:
    return to_rgb(np.stack(bands), how or Stretch())


def hdus(*extensions: Any) -> bytes:
    """A FITS file of an empty primary HDU and these extensions."""
    buffer = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), *extensions]).writeto(buffer)
    return buffer.getvalue()


def primary(data: Array, **header: Any) -> bytes:
    hdu = fits.PrimaryHDU(data)
    hdu.header.update(header)
    buffer = io.BytesIO()
    hdu.writeto(buffer)
    return buffer.getvalue()


def image(data: Array, name: str = "", **more: Any) -> Any:
    return fits.ImageHDU(data, name=name, **more)


def catalogue() -> Any:
    return fits.BinTableHDU.from_columns([fits.Column("ra", "E", array=[1.0])], name="CAT")


def npy(array: Array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(**arrays: Array) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def tar(members: Mapping[str, bytes | tuple[bytes, str]], mode: str = "w") -> bytes:
    """Members by name: their bytes, or the type of a link and what it leads to."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name.partition("|")[0])
            if isinstance(content, tuple):
                member.type, member.linkname = content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def table(**columns: Any) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


FLUXES = np.stack([galaxy(5, 12, seed=seed, flux=0.5) for seed in range(2)])
HSC = survey_stretch("hsc")
FEATURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
PNGS = [png(pixels) for pixels in PIXELS]


def entries_of(folder: Path, options: ReadOptions) -> list[Item | Skipped]:
    """Everything that comes of a folder, as a run has it."""
    found: list[Item | Skipped] = []
    for source in find_sources([str(folder)], options=options, pass_over=found.append):
        reader = open_reader(source, options)
        try:
            found += reader.read(0)
        except InputError as error:
            found.append(Skipped(id=reader.name, reason=error.message))
    return found


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
