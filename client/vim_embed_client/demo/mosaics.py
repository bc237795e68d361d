"""Two surveys of one field, with a WCS and a catalogue, from the Hubble picture: for the tutorial.

    python -m vim_embed_client.demo.mosaics sky

writes sky/hubble/ (the picture as it is, 0.05" a pixel), sky/ground/ (the same field with a
seeing of 0.45" (FWHM), 0.15" a pixel, with noise of its own), a FITS file for each of the bands r,
g and b, and sky/cat.fits: id, ra and dec (degrees), radius (arcsec), brightness (grey levels above
the sky, summed) and colour (the flux in r over that in b) of each galaxy. The place on the sky and
the scale of the picture are made up; the galaxies are real.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from vim_embed_client.demo.stamps import Sources, find_sources, hubble_picture

BANDS = "rgb"
HUBBLE_SCALE = 0.05  # arcsec a pixel
COARSER = 3  # pixels of the picture in a pixel from the ground
SEEING = 0.45 / 2.355 / HUBBLE_SCALE  # standard deviation in pixels of the picture
NOISE = 1.5  # grey levels, in a pixel from the ground
CENTRE = (53.16, -27.79)  # degrees

Mosaic = NDArray[np.float32]


def wcs_of(picture: tuple[int, ...], scale: float) -> WCS:
    """North up and east left, CENTRE in the middle of the picture. picture: its (H, W).

    scale: arcsec a pixel of the mosaic, whose first pixels are those of the picture.
    """
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = CENTRE
    coarser = scale / HUBBLE_SCALE
    wcs.wcs.crpix = [side / coarser / 2 + 0.5 for side in picture[::-1]]
    wcs.wcs.cdelt = [-scale / 3600, scale / 3600]
    return wcs


def from_the_ground(band: Mosaic, seed: int) -> Mosaic:
    """The band blurred and summed to coarser pixels, with noise."""
    blurred = gaussian_filter(band, SEEING)
    height, width = (side // COARSER for side in band.shape)
    blocks = blurred[: height * COARSER, : width * COARSER]
    coarse = blocks.reshape(height, COARSER, width, COARSER).sum(axis=(1, 3))
    noise = COARSER**2 * NOISE * np.random.default_rng(seed).normal(size=coarse.shape)
    return np.asarray(coarse + noise, np.float32)


def catalogue(picture: Mosaic, sources: Sources) -> Table:
    """A row for each source. picture: (3, H, W)."""
    wcs = wcs_of(picture.shape[1:], HUBBLE_SCALE)
    ra, dec = wcs.all_pix2world(*sources.positions.T, 0)
    x, y = np.rint(sources.positions).astype(int).T
    red, blue = (gaussian_filter(picture[band], 2.0)[y, x] for band in (0, 2))
    return Table(
        {
            "id": [f"g{row:04}" for row in range(len(sources))],
            "ra": ra,
            "dec": dec,
            "radius": sources.radius * HUBBLE_SCALE,
            "brightness": sources.flux,
            "colour": red / np.maximum(blue, 1.0),
        },
        units={"ra": "deg", "dec": "deg", "radius": "arcsec"},
    )


def write_sky(folder: Path, count: int = 400) -> Table:
    """Write the mosaics and the catalogue of the `count` brightest galaxies, and return it."""
    # Rows of a picture go down, those of a mosaic up.
    image = hubble_picture()
    picture = np.ascontiguousarray(image[::-1].transpose(2, 0, 1)).astype(np.float32)
    found = find_sources(image).brightest(count)
    up = found.positions * [1, -1] + [0, image.shape[0] - 1]
    sources = Sources(positions=up, flux=found.flux, radius=found.radius)
    for survey in ("hubble", "ground"):
        (folder / survey).mkdir(parents=True, exist_ok=True)
    for band, name in enumerate(BANDS):
        fine, coarse = picture[band], from_the_ground(picture[band], seed=band)
        headers = [
            wcs_of(fine.shape, scale).to_header()
            for scale in (HUBBLE_SCALE, HUBBLE_SCALE * COARSER)
        ]
        _write(folder / "hubble" / f"hubble-{name}.fits", fine, headers[0])
        _write(folder / "ground" / f"ground-{name}.fits", coarse, headers[1])
    table = catalogue(picture, sources)
    table.write(folder / "cat.fits", overwrite=True)
    return table


def _write(path: Path, band: Mosaic, header: fits.Header) -> None:
    fits.PrimaryHDU(band, header).writeto(path, overwrite=True)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "sky")
    table = write_sky(folder)
    print(f"{folder}: two surveys of {len(table)} galaxies, and cat.fits")


if __name__ == "__main__":
    main()
