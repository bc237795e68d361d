"""Cut-outs of mosaics: centred, with their flux, whatever the WCS; blank pixels measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from vim_embed_client.bulk.sources.catalogue import CatalogueReader, CutRow
from vim_embed_client.bulk.sources.mosaics import mosaic_files
from vim_embed_client.bulk.sources.options import ReadOptions, SkyOptions
from vim_embed_client.bulk.sources.reader import Skipped
from vim_embed_client.cli.main import run
from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_pixels.stretch import Stretch

from .skies import Array, Galaxies, around, catalogue, measured, painted, tangent, write

SIDE = 260


def cutouts(
    folder: Path, galaxies: Galaxies, base: ReadOptions | None = None, **options: Any
) -> list[CutRow | Skipped]:
    table = catalogue(folder / "cat.fits", galaxies)
    given: dict[str, Any] = {"images": (str(folder / "tile*"),), "size": 6.0} | options
    sky = SkyOptions(**given)
    read = replace(base or ReadOptions(), sky=sky, id_column="name", keep=("z",))
    return list(CatalogueReader(str(table), read).cutouts(0))


def centred(rows: list[CutRow | Skipped], galaxies: Galaxies) -> None:
    """Every galaxy is in the middle of its cut-out, to 0.1 pixel, with its flux, to 1 %."""
    assert len(rows) == len(galaxies)
    for row, flux in zip(rows, galaxies.flux, strict=True):
        assert isinstance(row, CutRow), row
        found, x, y = measured(row.cutout()[0])
        assert np.hypot(x, y) < 0.1
        assert found == pytest.approx(flux, rel=0.01)


_SKIES: dict[str, tuple[float, float, dict[str, Any]]] = {
    "plain": (150.1, 2.2, {}),
    "rotated": (150.1, 2.2, {"angle": 37.0}),
    "distorted": (210.8, 54.3, {"angle": -12.0, "sip": 6.0}),
    "across RA 0": (0.0, -30.0, {"angle": 15.0}),
    "at a pole": (45.0, 90.0, {"angle": 80.0}),
    "near a pole": (123.0, -89.99, {"offset": (900.0, -700.0)}),
    "FK5": (33.0, -5.0, {"frame": "FK5"}),
}
_GRIDS: dict[str, dict[str, Any]] = {
    "as it lies": {},
    "north up": {"north_up": True},
    "coarser": {"north_up": True, "scale": 0.35},
    "finer": {"scale": 0.1},
}


@pytest.mark.parametrize("grid", _GRIDS)
@pytest.mark.parametrize("sky", _SKIES)
def test_centre_and_flux(tmp_path: Path, sky: str, grid: str) -> None:
    ra, dec, given = _SKIES[sky]
    wcs = tangent(ra, dec, 0.2, (SIDE, SIDE), **given)
    middle = wcs.all_pix2world([[(SIDE - 1) / 2] * 2], 0)[0]
    galaxies = around(middle[0], middle[1], 18, 9)
    write(tmp_path / "tile.fits", painted(galaxies, wcs, (SIDE, SIDE)), wcs)
    centred(cutouts(tmp_path, galaxies, **_GRIDS[grid]), galaxies)


@pytest.mark.parametrize("form", ["plain", "compressed", "packed", "scaled", "float64", "cube"])
def test_forms_of_a_mosaic_give_one_cutout(tmp_path: Path, form: str) -> None:
    galaxies = around(150, 2, 18, 4)
    wcs = tangent(150, 2, 0.2, (SIDE, SIDE), angle=20)
    image = painted(galaxies, wcs, (SIDE, SIDE))
    path = tmp_path / "tile.fits"
    header = wcs.to_header()
    if form == "compressed":
        path = tmp_path / "tile.fits.fz"
        write(path, image, wcs, compressed=True)
    elif form == "packed":
        path = tmp_path / "tile.fits.gz"
        fits.PrimaryHDU(image, header).writeto(path)
    elif form == "scaled":
        hdu = fits.PrimaryHDU(image, header)
        hdu.scale("int32", bscale=1e-4, bzero=3)
        hdu.writeto(path)
    elif form == "float64":
        fits.PrimaryHDU(image.astype(">f8"), header).writeto(path)
    elif form == "cube":
        stack = np.stack([image, image * 0 + 7])
        fits.PrimaryHDU(stack, header).writeto(path)
    else:
        write(path, image, wcs)
    options = ReadOptions(stretch=Stretch(bands=(0,))) if form == "cube" else ReadOptions()
    centred(cutouts(tmp_path, galaxies, options), galaxies)


def test_tiles_that_only_touch_are_joined(tmp_path: Path) -> None:
    """Galaxies on the seams of four tiles are whole."""
    whole = tangent(359.9999, 1, 0.2, (SIDE, SIDE))
    half = SIDE // 2
    ra, dec = whole.all_pix2world([130, 131.3, 60, 129.5], [129.5, 60, 130, 200], 0)
    galaxies = Galaxies(ra, dec, np.array([100.0, 200, 300, 400]))
    image = painted(galaxies, whole, (SIDE, SIDE))
    for row in (0, 1):
        for column in (0, 1):
            at = slice(row * half, (row + 1) * half), slice(column * half, (column + 1) * half)
            write(tmp_path / f"tile{row}{column}.fits", image[at], whole[at])
    rows = cutouts(tmp_path, galaxies)
    centred(rows, galaxies)
    told = [
        (
            row.columns["off_edge"],
            len({one for piece in row.cutout.bands[0] for one in piece.tiles}),
        )
        for row in rows
        if isinstance(row, CutRow)
    ]
    assert [off for off, _ in told] == [0, 0, 0, 0]
    assert told[0][1] == 4


def test_bands_of_other_pixels_are_brought_onto_one_grid(tmp_path: Path) -> None:
    """Three bands, two pixel scales, one rotated: each centred, with its own flux."""
    galaxies = around(150, 2, 18, 4)
    grids = {"z": (0.2, 0.0, 260), "r": (0.1, 25.0, 520), "g": (0.31, -9.0, 200)}
    for factor, (band, (scale, angle, side)) in enumerate(grids.items(), 1):
        wcs = tangent(150, 2, scale, (side, side), angle=angle)
        brighter = replace(galaxies, flux=galaxies.flux * factor)
        write(tmp_path / f"tile-{band}.fits", painted(brighter, wcs, (side, side)), wcs)
    rows = cutouts(tmp_path, galaxies, ReadOptions(join_bands=("z", "r", "g")))
    for row, flux in zip(rows, galaxies.flux, strict=True):
        assert isinstance(row, CutRow)
        for factor, image in enumerate(row.cutout(), 1):
            found, x, y = measured(image)
            assert np.hypot(x, y) < 0.1
            assert found == pytest.approx(factor * flux, rel=0.01)


def test_surface_brightness_is_not_scaled(tmp_path: Path) -> None:
    wcs = tangent(150, 2, 0.2, (SIDE, SIDE))
    write(tmp_path / "tile.fits", np.full((SIDE, SIDE), 7.0, "f4"), wcs, BUNIT="MJy/sr")
    (row,) = cutouts(tmp_path, around(150, 2, 1, 1), scale=0.5)
    assert isinstance(row, CutRow)
    assert row.cutout() == pytest.approx(7)


def blank(folder: Path, galaxies: Galaxies, **options: Any) -> list[tuple[float, float]]:
    rows = cutouts(folder, galaxies, max_blank=1.0, **options)
    return [
        (row.columns["off_edge"], row.columns["masked"]) for row in rows if isinstance(row, CutRow)
    ]


def _half_masked(tmp_path: Path) -> tuple[Galaxies, Array, Any]:
    """A tile with three positions: all there, a third off the edge, a half blank."""
    wcs = tangent(150, 2, 0.2, (SIDE, SIDE))
    at = [[129.5, 60], [4.5, 129.5], [129.5, 199.5]]
    ra, dec = wcs.all_pix2world(at, 0).T
    galaxies = Galaxies(ra, dec, np.full(3, 100.0))
    image = painted(galaxies, wcs, (SIDE, SIDE))
    flags = np.zeros((SIDE, SIDE), np.int32)
    flags[200:, :] = 4
    flags[0:100, :] = 2
    return galaxies, image, (wcs, flags)


def test_blank_pixels_are_measured(tmp_path: Path) -> None:
    galaxies, image, (wcs, flags) = _half_masked(tmp_path)
    holes = np.where(flags == 4, np.nan, image).astype("f4")
    write(tmp_path / "tile.fits", holes, wcs)
    assert blank(tmp_path, galaxies) == [(0, 0), (pytest.approx(1 / 3), 0), (0, 0.5)]
    passed = cutouts(tmp_path, galaxies, max_blank=0.4)
    assert [isinstance(row, Skipped) for row in passed] == [False, False, True]
    assert isinstance(passed[2], Skipped)
    assert not passed[2].fault
    assert "50.0% masked" in passed[2].reason
    away = cutouts(tmp_path, around(151, 2, 1, 1))
    assert [row.reason for row in away if isinstance(row, Skipped)] == [
        "no mosaic covers its position, nor any other of its catalogue, such as "
        f"RA 150.9998 Dec 2.0001: the middle of {tmp_path}/tile.fits is RA 150.0000 Dec 2.0000 "
        "(degrees)"
    ]


@pytest.mark.parametrize("compressed", [False, True])
def test_masks_and_weights(tmp_path: Path, compressed: bool) -> None:
    galaxies, image, (wcs, flags) = _half_masked(tmp_path)
    header = wcs.to_header()
    weight = np.where(flags == 4, 0, 1.0).astype("f4")
    kind = fits.CompImageHDU if compressed else fits.ImageHDU
    hdus = [kind(image, header, name="SCI"), kind(flags, name="DQ"), kind(weight, name="WHT")]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(tmp_path / "tile.fits")
    write(tmp_path / "wht.fits", weight, wcs)
    off = (pytest.approx(1 / 3), 0)
    assert blank(tmp_path, galaxies) == [(0, 0), off, (0, 0)]
    assert blank(tmp_path, galaxies, mask="DQ") == [(0, 1), off, (0, 0.5)]
    assert blank(tmp_path, galaxies, mask="DQ", mask_flags=(4,)) == [(0, 0), off, (0, 0.5)]
    assert blank(tmp_path, galaxies, weight="WHT") == [(0, 0), off, (0, 0.5)]
    assert blank(tmp_path, galaxies, weight=str(tmp_path / "wht.fits"))[2] == (0, 0.5)


def test_a_bright_masked_pixel_spoils_none_of_the_others(tmp_path: Path) -> None:
    galaxies, image, (wcs, _) = _half_masked(tmp_path)
    hot, flags = image.copy(), np.zeros((SIDE, SIDE), np.uint8)
    hot[65, 125], flags[65, 125] = 1e9, 1
    header = wcs.to_header()
    hdus = [fits.ImageHDU(hot, header, name="SCI"), fits.ImageHDU(flags, name="DQ")]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(tmp_path / "tile.fits")
    row = cutouts(tmp_path, galaxies, mask="DQ")[0]
    assert isinstance(row, CutRow)
    found = row.cutout()[0]
    assert np.isnan(found).sum() == 1
    assert np.nansum(found) == pytest.approx(100, rel=0.01)


_WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no WCS": ({}, "no sky coordinates"),
    "other bands": ({"FILTER": "g"}, "of several bands"),
    "no mask": ({"mask": "DQ"}, "no HDU DQ"),
    "no such column": ({"position": ("alpha", "delta")}, "no columns 'alpha' and 'delta'"),
    "not joined": ({"join_bands": ("z", "r")}, "no file is of one of the bands z, r"),
}


def test_bands_that_their_names_tell_are_not_cut_one_for_another(tmp_path: Path) -> None:
    wcs, fields = tangent(150, 2, 0.2, (20, 20)), (str(tmp_path / "field*"),)
    for name in ("field-r.fits", "field-g.fits"):
        write(tmp_path / name, np.ones((20, 20), "f4"), wcs)
    with pytest.raises(InputError, match=r"field-g.fits, .*field-r.fits look like bands of one"):
        cutouts(tmp_path, around(150, 2, 1, 1), images=fields)
    (tmp_path / "field-r.fits").unlink()
    write(tmp_path / "field-r.fits", np.ones((20, 20), "f4"), tangent(150.001, 2, 0.2, (20, 20)))
    # Tiles that are named by letters lie elsewhere.
    assert len(cutouts(tmp_path, around(150, 2, 1, 1), images=fields)) == 1


def test_why_there_is_no_cutout_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "tile.fits", np.ones((20, 20), "f4"), tangent(150, 2, 0.2, (20, 20)))
    table = catalogue(tmp_path / "cat.fits", around(151, 2, 1, 1))
    given = ["--catalogue", str(table), "--size", "6arcsec", "-o", str(tmp_path / "cut.h5")]
    assert run(["cutout", str(tmp_path / "tile.fits"), *given]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "no position could be cut out" in told
    assert "tile.fits is RA 150.0000 Dec 2.0000 (degrees)" in told


def test_a_catalogue_beside_the_mosaics_is_none_of_them(tmp_path: Path) -> None:
    galaxies = around(150, 2, 1, 1)
    table = catalogue(tmp_path / "cat.fits", galaxies)
    sky = SkyOptions(images=(str(tmp_path),), size=6.0, catalogues=(f"{table}[1]",))
    with pytest.raises(InputError, match="is the catalogue, where the mosaics are wanted"):
        mosaic_files(sky)
    write(tmp_path / "tile.fits", np.ones((20, 20), "f4"), tangent(150, 2, 0.2, (20, 20)))
    assert mosaic_files(sky) == [str(tmp_path / "tile.fits")]


@pytest.mark.parametrize("case", _WRONG)
def test_what_cannot_be_cut_is_named(tmp_path: Path, case: str) -> None:
    options, message = _WRONG[case]
    wcs = tangent(150, 2, 0.2, (20, 20))
    write(tmp_path / "tile1.fits", np.ones((20, 20), "f4"), wcs, FILTER="i")
    if case == "no WCS":
        fits.PrimaryHDU(np.ones((20, 20), "f4")).writeto(tmp_path / "tile2.fits")
    if case == "other bands":
        write(tmp_path / "tile2.fits", np.ones((20, 20), "f4"), wcs, **options)
        options = {}
    joined = ReadOptions(join_bands=options.pop("join_bands", None))
    with pytest.raises((InputError, ConfigurationError), match=message):
        cutouts(tmp_path, around(150, 2, 1, 1), joined, **options)


@pytest.mark.parametrize("catalogue", [[], ["--catalogue", "cat.csv", "--size", "6arcsec"]])
def test_a_band_that_no_file_is_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, catalogue: list[str]
) -> None:
    """The band is named, and not a file that is of another one; going on without it is no way."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VIM_EMBED_URL", raising=False)
    wcs = tangent(150, 2, 0.2, (9, 9))
    (tmp_path / "in").mkdir()
    for band in "rgb":
        write(tmp_path / "in" / f"n-{band}.fits", np.ones((9, 9), "f4"), wcs)
    (tmp_path / "cat.csv").write_text("ra,dec\n150,2\n")
    given = ["in", *catalogue, "--join-bands", "r,g,i", "-o", "o.png"]
    assert run(["preview", *given]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "no file of band i was found, only of r (in/n-r.fits) and g (in/n-g.fits)" in told
    assert "of none of them is in/n-b.fits" in told
    assert "--join-bands" in told
    assert "--on-error" not in told
