"""Zeros that stand for no data are told, and counts of 0 are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from vim_embed_client.cli.main import run
from vim_embed_client.formats import Array
from vim_embed_pixels.no_data import remark_on_zeros

TOLD = "exactly 0 in an area at an edge"


def noise(side: int = 64) -> Array:
    return np.random.default_rng().normal(1, 1, (side, side)).astype(np.float32)


def edge(flux: Array) -> None:
    flux[:, -8:] = 0


def corner(flux: Array) -> None:
    u, v = np.indices(flux.shape)
    flux[u + v < 30] = 0


def most(flux: Array) -> None:
    flux[:40] = 0


@pytest.mark.parametrize("spoil", [edge, corner, most])
@pytest.mark.parametrize("dtype", ["f4", ">f4", "f8"])
def test_areas_are_told(spoil: Callable[[Array], None], dtype: str) -> None:
    flux = noise()
    spoil(flux)
    assert TOLD in remark_on_zeros(flux.astype(dtype))
    assert TOLD in remark_on_zeros(np.stack([noise(), flux, noise()]).astype(dtype))


@pytest.mark.parametrize("mean", [0.001, 0.02, 0.1, 0.5, 1, 3])
def test_counts_are_not_told(mean: float) -> None:
    """As of X-rays: scattered zeros, or scattered photons."""
    counts = np.random.default_rng().poisson(mean, (3, 64, 64)).astype(np.float32)
    assert not remark_on_zeros(counts)


@pytest.mark.parametrize(
    "flux",
    [
        noise(), np.zeros((64, 64), np.float32), np.zeros((64, 64), np.uint8), np.zeros((1, 1)),
        np.zeros((0, 4)), np.zeros(5), np.full((8, 8), np.nan),
    ],
)  # fmt: skip
def test_others_are_not_told(flux: Array) -> None:
    assert not remark_on_zeros(flux)


def test_a_hole_is_no_edge() -> None:
    flux = noise()
    flux[20:40, 20:40] = 0
    assert not remark_on_zeros(flux)


@pytest.fixture
def mosaic(tmp_path: Path) -> Path:
    """Two galaxies; behind column 150 there is no data, and `weight.fits` says so."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.crpix, wcs.wcs.cdelt = (150, 2), (100, 100), (-1e-4, 1e-4)
    flux = noise(200)
    for x in (60, 140):
        flux[90:110, x - 10 : x + 10] += 20
    flux[:, 150:] = 0
    fits.PrimaryHDU(flux, wcs.to_header()).writeto(tmp_path / "tile.fits")
    weight = (flux != 0).astype(np.float32)
    fits.PrimaryHDU(weight, wcs.to_header()).writeto(tmp_path / "weight.fits")
    ra, dec = wcs.wcs_pix2world([60, 140], [100, 100], 0)
    Table({"ra": ra, "dec": dec}).write(tmp_path / "cat.fits")
    return tmp_path


def told(folder: Path, capsys: Any, *options: str) -> dict[str, Any]:
    given = ["--catalogue", str(folder / "cat.fits"), "--size", "18arcsec", *options]
    output = ["-o", str(folder / "sheet.png"), "--json"]
    assert run(["preview", str(folder / "tile.fits"), *given, *output]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_cut_outs_of_a_mosaic(mosaic: Path, capsys: Any) -> None:
    first, second = told(mosaic, capsys)["rows"]
    assert TOLD not in first["remark"]
    assert TOLD in second["remark"]
    rows = told(mosaic, capsys, "--weight", str(mosaic / "weight.fits"), "--max-blank", "0.5")
    assert not any(TOLD in row["remark"] for row in rows["rows"])


def test_embed_says_so(mosaic: Path, url: str, capsys: Any) -> None:
    given = ["--catalogue", str(mosaic / "cat.fits"), "--size", "18arcsec", "--url", url]
    code = run(["embed", str(mosaic / "tile.fits"), *given, "-o", str(mosaic / "o.npy"), "--json"])
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert code == 0
    assert [note["count"] for note in notes if TOLD in note["reason"]] == [1]
