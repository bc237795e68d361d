"""`--max-blank` for cut-outs of every format: what is blank is counted before it is filled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from astropy.io import fits
from PIL import Image

from vim_embed_client.bulk.sources.catalogue import CatalogueReader
from vim_embed_client.bulk.sources.options import MaskOptions, ReadOptions, SkyOptions
from vim_embed_client.bulk.sources.reader import Entry, Item, Skipped
from vim_embed_client.bulk.sources.registry import find_sources, open_reader
from vim_embed_client.cli.main import run
from vim_embed_client.formats import Array
from vim_embed_pixels.surveys import survey_stretch

from .conftest import Embed
from .skies import Galaxies, catalogue, tangent, write

SIDE = 20
SHARES = [0.0, 0.25, 0.6]


def _fluxes() -> Array:
    """(3, 4, H, W): a share of each is NaN in band 2, and all of band 3, which is not shown."""
    found = np.random.default_rng(0).normal(1, 0.1, (3, 4, SIDE, SIDE)).astype(np.float32)
    for image, share in zip(found, SHARES, strict=True):
        image[2, :, : round(share * SIDE)] = np.nan
        image[3] = np.nan
    return found


def _fits(folder: Path) -> None:
    for row, image in enumerate(_fluxes()):
        fits.PrimaryHDU(image).writeto(folder / f"{row}.fits")


def _parquet(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    rows = [{"flux": image.tolist()} for image in _fluxes()]
    pa.parquet.write_table(pa.table({"image": rows}), folder / "a.parquet")


def _hdf5(folder: Path) -> None:
    with h5py.File(folder / "a.h5", "w") as file:
        file["images"] = _fluxes()


def _joined(folder: Path) -> None:
    for row, image in enumerate(_fluxes()):
        for place, band in enumerate("grz"):
            fits.PrimaryHDU(image[place]).writeto(folder / f"{row}-{band}.fits")


_FORMS: dict[str, tuple[Callable[[Path], Any], dict[str, Any]]] = {
    "FITS": (_fits, {}),
    "npy": (lambda folder: np.save(folder / "a.npy", _fluxes()), {}),
    "npz": (lambda folder: np.savez(folder / "a.npz", images=_fluxes()), {}),
    "Parquet": (_parquet, {}),
    "HDF5": (_hdf5, {}),
    "files that are bands": (_joined, {"join_bands": ("z", "r", "g")}),
}


def _read(folder: Path, most: float | None, **given: Any) -> list[Entry]:
    bands = None if "join_bands" in given else (2, 1, 0)
    blank = given.pop("blank", None)
    options = ReadOptions(
        stretch=survey_stretch(None, bands=bands, blank=blank),
        masks=None if most is None else MaskOptions(max_blank=most),
        **given,
    )
    sources = find_sources([str(folder)], options=options)
    return [entry for source in sources for entry in open_reader(source, options).read(0)]


@pytest.mark.parametrize("form", _FORMS)
def test_what_is_too_blank_is_passed_over(tmp_path: Path, form: str) -> None:
    make, given = _FORMS[form]
    make(tmp_path)
    first, second, third = _read(tmp_path, 0.3, **given)
    for item, share in ((first, 0.0), (second, 0.25)):
        assert isinstance(item, Item)
        assert item.columns["masked"] == pytest.approx(share)
    assert isinstance(third, Skipped)
    assert (third.fault, third.asked_for, "60.0% are masked" in third.reason) == (False, True, True)


@pytest.mark.parametrize("form", _FORMS)
def test_the_rest_is_filled_as_without_the_option(tmp_path: Path, form: str) -> None:
    make, given = _FORMS[form]
    make(tmp_path)
    for blank, said in (("sky", None), (0.0, 0.0)):
        limited = _read(tmp_path, 1.0, blank=said, **given)
        plain = _read(tmp_path, None, blank=blank, **given)
        for one, other in zip(limited, plain, strict=True):
            assert isinstance(one, Item)
            assert isinstance(other, Item)
            np.testing.assert_array_equal(one.data(), other.data())  # type: ignore[operator]


def test_the_share_of_the_crop_counts(tmp_path: Path) -> None:
    _fits(tmp_path)
    middle = _read(tmp_path, 0.3, crop=10)[2]
    assert isinstance(middle, Skipped)
    assert "70.0% are masked" in middle.reason


def test_cutouts_of_a_catalogue_count_alike(tmp_path: Path) -> None:
    """The same pixels, cut out of a mosaic and as a file."""
    wcs = tangent(150, 2, 0.2, (60, 60))
    image = np.random.default_rng(0).normal(1, 0.1, (60, 60)).astype(np.float32)
    image[:, :28] = np.nan
    write(tmp_path / "m.fits", image, wcs)
    ra, dec = wcs.all_pix2world([29.5], [29.5], 0)
    catalogue(tmp_path / "cat.csv", Galaxies(ra, dec, np.array([1.0])))
    sky = SkyOptions(images=(str(tmp_path / "m.fits"),), size=4, max_blank=0.5)
    reader = CatalogueReader(str(tmp_path / "cat.csv"), ReadOptions(sky=sky), whole=True)
    (row,) = reader.cutouts(0)
    assert not isinstance(row, Skipped)
    (tmp_path / "cut").mkdir()
    fits.PrimaryHDU(row.cutout()[0]).writeto(tmp_path / "cut" / "0.fits")
    options = ReadOptions(masks=MaskOptions(max_blank=0.5))
    (item,) = open_reader(str(tmp_path / "cut" / "0.fits"), options).read(0)
    assert isinstance(item, Item)
    assert item.columns["masked"] == row.columns["masked"] > 0.3


def test_the_command(tmp_path: Path, embed: Embed) -> None:
    _fits(tmp_path)
    ids, _ = embed(tmp_path, "--bands", "2,1,0", "--max-blank", "0.3")
    assert [Path(one).name for one in ids] == ["0.fits", "1.fits"]


def test_of_pictures_it_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    for value in ("0.1", "0.3"):
        command = ["embed", str(tmp_path / "a.png"), "-o", str(tmp_path / "o.npy")]
        assert run([*command, "--max-blank", value]) == 2
        assert "--max-blank would have no effect" in " ".join(capsys.readouterr().err.split())
