"""Headers of cut-outs carry what is true of the pixels, and `embed` makes the same of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from vim_embed_client.bulk.cutout_files import write_cutouts
from vim_embed_client.bulk.reasons import LeftOut
from vim_embed_client.bulk.sources.catalogue import CatalogueReader
from vim_embed_client.bulk.sources.options import ReadOptions, SkyOptions
from vim_embed_client.bulk.sources.reader import Item
from vim_embed_client.bulk.sources.registry import find_sources, open_reader
from vim_embed_client.formats import Array
from vim_embed_pixels import texts
from vim_embed_pixels.surveys import survey_stretch

from .skies import around, catalogue, painted, tangent

SHAPE = (160, 160)
GALAXIES = around(150, 2, 8, 4)
WCS_ = tangent(150, 2, 0.2, SHAPE, angle=20)
CARDS = {
    "BUNIT": "nJy", "MAGZERO": 31.4, "PHOTFLAM": 1.2e-19, "FLUXMAG0": 3.63e12, "EXPTIME": 1200.0,
    "FILTER": "i", "TELESCOP": "Subaru", "PIXAR_SR": 9.4e-13, "SATURATE": 60000.0, "NCOMBINE": 3,
}  # fmt: skip


def _mosaic(path: Path, pixels: Array, cards: dict[str, Any], *, wcs: WCS = WCS_) -> None:
    """FILTER and TELESCOP in the first header, as HST and JWST have them."""
    header = wcs.to_header()
    first = fits.Header()
    for key, value in cards.items():
        (first if key in ("FILTER", "TELESCOP") else header)[key] = (value, f"the {key}")
    hdus = [fits.PrimaryHDU(header=first), fits.ImageHDU(pixels, header, name="SCI")]
    fits.HDUList(hdus).writeto(path)


def _sky(seed: int = 0) -> Array:
    return painted(GALAXIES, WCS_, SHAPE, noise=0.05, seed=seed)


def _options(tmp_path: Path, images: str, stretch: dict[str, Any], **given: Any) -> ReadOptions:
    known = {"hdus", "join_bands"}
    rest = {name: value for name, value in given.items() if name not in known}
    catalogue(tmp_path / "cat.csv", GALAXIES)
    return ReadOptions(
        sky=SkyOptions(
            images=(str(tmp_path / images),), catalogues=(str(tmp_path / "cat.csv"),),
            **{"size": 3, **rest},
        ),
        stretch=survey_stretch(None, **stretch),
        hdus=given.get("hdus"), join_bands=given.get("join_bands"),
    )  # fmt: skip


def _cut(tmp_path: Path, options: ReadOptions) -> Path:
    reader = CatalogueReader(str(tmp_path / "cat.csv"), options, whole=True)
    write_cutouts(tmp_path / "cut", reader.cutouts(0), LeftOut(), {})
    return tmp_path / "cut"


def _header(tmp_path: Path, images: str = "*.fits", **given: Any) -> Any:
    folder = _cut(tmp_path, _options(tmp_path, images, {}, **given))
    return fits.getheader(sorted(folder.glob("*.fits"))[0])


def test_what_describes_the_pixels_is_carried(tmp_path: Path) -> None:
    _mosaic(tmp_path / "a.fits", _sky(), CARDS)
    found = _header(tmp_path)
    carried = {key: found.get(key) for key in CARDS}
    assert carried == {**CARDS, "SATURATE": None, "NCOMBINE": None}
    assert found.comments["MAGZERO"] == "the MAGZERO"


def test_the_area_of_a_pixel_is_not_that_of_another(tmp_path: Path) -> None:
    _mosaic(tmp_path / "a.fits", _sky(), CARDS)
    found = _header(tmp_path, scale=0.1)
    assert "PIXAR_SR" not in found
    assert found["MAGZERO"] == 31.4


def test_the_flux_in_a_cutout_has_the_zero_point_of_its_header(tmp_path: Path) -> None:
    """Of the mosaic and of finer pixels, by the card and not by what the code does."""
    _mosaic(tmp_path / "a.fits", _sky(), CARDS)
    folder = _cut(tmp_path, _options(tmp_path, "a.fits", {}, scale=0.1))
    for path, flux in zip(sorted(folder.glob("*.fits")), GALAXIES.flux, strict=True):
        pixels, header = fits.getdata(path, header=True)
        magnitude = header["MAGZERO"] - 2.5 * np.log10(pixels.sum())
        assert magnitude == pytest.approx(31.4 - 2.5 * np.log10(flux), abs=0.02)


def test_tiles_that_differ_say_only_what_both_do(tmp_path: Path) -> None:
    for place in (0, 1):
        at = slice(0, 160), slice(80 * place, 80 * (place + 1))
        cards = {**CARDS, "MAGZERO": 25.0 + place, "EXPTIME": 100.0}
        _mosaic(tmp_path / f"{place}.fits", _sky()[at], cards, wcs=WCS_[at])
    folder = _cut(tmp_path, _options(tmp_path, "*.fits", {}, size=12, max_blank=0.9))
    headers = [fits.getheader(path) for path in folder.glob("*.fits")]
    assert all(header["EXPTIME"] == 100 and header["BUNIT"] == "nJy" for header in headers)
    assert any("MAGZERO" not in header for header in headers)


def test_names_with_a_dot(tmp_path: Path) -> None:
    _mosaic(tmp_path / "a.fits", _sky(), {"HIERARCH FPA.ZP": 25.0})
    assert _header(tmp_path)["FPA.ZP"] == 25


def _bands(tmp_path: Path) -> None:
    for seed, (band, unit, scale) in enumerate(
        (("z", "nJy", 1.0), ("r", "uJy", 1e-3), ("g", "nJy", 1.0))
    ):
        _mosaic(tmp_path / f"m-{band}.fits", _sky(seed) * scale, {"BUNIT": unit})


def _cube(tmp_path: Path) -> None:
    cards = {"BANDS": "gri", "BUNIT": "nJy"}
    _mosaic(tmp_path / "m.fits", np.stack([_sky(seed) for seed in range(3)]), cards)


def _rgb(tmp_path: Path) -> None:
    cards = {"CTYPE3": "RGB", "BUNIT": "nJy"}
    _mosaic(tmp_path / "m.fits", np.stack([_sky(seed) for seed in range(3)]), cards)


def _hdus(tmp_path: Path) -> None:
    header = WCS_.to_header()
    header["BUNIT"] = "nJy"
    images = [fits.ImageHDU(_sky(n), header, name=name) for n, name in enumerate("ZRG")]
    fits.HDUList([fits.PrimaryHDU(), *images]).writeto(tmp_path / "m.fits")


def _one(unit: str) -> Any:
    return lambda tmp_path: _mosaic(tmp_path / "m.fits", _sky(), {**CARDS, "BUNIT": unit})


_LIMITS = {"limits": texts.limits("-1nJy:15nJy")}
_SURFACE = {"limits": texts.limits("0:25mag/arcsec2")}
_WAYS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "fluxes": (_one("nJy"), {}, {}),
    "limits in nJy": (_one("nJy"), {}, _LIMITS),
    "limits in magnitudes of an area": (_one("nJy"), {}, _SURFACE),
    "of a surface brightness": (
        _one("MJy/sr"), {"scale": 0.1}, {"limits": texts.limits("0:20MJy/sr")}
    ),
    "of counts": (_one("COUNTS"), {"scale": 0.1}, {**_LIMITS, "zero_point": 31.4}),
    "resampled": (_one("nJy"), {"scale": 0.13, "north_up": True}, _LIMITS),
    "a cube of bands": (_cube, {}, _LIMITS),
    "a cube of colours": (_rgb, {"scale": 0.3}, {}),
    "extensions": (_hdus, {"hdus": ("Z", "R", "G")}, _LIMITS),
    "files that are bands": (_bands, {"join_bands": ("z", "r", "g")}, {"per_band": True}),
}  # fmt: skip


@pytest.mark.parametrize("way", _WAYS)
def test_cutouts_are_shown_as_a_catalogue_is(tmp_path: Path, way: str) -> None:
    make, given, stretch = _WAYS[way]
    make(tmp_path)
    options = _options(tmp_path, "m*.fits", {**stretch, "blank": "sky"}, **given)
    direct = list(CatalogueReader(str(tmp_path / "cat.csv"), options).read(0))
    folder = _cut(tmp_path, options)
    read = ReadOptions(stretch=options.stretch)
    files = find_sources([str(folder)], options=read)
    again = [entry for path in files for entry in open_reader(path, read).read(0)]
    assert len(direct) == len(again) == 4
    for one, other in zip(direct, again, strict=True):
        np.testing.assert_array_equal(_pixels(other), _pixels(one))


def _pixels(entry: Any) -> Array:
    assert isinstance(entry, Item), entry
    assert callable(entry.data)
    found = entry.data()
    assert len(np.unique(found)) > 10
    return found


def test_bands_in_units_of_their_own_are_shown_alike(tmp_path: Path) -> None:
    """Of a catalogue, each band by its own unit; a cut-out says no unit that is not that of all."""
    _bands(tmp_path)
    given = {"join_bands": ("z", "r", "g")}
    options = _options(tmp_path, "m*.fits", {**_LIMITS, "blank": "sky"}, **given)
    first = next(CatalogueReader(str(tmp_path / "cat.csv"), options).read(0))
    pixels = _pixels(first)
    assert np.abs(pixels[1].astype(int) - pixels[0]).max() < 20  # noise alone
    header = _header(tmp_path, "m*.fits", **given)
    assert "BUNIT" not in header
    assert [header[f"BAND{place}"] for place in range(3)] == ["z", "r", "g"]
