"""Simulated skies: gaussian galaxies of known flux, drawn into FITS mosaics through their WCS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS
from astropy.wcs.utils import skycoord_to_pixel
from numpy.typing import NDArray

Array = NDArray[Any]
ARCSEC = 1 / 3600


@dataclass(frozen=True)
class Galaxies:
    """Positions in degrees, fluxes, and the sigma of all in arcseconds."""

    ra: Array
    dec: Array
    flux: Array
    sigma: float = 0.35

    def __len__(self) -> int:
        return len(self.ra)


def around(
    ra: float, dec: float, spread: float, count: int, *, seed: int = 0, sigma: float = 0.35
) -> Galaxies:
    """Galaxies within `spread` arcseconds of a place, on a jittered lattice: none overlap."""
    rng = np.random.default_rng(seed)
    rows = int(np.ceil(np.sqrt(count)))
    step = 2 * spread / rows
    places = np.stack(np.meshgrid(np.arange(rows), np.arange(rows)), -1).reshape(-1, 2)[:count]
    off = (places + 0.5 + rng.uniform(-0.2, 0.2, (count, 2))) * step - spread
    wcs = tangent(ra, dec, 1.0, (0, 0))
    found = wcs.wcs_pix2world(off, 0)
    return Galaxies(found[:, 0] % 360, found[:, 1], rng.uniform(50, 500, count), sigma)


def tangent(
    ra: float, dec: float, scale: float, shape: tuple[int, int], *, angle: float = 0.0,
    sip: float = 0.0, offset: tuple[float, float] = (0.0, 0.0), frame: str = "ICRS",
) -> WCS:  # fmt: skip
    """A TAN WCS of `scale` arcseconds about the middle of (H, W) pixels.

    angle: degrees of rotation. sip: pixels of distortion at the edge. offset: of the tangent point
    from the middle, in pixels.
    """
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"] if sip else ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = ra, dec
    wcs.wcs.crpix = (shape[1] + 1) / 2 - offset[0], (shape[0] + 1) / 2 - offset[1]
    turn = np.radians(angle)
    cosine, sine = np.cos(turn), np.sin(turn)
    wcs.wcs.cd = scale * ARCSEC * np.array([[-cosine, sine], [sine, cosine]])
    wcs.wcs.radesys = frame
    if sip:
        half = max(shape) / 2
        a, b = np.zeros((4, 4)), np.zeros((4, 4))
        a[2, 0], a[1, 1], a[0, 3] = sip / half**2, -sip / half**2, sip / half**3
        b[0, 2], b[3, 0] = -sip / half**2, sip / half**3
        from astropy.wcs import Sip

        wcs.sip = Sip(a, b, None, None, wcs.wcs.crpix)
    wcs.wcs.set()
    return wcs


def painted(
    galaxies: Galaxies, wcs: WCS, shape: tuple[int, int], *, noise: float = 0.0, seed: int = 0
) -> Array:
    """(H, W) float32 fluxes per pixel: each galaxy integrated over the pixels about it."""
    image = np.random.default_rng(seed).normal(0, noise, shape) if noise else np.zeros(shape)
    places = SkyCoord(galaxies.ra, galaxies.dec, unit="deg")
    x, y = skycoord_to_pixel(places, wcs, mode="all")
    for at_x, at_y, flux in zip(x, y, galaxies.flux, strict=True):
        _paint(image, wcs, float(at_x), float(at_y), float(flux), galaxies.sigma)
    return image.astype(np.float32)


def _paint(image: Array, wcs: WCS, x: float, y: float, flux: float, sigma: float) -> None:
    """A gaussian that is round on the sky, through the local Jacobian of the WCS."""
    ra, dec = wcs.all_pix2world([x, x + 1, x], [y, y, y + 1], 0)
    turn = np.cos(np.radians(dec[0]))
    jacobian = np.array([
        [((ra[i] - ra[0] + 180) % 360 - 180) * turn, dec[i] - dec[0]] for i in (1, 2)
    ]).T / ARCSEC  # fmt: skip
    reach = int(np.ceil(6 * sigma / np.sqrt(abs(np.linalg.det(jacobian))))) + 1
    columns = np.arange(max(0, int(x) - reach), min(image.shape[1], int(x) + reach + 1))
    rows = np.arange(max(0, int(y) - reach), min(image.shape[0], int(y) + reach + 1))
    if not len(columns) or not len(rows):
        return
    parts = (np.arange(5) + 0.5) / 5 - 0.5  # of a pixel, integrated over
    across = (columns[:, None] + parts).ravel() - x
    up = (rows[:, None] + parts).ravel() - y
    u, v = np.meshgrid(across, up)
    east = jacobian[0, 0] * u + jacobian[0, 1] * v
    north = jacobian[1, 0] * u + jacobian[1, 1] * v
    fine = np.exp(-(east**2 + north**2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)
    fine *= flux * abs(np.linalg.det(jacobian))
    coarse = fine.reshape(len(rows), 5, len(columns), 5).mean(axis=(1, 3))
    image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] += coarse


def write(
    path: Path, image: Array, wcs: WCS, *, compressed: bool = False, name: str = "", **cards: Any
) -> None:
    """An image with its WCS, as it is or as a compressed extension."""
    header = wcs.to_header(relax=True)
    for key, value in cards.items():
        header[key] = value
    if compressed:
        hdu = fits.CompImageHDU(
            image, header, name=name, compression_type="RICE_1", quantize_level=256
        )
        hdus = [fits.PrimaryHDU(), hdu]
    else:
        hdus = [fits.PrimaryHDU(image, header)]
    fits.HDUList(hdus).writeto(path)


def measured(image: Array, *, radius: float | None = None) -> tuple[float, float, float]:
    """Flux within a radius, and the centroid's x and y from the middle, of one galaxy's image."""
    v, u = np.indices(image.shape) - (np.array(image.shape).reshape(2, 1, 1) - 1) / 2
    weight = np.where(np.hypot(u, v) <= (radius or image.shape[0] / 2), image, 0)
    flux = float(weight.sum())
    return flux, float((weight * u).sum() / flux), float((weight * v).sum() / flux)


def catalogue(path: Path, galaxies: Galaxies, **columns: Sequence[Any]) -> Path:
    """A catalogue with columns id, ra, dec and z, in the format of the path's ending."""
    from astropy.table import Table

    table = Table({
        "name": [f"g{row}" for row in range(len(galaxies))],
        "ra": galaxies.ra, "dec": galaxies.dec,
        "z": np.round(0.1 + 0.1 * np.arange(len(galaxies)), 3), **columns,
    })  # fmt: skip
    kinds = {".fits": "fits", ".csv": "ascii.csv", ".ecsv": "ascii.ecsv", ".vot": "votable"}
    table.write(path, format=kinds.get(path.suffix, "parquet"), overwrite=True)
    return path
