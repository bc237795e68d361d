"""Files laid out as the large surveys deliver them: galaxies are cut out whole, masks count.

Simulated: names, extensions and headers are those of the surveys' files, the sky is ours.
"""

from __future__ import annotations

import bz2
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from vim_embed_client.bulk.sources.options import ReadOptions
from vim_embed_client.errors import InputError

from .skies import Array, around, painted, tangent
from .test_cutouts import blank, centred, cutouts

SIDE = 260
_GALAXIES = around(150, 2, 18, 4)
_WCS = tangent(150, 2, 0.2, (SIDE, SIDE), angle=5)
_IMAGE = painted(_GALAXIES, _WCS, (SIDE, SIDE))
_HEADER = _WCS.to_header()
Layout = tuple[dict[str, Any], ReadOptions]


def _bad() -> Array:
    """The lower tenth of the tile, which no cut-out reaches, and a pixel of one."""
    bad = np.zeros((SIDE, SIDE), bool)
    bad[: SIDE // 10] = True
    return bad


def _file(path: Path, *hdus: Any, **cards: Any) -> None:
    first = fits.PrimaryHDU()
    first.header.update(cards)
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.HDUList([first, *hdus]).writeto(path)


def _hdu(data: Array, name: str, kind: Any = fits.ImageHDU, **cards: Any) -> Any:
    found = kind(data, _HEADER, name=name)
    found.header.update(cards)
    return found


def _hsc(folder: Path, detected: Array | None = None) -> Layout:
    """calexp: the mask has planes, of which DETECTED is the galaxies themselves."""
    flags = np.where(_bad(), 1, 0).astype(np.int32)
    flags |= np.where(_IMAGE > 0.1 if detected is None else detected, 32, 0).astype(np.int32)
    planes = {"MP_BAD": 0, "MP_SAT": 1, "HIERARCH MP_DETECTED": 5}
    _file(
        folder / "calexp-HSC-R-9813-4,4.fits",
        _hdu(_IMAGE, "IMAGE", EXTTYPE="IMAGE"), _hdu(flags, "MASK", EXTTYPE="MASK", **planes),
        _hdu(_IMAGE * 0 + 1, "VARIANCE", EXTTYPE="VARIANCE"), FILTER="HSC-R",
    )  # fmt: skip
    return {"mask": "MASK", "mask_flags": ("BAD", "SAT")}, ReadOptions()


def _des(folder: Path) -> Layout:
    packed = fits.CompImageHDU
    quality = {"quantize_level": 256}
    _file(
        folder / "DES1001+0209_r4920p01_r.fits.fz",
        fits.CompImageHDU(_IMAGE, _HEADER, name="SCI", **quality),
        _hdu(_bad().astype(np.int16), "MSK", packed), _hdu(_IMAGE * 0 + 1, "WGT", packed),
    )  # fmt: skip
    return {"mask": "MSK", "weight": "WGT"}, ReadOptions()


def _jwst(folder: Path) -> Layout:
    """MJy/sr, the filter in the first header, a cube of contexts beside the image."""
    area = (0.2 / 206264.806) ** 2
    for name, filters in (("f444w", "F444W"), ("f277w", "F277W"), ("f150w", "F150W")):
        hdus = [_hdu((_IMAGE / area).astype("f4"), "SCI", BUNIT="MJy/sr")]
        hdus += [_hdu(_IMAGE * 0 + 1, name) for name in ("ERR", "WHT", "VAR_POISSON")]
        hdus.append(fits.ImageHDU(np.ones((2, SIDE, SIDE), np.int32), name="CON"))
        hdus.append(fits.BinTableHDU.from_columns([fits.Column("X", "E", array=[1.0])]))
        _file(
            folder / f"jw01345-o001_t021_nircam_clear-{name}_i2d.fits", *hdus, FILTER=filters
        )  # fmt: skip
    return {"weight": "WHT"}, ReadOptions(join_bands=("f444w", "f277w", "f150w"))


def _euclid(folder: Path) -> Layout:
    for band in ("VIS", "NIR-Y", "NIR-H"):
        name = f"EUC_MER_BGSUB-MOSAIC-{band}_TILE101158889-1A2B3C_20241024T212516.Z_00.00.fits"
        _file_of(folder / name, _IMAGE, FILTER=band.replace("-", "_"))
    return {}, ReadOptions(join_bands=("H", "Y", "VIS"))


def _file_of(path: Path, image: Array, **cards: Any) -> None:
    hdu = fits.PrimaryHDU(image, _HEADER)
    hdu.header.update(cards)
    hdu.writeto(path)


def _sdss(folder: Path) -> Layout:
    frame = fits.HDUList([
        fits.PrimaryHDU(_IMAGE, _HEADER), fits.ImageHDU(np.ones(SIDE, "f4")),
        fits.BinTableHDU.from_columns([fits.Column("ALLSKY", "E", array=[1.0])]),
    ])  # fmt: skip
    plain = folder / "frame.fits"
    frame.writeto(plain)
    path = folder / "frame-r-003704-3-0091.fits.bz2"
    path.write_bytes(bz2.compress(plain.read_bytes()))
    plain.unlink()
    return {}, ReadOptions()


def _legacy(folder: Path) -> Layout:
    """A brick: image and inverse variance a band, one mask for all."""
    for band in "grz":
        for kind, data in (("image", _IMAGE), ("invvar", _IMAGE * 0 + 1)):
            hdu = fits.CompImageHDU(data, _HEADER, quantize_level=256)
            _file(folder / f"legacysurvey-1500p020-{kind}-{band}.fits.fz", hdu)
    bits = fits.CompImageHDU(_bad().astype(np.int16), _HEADER)
    _file(folder / "legacysurvey-1500p020-maskbits.fits.fz", bits)
    given = {
        "images": (f"{folder}/legacysurvey-*-image-*.fits.fz",),
        "weight": f"{folder}/*-invvar-*.fits.fz", "mask": f"{folder}/*-maskbits.fits.fz",
    }  # fmt: skip
    return given, ReadOptions(join_bands=("z", "r", "g"))


_SURVEYS: dict[str, Callable[[Path], Layout]] = {
    "HSC and LSST": _hsc, "DES": _des, "JWST": _jwst, "Euclid": _euclid, "SDSS": _sdss,
    "Legacy Surveys": _legacy,
}  # fmt: skip


@pytest.mark.parametrize("survey", _SURVEYS)
def test_galaxies_are_cut_out_whole(tmp_path: Path, survey: str) -> None:
    folder = tmp_path / "survey"
    folder.mkdir()
    given, options = _SURVEYS[survey](folder)
    rows = cutouts(tmp_path, _GALAXIES, options, **({"images": (str(folder),)} | given))
    scale = 1.0 if survey != "JWST" else (0.2 / 206264.806) ** 2
    if survey == "JWST":
        for row in rows:
            object.__setattr__(row, "cutout", _scaled(row, scale))
    centred(rows, _GALAXIES)


def _scaled(row: Any, scale: float) -> Callable[[], Array]:
    cut = row.cutout
    return lambda: cut() * scale


def test_planes_of_a_mask_are_chosen_by_name(tmp_path: Path) -> None:
    """Flags by name are those by value; without any, what is DETECTED is no flaw."""
    folder = tmp_path / "survey"
    seen = np.zeros((SIDE, SIDE), bool)
    seen[SIDE // 2 :] = True
    _hsc(folder, seen)
    given: dict[str, Any] = {"images": (str(folder),), "mask": "MASK"}
    by_name = blank(tmp_path, _GALAXIES, **given, mask_flags=("DETECTED",))
    assert by_name == blank(tmp_path, _GALAXIES, **given, mask_flags=(32,))
    assert [masked for _, masked in by_name] == [0, 0, 1, 1]
    with pytest.raises(InputError, match="--mask-flags BAD,SAT"):
        cutouts(tmp_path, _GALAXIES, **given)
    with pytest.raises(InputError, match="no plane CRX, but BAD, SAT, DETECTED"):
        cutouts(tmp_path, _GALAXIES, **given, mask_flags=("CRX",))
