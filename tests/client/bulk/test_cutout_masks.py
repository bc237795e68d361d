"""Masks, weights and ids in headers of FITS images that are cut-outs already."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from vim_embed_client.bulk.sources.options import MaskOptions, ReadOptions
from vim_embed_client.bulk.sources.reader import Entry, Item, Skipped
from vim_embed_client.bulk.sources.registry import find_sources, open_reader
from vim_embed_client.cli.main import run
from vim_embed_client.errors import InputError
from vim_embed_pixels.stretch import Stretch

from .conftest import Embed

SIDE = 20
Array = Any


def _flux(bands: int | None = None, seed: int = 0) -> Array:
    shape = (SIDE, SIDE) if bands is None else (bands, SIDE, SIDE)
    return np.random.default_rng(seed).normal(1, 0.1, shape).astype(np.float32)


def _flags(*, value: int = 1) -> Array:
    """Five pixels of 400, one of them with another flag."""
    flags = np.zeros((SIDE, SIDE), np.int32)
    flags[2, 3:7], flags[9, 9] = value, 4
    return flags


def _written(path: Path, *hdus: Any, **cards: Any) -> str:
    first = fits.PrimaryHDU()
    first.header.update(cards)
    fits.HDUList([first, *hdus]).writeto(path)
    return str(path)


def _read(paths: list[str], **options: Any) -> list[Entry]:
    given = ReadOptions(**options)
    return [
        entry
        for source in find_sources(paths, options=given)
        for entry in open_reader(source, given).read(0)
        if not (isinstance(entry, Skipped) and not entry.fault and "--hdu" in entry.reason)
    ]


def _own_hdu(folder: Path) -> tuple[list[str], dict[str, Any]]:
    hdus = fits.ImageHDU(_flux(), name="SCI"), fits.ImageHDU(_flags(), name="DQ")
    return [_written(folder / "a.fits", *hdus)], {"mask": "DQ"}


def _beside(folder: Path) -> tuple[list[str], dict[str, Any]]:
    _written(folder / "a_mask.fits", fits.ImageHDU(_flags()))
    _written(folder / "a.fits", fits.ImageHDU(_flux()))
    return [str(folder)], {"mask": "*_mask.fits"}


def _weight(folder: Path) -> tuple[list[str], dict[str, Any]]:
    (folder / "weights").mkdir()
    weight = np.where(_flags() > 0, np.float32(0), 1)
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(weight)]).writeto(
        folder / "weights" / "a.fits.fz"
    )
    path = _written(folder / "a.fits", fits.ImageHDU(_flux()))
    return [path], {"weight": f"{folder}/weights/*.fits.fz"}


_WAYS: dict[str, Callable[[Path], tuple[list[str], dict[str, Any]]]] = {
    "an HDU": _own_hdu, "a file beside it": _beside, "a weight": _weight,
}  # fmt: skip


@pytest.mark.parametrize("way", _WAYS)
def test_masked_pixels_become_the_sky(tmp_path: Path, way: str) -> None:
    paths, given = _WAYS[way](tmp_path)
    flux = _flux()
    (item,) = _read(paths, masks=MaskOptions(**given))
    assert isinstance(item, Item)
    assert item.columns == {"masked": 5 / SIDE**2}
    hidden = flux.copy()
    hidden[_flags() > 0] = np.nan
    path = _written(tmp_path / "b.fits", fits.ImageHDU(hidden))
    (wanted,) = _read([path], stretch=Stretch(blank="sky"))
    assert isinstance(wanted, Item)
    np.testing.assert_array_equal(item.data(), wanted.data())  # type: ignore[operator]


def test_flags_cubes_and_a_limit(tmp_path: Path) -> None:
    paths, given = _own_hdu(tmp_path)
    some = _read(paths, masks=MaskOptions(**given, mask_flags=(4,)))
    assert isinstance(some[0], Item)
    assert some[0].columns["masked"] == 1 / SIDE**2
    (over,) = _read(paths, masks=MaskOptions(**given, max_blank=0.01))
    assert isinstance(over, Skipped)
    assert (over.fault, "1.2% are masked" in over.reason) == (False, True)
    of_bands = np.zeros((4, SIDE, SIDE), np.int16)
    of_bands[3, 0, :2], of_bands[2] = 1, 1  # of the band that is not shown too
    hdus = fits.ImageHDU(_flux(4), name="SCI"), fits.ImageHDU(of_bands, name="MASK")
    path = _written(tmp_path / "cube.fits", *hdus)
    (cube,) = _read([path], masks=MaskOptions(mask="MASK"), stretch=Stretch(bands=(3, 1, 0)))
    assert isinstance(cube, Item)
    assert cube.columns["masked"] == 2 / SIDE**2


def test_extensions_and_files_that_are_bands(tmp_path: Path) -> None:
    science = [fits.ImageHDU(_flux(seed=v), name="SCI", ver=v) for v in (1, 2, 3)]
    masks = [fits.ImageHDU(_flags() * (v == 2), name="DQ", ver=v) for v in (1, 2, 3)]
    path = _written(tmp_path / "all.fits", *science, *masks)
    (one,) = _read(
        [path], hdus=("SCI:1", "SCI:2", "SCI:3"), masks=MaskOptions(mask="DQ")
    )  # fmt: skip
    assert isinstance(one, Item)
    assert one.columns["masked"] == 5 / SIDE**2
    (tmp_path / "bands").mkdir()
    for band, seed in zip("grz", (1, 2, 3), strict=True):
        hdus = fits.ImageHDU(_flux(seed=seed), name="SCI"), fits.ImageHDU(_flags(), name="DQ")
        _written(tmp_path / "bands" / f"ngc1-{band}.fits", *hdus, OBJECT="NGC 1")
    given: Any = {"join_bands": ("z", "r", "g"), "masks": MaskOptions(mask="DQ")}
    (joined,) = _read([str(tmp_path / "bands")], id_header="OBJECT", **given)
    assert isinstance(joined, Item)
    assert (joined.id, joined.columns["masked"]) == ("NGC 1", 5 / SIDE**2)


_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no such HDU": ({"mask": "FLAGS"}, "has no HDU FLAGS"),
    "no such file": ({"mask": "*_m.fits"}, "a_m.fits is not there"),
    "other pixels": ({"mask": "SMALL"}, "has other pixels"),
}


@pytest.mark.parametrize("case", _FAULTS)
def test_masks_that_do_not_fit_are_named(tmp_path: Path, case: str) -> None:
    given, message = _FAULTS[case]
    hdus = fits.ImageHDU(_flux(), name="SCI"), fits.ImageHDU(_flags()[:5], name="SMALL")
    path = _written(tmp_path / "a.fits", *hdus)
    with pytest.raises(InputError, match=message):
        _read([path], masks=MaskOptions(**given))


def test_ids_of_headers(tmp_path: Path, embed: Embed) -> None:
    for row in range(3):
        image = fits.ImageHDU(_flux(seed=row))
        _written(tmp_path / f"{row}.fits", image, OBJECT=f"NGC {row}")
    ids, _ = embed(*[tmp_path / f"{row}.fits" for row in range(3)], "--id-header", "object")
    assert ids == ["NGC 0", "NGC 1", "NGC 2"]
    versions = [
        fits.ImageHDU(_flux(seed=v), fits.Header([("TARGET", f"T{v}")])) for v in (1, 2)
    ]  # fmt: skip
    path = _written(tmp_path / "all.fits", *versions, fits.ImageHDU(_flux(seed=9)))
    found = _read([path], hdus=("all",), id_header="TARGET")
    assert [one.id for one in found[:2]] == ["T1", "T2"]
    assert isinstance(found[2], Skipped)
    assert "its header has no TARGET" in found[2].reason


def test_wrong_usage(tmp_path: Path, capsys: Any) -> None:
    path = _written(tmp_path / "a.fits", fits.ImageHDU(_flux()))
    for options, message in (
        (["--mask-flags", "4"], "--mask-flags needs --mask, or a"),
        (["--weight", "WHT", "--mask-flags", "4"], "--mask-flags would have no effect"),
        (["--scale", "1arcsec", "--mask", "DQ"], "--scale is for cut-outs"),
    ):
        assert run(["embed", path, "-o", str(tmp_path / "o.npy"), *options]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
