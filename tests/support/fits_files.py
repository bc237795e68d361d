"""FITS files as request bodies."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]
FITS = {"Content-Type": "application/fits"}


def sky(bands: int, side: int = 30, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    spot = 2 * np.exp(-np.hypot(x - side / 2, y - side / 3) / 4)
    made: Array = spot * np.linspace(0.5, 1, bands)[:, None, None]
    return (made + rng.normal(0, 0.05, (bands, side, side))).astype(np.float32)


def written(*hdus: Any) -> bytes:
    buffer = io.BytesIO()
    first = () if isinstance(hdus[0], fits.PrimaryHDU) else (fits.PrimaryHDU(),)
    fits.HDUList([*first, *hdus]).writeto(buffer)
    return buffer.getvalue()


def primary(data: Array, **header: Any) -> bytes:
    hdu = fits.PrimaryHDU(data)
    hdu.header.update(header)
    return written(hdu)


def holed() -> Array:
    flux: Array = sky(1)[0]
    flux[3:6, 4:9] = np.nan
    return flux


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(3 * 99, dtype=np.uint8).reshape(9, 11, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def tiled(**claims: int) -> bytes:
    """A compressed image of 30 tiles, a row each, whose header claims something else."""
    data = written(fits.CompImageHDU(sky(1)[0], compression_type="GZIP_1"))
    for key, value in claims.items():
        at = data.index(f"{key:8}=".encode())
        data = data[:at] + f"{key:8}= {value:>20}".ljust(80).encode() + data[at + 80 :]
    return data


GREY, CUBE = primary(sky(1)[0]), primary(sky(5))
SEVERAL = written(
    fits.ImageHDU(np.ones((30, 30), np.int16), name="DQ"),
    *(fits.ImageHDU(sky(1, seed=n)[0], name=name) for n, name in enumerate("GRZ")),
)
COMPRESSED = written(fits.CompImageHDU(sky(1)[0], compression_type="RICE_1", quantize_level=-0.01))
