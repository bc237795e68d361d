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


def _quadrants(folder: Path) -> Layout:
    """Euclid's detectors, each with its flags and errors, in one file."""
    hdus: list[Any] = []
    for quadrant, rows in (("3-4.E", slice(0, SIDE // 2)), ("3-4.F", slice(SIDE // 2, SIDE))):
        header = _WCS[rows].to_header()
        for kind, data in (("RMS", _IMAGE * 0 + 1), ("FLG", _bad() * 4), ("SCI", _IMAGE)):
            hdus.append(fits.ImageHDU(data[rows].astype("f4"), header, name=f"{quadrant}.{kind}"))
    _file(folder / "EUC_VIS_SWL-DET-000001-01.fits", *hdus)
    return {}, ReadOptions(hdus=("all",))


def _beside(name: str, *others: str) -> Callable[[Path], Layout]:
    """An image with other planes of the same pixels, which its survey delivers beside it."""

    def make(folder: Path) -> Layout:
        _file_of(folder / name, _IMAGE)
        for other in others:
            _file_of(folder / other, _IMAGE * 0 + 7)
        return {}, ReadOptions()

    return make


_SURVEYS: dict[str, Callable[[Path], Layout]] = {
    "HSC and LSST": _hsc, "DES": _des, "JWST": _jwst, "Euclid": _euclid, "SDSS": _sdss,
    "Legacy Surveys": _legacy, "Euclid's detectors": _quadrants,
    "Euclid's mosaics": _beside(
        "EUC_MER_BGSUB-MOSAIC-VIS_TILE1.fits", "EUC_MER_BGMOD-VIS_TILE1.fits",
        "EUC_MER_MOSAIC-VIS-FLAG_TILE1.fits", "EUC_MER_MOSAIC-VIS-RMS_TILE1.fits",
    ),
    "KiDS": _beside("z_150.1_2.2_sci.fits", "a_150.1_2.2_wei.fits", "a_150.1_2.2_msk.fits"),
    "VISTA": _beside("e20100303_00001_st_tl.fits", "a_conf.fits"),
    "WISE": _beside("0001-int-3.fits", "0001-unc-3.fits", "0001-cov-3.fits"),
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


def test_images_of_the_same_pixels_are_not_cut_one_for_another(tmp_path: Path) -> None:
    """Whatever the names: a background, an exposure map, or the extensions of one file."""
    folder = tmp_path / "survey"
    folder.mkdir()
    _beside("galex-int.fits", "galex-cnt.fits")(folder)
    with pytest.raises(InputError, match="have the same pixels") as raised:
        cutouts(tmp_path, _GALAXIES, images=(str(folder),))
    assert "galex-int.fits" in raised.value.message
    _file(tmp_path / "one.fits", _hdu(_IMAGE, "A"), _hdu(_IMAGE, "B"))
    with pytest.raises(InputError, match="have the same pixels"):
        cutouts(
            tmp_path, _GALAXIES, ReadOptions(hdus=("all",)), images=(str(tmp_path / "one.fits"),)
        )


def test_positions_on_other_detectors_name_the_option(tmp_path: Path) -> None:
    hdus = [
        fits.ImageHDU(_IMAGE[rows], _WCS[rows].to_header(), name="SCI", ver=version)
        for version, rows in ((1, slice(0, SIDE // 2)), (2, slice(SIDE // 2, SIDE)))
    ]
    _file(tmp_path / "j_flt.fits", *hdus)
    given: dict[str, Any] = {"images": (str(tmp_path / "j_flt.fits"),)}
    rows: list[Any] = cutouts(tmp_path, _GALAXIES, **given)
    reasons = [row.reason for row in rows if hasattr(row, "reason")]
    assert len(reasons) == 2
    assert all("--hdu all takes its SCI,2 too" in reason for reason in reasons)
    centred(cutouts(tmp_path, _GALAXIES, ReadOptions(hdus=("all",)), **given), _GALAXIES)
