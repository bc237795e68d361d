"""Headers and numbers of mosaics as they come: each read right, or refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from vim_embed_client.bulk.sources.options import ReadOptions
from vim_embed_client.errors import InputError
from vim_embed_client.sky.tiles import is_surface_brightness

from .skies import Array, around, painted, tangent, write
from .test_cutouts import SIDE, centred, cutouts

_GALAXIES = around(150, 2, 18, 4)
_TURN = 20.0


def _plain() -> tuple[Array, fits.Header]:
    wcs = tangent(150, 2, 0.2, (SIDE, SIDE), angle=_TURN)
    return painted(_GALAXIES, wcs, (SIDE, SIDE)), wcs.to_header()


def _with(change: Callable[[Array, fits.Header], Any]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        hdu = change(*_plain())
        hdu.writeto(path)

    return make


def _cd(image: Array, header: fits.Header) -> Any:
    """CD without a CDELT, as most mosaics have it."""
    matrix = WCS(header).pixel_scale_matrix
    for card in [key for key in header if key.startswith(("PC", "CDELT"))]:
        del header[card]
    for i in (1, 2):
        for j in (1, 2):
            header[f"CD{i}_{j}"] = matrix[i - 1, j - 1]
    return fits.PrimaryHDU(image, header)


def _crota(image: Array, header: fits.Header) -> Any:
    """CDELT and CROTA2, as in the last century."""
    for card in [key for key in header if key.startswith("PC")]:
        del header[card]
    header["CDELT1"], header["CDELT2"], header["CROTA2"] = -0.2 / 3600, 0.2 / 3600, -_TURN
    return fits.PrimaryHDU(image, header)


def _arcsec(image: Array, header: fits.Header) -> Any:
    for axis in (1, 2):
        header[f"CDELT{axis}"] *= 3600
        header[f"CRVAL{axis}"] *= 3600
        header[f"CUNIT{axis}"] = "arcsec"
    return fits.PrimaryHDU(image, header)


def _latitude_first(image: Array, header: fits.Header) -> Any:
    swapped = header.copy()
    for key in ("CTYPE", "CRVAL", "CUNIT", "CDELT"):
        swapped[f"{key}1"], swapped[f"{key}2"] = header[f"{key}2"], header[f"{key}1"]
    matrix = WCS(header).wcs.get_pc()
    for i in (1, 2):
        for j in (1, 2):
            swapped[f"PC{i}_{j}"] = matrix[2 - i, j - 1]
    return fits.PrimaryHDU(image, swapped)


def _mirrored(image: Array, header: fits.Header) -> Any:
    """Right ascension to the right."""
    matrix = WCS(header).wcs.get_pc()
    header["CRPIX1"] = SIDE + 1 - header["CRPIX1"]
    for i in (1, 2):
        header[f"PC{i}_1"] = -matrix[i - 1, 0]
        header[f"PC{i}_2"] = matrix[i - 1, 1]
    return fits.PrimaryHDU(image[:, ::-1], header)


def _radio(image: Array, header: fits.Header) -> Any:
    """Two more axes of one pixel."""
    header["CTYPE3"], header["CTYPE4"] = "STOKES", "FREQ"
    header["CRVAL3"], header["CRVAL4"] = 1.0, 1.4e9
    return fits.PrimaryHDU(image[None, None], header)


def _unsigned(image: Array, header: fits.Header) -> Any:
    return fits.PrimaryHDU(np.round(image * 1000 + 100).astype(np.uint16), header)


def _blank(image: Array, header: fits.Header) -> Any:
    """Scaled whole numbers with a row of BLANK at the edge."""
    hdu = fits.PrimaryHDU(np.round(image * 1e4).astype(np.int32), header)
    hdu.data[0] = -1
    hdu.header["BLANK"], hdu.header["BSCALE"] = -1, 1e-4
    return hdu


def _asinh(image: Array, header: fits.Header) -> Any:
    """As Pan-STARRS writes fluxes."""
    header["BSOFTEN"], header["BOFFSET"] = 1.5, 0.25
    return fits.PrimaryHDU(
        (2.5 * np.log10(np.e) * np.arcsinh((image - 0.25) / 3)).astype(np.float32), header
    )


def _two_matrices(image: Array, header: fits.Header) -> Any:
    """CD beside PC and CDELT, of the same pixels."""
    hdu = _cd(image, header.copy())
    hdu.header.update(header)
    return hdu


def _nan_block(image: Array, header: fits.Header) -> Any:
    image = image.copy()
    image[:, :4] = np.nan
    return fits.PrimaryHDU(image, header)


def _tpv(path: Path) -> None:
    """DECam's distortion, with terms of the second order."""
    wcs = tangent(150, 2, 0.2, (SIDE, SIDE), angle=_TURN)
    header = wcs.to_header()
    header["CTYPE1"], header["CTYPE2"] = "RA---TPV", "DEC--TPV"
    for axis in (1, 2):
        header[f"PV{axis}_1"] = 1.0
        header[f"PV{axis}_4"] = 0.9
    distorted = WCS(header)
    fits.PrimaryHDU(painted(_GALAXIES, distorted, (SIDE, SIDE)), header).writeto(path)


_READ: dict[str, Callable[[Path], None]] = {
    "CD": _with(_cd), "CROTA2": _with(_crota), "arcseconds": _with(_arcsec),
    "declination first": _with(_latitude_first), "mirrored": _with(_mirrored),
    "axes of one pixel": _with(_radio), "BLANK and BSCALE": _with(_blank),
    "a block of NaN": _with(_nan_block), "TPV": _tpv,
    "arcsinh of the fluxes": _with(_asinh), "CD and PC": _with(_two_matrices),
}  # fmt: skip


