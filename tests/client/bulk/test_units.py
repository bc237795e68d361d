"""Limits with units: the same flux in every file, whatever its unit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from vim_embed_client.bulk.sources.options import ReadOptions
from vim_embed_client.bulk.sources.reader import Item
from vim_embed_client.bulk.sources.registry import open_reader
from vim_embed_client.cli.main import run
from vim_embed_client.errors import InputError
from vim_embed_pixels import texts
from vim_embed_pixels.errors import UnusableImage, UnusableOptions
from vim_embed_pixels.surveys import survey_stretch
from vim_embed_pixels.units import Calibration, in_flux

from .survey import Array, galaxy

AB = 3630.780548  # Jy of magnitude 0: 48.6 in erg/s/cm2/Hz
ARCSEC2 = (math.pi / 180 / 3600) ** 2  # steradians


def header(bunit: str = "", pixel: float | None = None) -> fits.Header:
    """pixel: side of one, in arcseconds."""
    found = fits.Header({"BUNIT": bunit} if bunit else {})
    if pixel is not None:
        found.update({
            "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 10.0, "CRVAL2": -5.0,
            "CRPIX1": 8, "CRPIX2": 8, "CDELT1": -pixel / 3600, "CDELT2": pixel / 3600,
        })  # fmt: skip
    return found


@pytest.mark.parametrize(
    ("text", "told", "zero_point", "wanted"),
    [
        ("500nJy", header("nJy"), None, 500),
        ("0.5uJy", header("nJy"), None, 500),
        ("-1e-3Jy", header("uJy"), None, -1000),
        ("22mag", header("Jy"), None, AB * 10**-8.8),
        ("22ABmag", header("nJy"), None, AB * 10**-8.8 * 1e9),
        ("22mag", header(), 27.0, 100),
        ("22mag", None, 27.0, 100),
        ("22mag", header("ELECTRONS/S"), 24.5, 10),
        ("22.5mag", header("nanomaggy"), None, 1),
        ("3.630780548uJy", header("nmgy"), None, 1),
        ("2MJy/sr", header("MJy/sr"), None, 2),
        ("25mag/arcsec2", header("MJy/sr"), None, AB * 1e-10 / ARCSEC2 / 1e6),
        ("25mag/arcsec2", header("", 0.5), 27.0, 0.25 * 10**0.8),
        ("50nJy/arcsec2", header("nJy", 0.2), None, 2),
        ("10nJy", header("MJy/sr", 0.03), None, 1e-8 / (0.0009 * ARCSEC2) / 1e6),
    ],
)
def test_a_limit_in_the_unit_of_the_image(
    text: str, told: Any, zero_point: float | None, wanted: float
) -> None:
    assert in_flux(text, Calibration(told, zero_point)) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(
    ("text", "told", "zero_point", "words"),
    [
        ("22mag", None, None, "give --zero-point"),
        ("22mag", header(), None, "give --zero-point"),
        ("22mag", header("COUNTS"), None, "in COUNTS, which are no Jy: give --zero-point"),
        ("22mag", header("mJy/beam"), None, "which are no Jy"),
        ("22mag/arcsec2", header("nJy"), None, "need a WCS"),
        ("22mag/arcsec2", None, 27.0, "need a WCS"),
    ],
)
def test_images_that_say_too_little(
    text: str, told: Any, zero_point: float | None, words: str
) -> None:
    with pytest.raises(UnusableImage, match=words):
        in_flux(text, Calibration(told, zero_point))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("-0.1:2", ((-0.1, 2.0),)),
        ("0:22mag", ((0.0, "22.0mag"),)),
        ("-20:500nJy", (("-20.0nJy", "500.0nJy"),)),
        ("-1nJy:1uJy,0:2", (("-1.0nJy", "1.0uJy"), (0.0, 2.0))),
    ],
)
def test_pairs_of_limits(text: str, wanted: Any) -> None:
    assert texts.limits(text) == wanted


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1:22mag", "not of the form"),
        ("0:22", ""),
        ("0:22furlong", "'furlong' is no unit: use nJy"),
        ("0:22km", "km is no flux: use nJy"),
        ("0:mag", "not of the form"),
        ("0:1:2", "not of the form"),
    ],
)
def test_limits_that_are_none(text: str, words: str) -> None:
    if not words:
        assert texts.limits(text) == ((0.0, 22.0),)
        return
    with pytest.raises(UnusableOptions, match=words):
        texts.limits(text)


def made(path: Path | str, **given: Any) -> Array:
    join = given.pop("join_bands", None)
    options = ReadOptions(stretch=survey_stretch(None, **given), join_bands=join)
    entry = next(open_reader(str(path), options).read(0))
    assert isinstance(entry, Item), entry
    assert callable(entry.data)
    return entry.data()


def test_one_sky_in_two_units_is_one_image(tmp_path: Path) -> None:
    sky = 1000 * galaxy(1, 30)[0].astype(np.float64)  # nJy
    fits.PrimaryHDU(sky, header("nJy", 0.2)).writeto(tmp_path / "a.fits")
    fits.PrimaryHDU(sky * 1e-9 / (AB * 10**-10.8), header("COUNTS")).writeto(tmp_path / "b.fits")
    surface = sky * 1e-15 / (0.04 * ARCSEC2)
    fits.PrimaryHDU(surface, header("MJy/sr", 0.2)).writeto(tmp_path / "c.fits")
    np.save(tmp_path / "d.npy", sky[::-1] * 1e-9 / (AB * 10**-10.8))
    limits = texts.limits("-20nJy:1.5uJy")
    first = made(tmp_path / "a.fits", limits=limits)
    assert len(np.unique(first)) > 50
    for name, zero_point in (("b.fits", 27.0), ("c.fits", None), ("d.npy", 27.0)):
        other = made(tmp_path / name, limits=limits, zero_point=zero_point)
        assert np.abs(other.astype(int) - first).max() <= 1, name
    with pytest.raises(InputError, match="give --zero-point"):
        made(tmp_path / "d.npy", limits=limits)


def test_bands_that_are_files_or_hdus_have_units_of_their_own(tmp_path: Path) -> None:
    sky = 1000 * galaxy(3, 30).astype(np.float64)
    scales = {"z": ("nJy", 1.0), "r": ("uJy", 1e-3), "g": ("mJy", 1e-6)}
    hdus = []
    for band, (unit, scale), flux in zip(scales, scales.values(), sky, strict=True):
        fits.PrimaryHDU(flux * scale, header(unit)).writeto(tmp_path / f"n1-{band}.fits")
        hdus.append(fits.ImageHDU(flux * scale, header(unit), name=band.upper()))
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(tmp_path / "all.fits")
    wanted = made(tmp_path / "n1-z.fits", limits=texts.limits("0:2uJy"))[0]
    joined = made(
        tmp_path / "n1-{z,r,g}.fits", limits=texts.limits("0:2uJy"), join_bands=("z", "r", "g")
    )
    options = ReadOptions(
        stretch=survey_stretch(None, limits=texts.limits("0:2uJy")), hdus=("Z", "R", "G")
    )
    entry = next(open_reader(str(tmp_path / "all.fits"), options).read(0))
    assert isinstance(entry, Item)
    assert callable(entry.data)
    for image in (joined, entry.data()):
        np.testing.assert_array_equal(image[0], wanted)
        plain = (sky / 2000).clip(0, 1)[:, ::-1] * 255
        assert np.abs(image - plain).max() <= 1.01


def test_a_zero_point_without_units_is_an_error(tmp_path: Path, capsys: Any) -> None:
    fits.PrimaryHDU(galaxy(1)[0]).writeto(tmp_path / "a.fits")
    args = ["preview", str(tmp_path), "-o", str(tmp_path / "s.png"), "--zero-point", "27"]
    assert run([*args, "--limits", "0:2"]) == 2
    assert "--zero-point is for --limits with units" in capsys.readouterr().err