@pytest.mark.parametrize("north_up", [False, True])
@pytest.mark.parametrize("form", _READ)
def test_galaxies_are_in_the_middle_with_their_flux(
    tmp_path: Path, form: str, north_up: bool
) -> None:
    _READ[form](tmp_path / "tile.fits")
    centred(cutouts(tmp_path, _GALAXIES, north_up=north_up), _GALAXIES)


def test_unsigned_numbers(tmp_path: Path) -> None:
    image, header = _plain()
    _unsigned(image, header).writeto(tmp_path / "tile.fits")
    rows: list[Any] = cutouts(tmp_path, _GALAXIES)
    for row, flux in zip(rows, _GALAXIES.flux, strict=True):
        assert (row.cutout() - 100).sum() / 1000 == pytest.approx(flux, rel=0.01)


def _no_area(image: Array, header: fits.Header) -> Any:
    hdu = _cd(image, header)
    hdu.header["CD1_1"], hdu.header["CD1_2"] = hdu.header["CD2_1"], hdu.header["CD2_2"]
    return hdu


def _linear(image: Array, header: fits.Header) -> Any:
    header["CTYPE1"], header["CTYPE2"] = "X", "Y"
    return fits.PrimaryHDU(image, header)


def _unknown(image: Array, header: fits.Header) -> Any:
    header["CTYPE1"], header["CTYPE2"] = "RA---XYZ", "DEC--XYZ"
    return fits.PrimaryHDU(image, header)


def _matrices_that_differ(image: Array, header: fits.Header) -> Any:
    hdu = _two_matrices(image, header)
    hdu.header["PC1_1"], hdu.header["PC2_2"] = 1.0, 1.0
    return hdu


def _frame(image: Array, header: fits.Header) -> Any:
    header["RADESYS"] = "J2000"
    return fits.PrimaryHDU(image, header)


_REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no area": (_with(_no_area), "no area"),
    "no sky": (_with(_linear), "no sky coordinates"),
    "an unknown projection": (_with(_unknown), "tile.fits"),
    "two matrices": (_with(_matrices_that_differ), "CD1_1 and so on, and PC1_1"),
    "an unknown frame": (_with(_frame), "ICRS, FK5 or FK4 into RADESYS"),
    "no image": (lambda path: fits.PrimaryHDU().writeto(path), "no image"),
    "cut short": (lambda path: path.write_bytes(b"SIMPLE  ="), "tile.fits"),
}  # fmt: skip


def _open_files(folder: Path) -> list[str]:
    return [one.path for one in psutil.Process().open_files() if str(folder) in one.path]


@pytest.mark.parametrize("case", _REFUSED)
def test_what_is_no_mosaic_is_refused_by_its_name(tmp_path: Path, case: str) -> None:
    make, message = _REFUSED[case]
    make(tmp_path / "tile.fits")
    with pytest.raises(InputError) as raised:
        cutouts(tmp_path, _GALAXIES)
    assert message in raised.value.message
    assert "tile.fits" in raised.value.message
    assert not _open_files(tmp_path)  # while the error is still held: none is left to a collector


def test_a_cutout_of_one_pixel_is_none(tmp_path: Path) -> None:
    image, header = _plain()
    fits.PrimaryHDU(image, header).writeto(tmp_path / "tile.fits")
    rows: list[Any] = cutouts(tmp_path, _GALAXIES, size=0.2)
    assert all("1 pixels a side of 0.2 arcsec" in row.reason for row in rows)


@pytest.mark.parametrize(
    "unit",
    [
        "MJy/sr", "MJy sr-1", "MJy.sr**-1", "MJy / steradian", "Jy/beam", "JY/BEAM", "K",
        "count arcsec-2", "10**-20 erg/s/cm2/arcsec2", "nJy/sqarcsec", "mag/arcsec^2", "W/(m2 sr)",
    ],
)  # fmt: skip
def test_units_of_surface_brightness(unit: str) -> None:
    assert is_surface_brightness(unit)


@pytest.mark.parametrize("unit", ["", "nJy", "nanomaggy", "electrons/s", "Jy/pixel", "adu", "DN"])
def test_units_of_pixels(unit: str) -> None:
    assert not is_surface_brightness(unit)


def test_one_file_that_is_cut_short_later_costs_its_rows_alone(tmp_path: Path) -> None:
    image, header = _plain()
    path = tmp_path / "tile.fits"
    fits.PrimaryHDU(image, header).writeto(path)
    with path.open("r+b") as file:
        file.truncate(2880 * 2 + SIDE * SIDE * 2)
    rows: list[Any] = cutouts(tmp_path, _GALAXIES, ReadOptions())
    told = [getattr(row, "reason", "") for row in rows]
    assert any("cut short" in reason for reason in told)
    assert all("tile.fits" in reason for reason in told if reason)


def test_write_is_what_the_others_use(tmp_path: Path) -> None:
    """The plain form, beside which the others are odd."""
    wcs = tangent(150, 2, 0.2, (SIDE, SIDE), angle=_TURN)
    write(tmp_path / "tile.fits", painted(_GALAXIES, wcs, (SIDE, SIDE)), wcs)
    centred(cutouts(tmp_path, _GALAXIES), _GALAXIES)
