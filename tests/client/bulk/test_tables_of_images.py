"""Rows of HDF5 files and FITS tables, what cutout writes, and columns kept of every table."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from astropy.io import fits
from astropy.table import MaskedColumn
from astropy.wcs import WCS

from vim_embed_client.bulk.sources.options import ReadOptions
from vim_embed_client.bulk.sources.reader import Item, Skipped
from vim_embed_client.bulk.sources.registry import open_reader
from vim_embed_client.cli.main import run
from vim_embed_client.errors import InputError
from vim_embed_client.scoring.embedding_files import read_embeddings
from vim_embed_client.scoring.kept_columns import kept_table

from .conftest import Embed
from .row_files import FEATURE, PNGS, table
from .skies import around, catalogue, measured, painted, tangent, write
from .survey import SIZE, Array, expected, galaxy, pictures

N = 5
PIXELS = pictures(N)
Z = [0.1, 0.2, None, 0.4, 0.5]


def galaxy10(path: Path) -> None:
    """As astroNN's Galaxy10 DECaLS: channels last, classes, positions."""
    with h5py.File(path, "w") as file:
        file["images"] = PIXELS.transpose(0, 2, 3, 1)
        file["ans"] = np.arange(N, dtype=np.uint8)
        for name in ("ra", "dec", "redshift", "pxscale"):
            file[name] = np.array([np.nan if z is None else z for z in Z])


def universe(path: Path) -> Array:
    """As the Multimodal Universe's HSC: fluxes of five bands with masks and variances beside."""
    fluxes = np.stack([galaxy(5, 12, seed=seed) for seed in range(N)]).astype("f4")
    with h5py.File(path, "w") as file:
        file["image_array"] = fluxes
        file["image_ivar"] = np.ones_like(fluxes)
        file["image_mask"] = np.ones(fluxes.shape, bool)
        file["image_band"] = np.array([[b"HSC-G", b"HSC-R", b"HSC-I", b"HSC-Z", b"HSC-Y"]] * N)
        file["object_id"] = np.array([f"g{row}".encode() for row in range(N)])
        file["ra"] = np.arange(N, dtype=float)
    return fluxes


def test_galaxy10_is_read_as_pixels(tmp_path: Path, embed: Embed) -> None:
    galaxy10(tmp_path / "Galaxy10.h5")
    ids, rows = embed(tmp_path / "Galaxy10.h5", "--keep", "ans,redshift")
    assert ids == [f"{tmp_path}/Galaxy10.h5#{row}" for row in range(N)]
    np.testing.assert_array_equal(rows, expected(PIXELS))
    about = json.loads((tmp_path / "out" / "out.npy.json").read_text())
    assert about["columns"] == {"ans": list(range(N)), "redshift": Z}


def _made(path: Path, **options: Any) -> list[tuple[str, Array]]:
    found = []
    for entry in open_reader(str(path), ReadOptions(**options)).read(0):
        assert isinstance(entry, Item), entry
        assert callable(entry.data)
        found.append((entry.id, entry.data()))
    return found


def test_the_universe_is_read_as_fluxes_with_its_bands_by_name(tmp_path: Path) -> None:
    from vim_embed_pixels.stretch import Stretch, to_rgb

    fluxes = universe(tmp_path / "001.hdf5")
    found = _made(
        tmp_path / "001.hdf5",
        id_column="object_id",
        stretch=Stretch(bands=("HSC-Z", "HSC-R", "HSC-G")),
    )
    assert [row_id for row_id, _ in found] == [f"g{row}" for row in range(N)]
    for flux, (_, pixels) in zip(fluxes, found, strict=True):
        np.testing.assert_array_equal(pixels, to_rgb(flux, Stretch(bands=(3, 1, 0))))


def test_a_fits_table_has_an_image_in_each_row(tmp_path: Path, embed: Embed) -> None:
    flat = PIXELS.reshape(N, -1)
    size = flat.shape[1]
    columns = [
        fits.Column("STAMP", f"{size}B", array=flat, dim=f"({SIZE},{SIZE},3)"),
        fits.Column("ID", "4A", array=[f"s{row}" for row in range(N)]),
        fits.Column("Z", "D", array=[np.nan if z is None else z for z in Z]),
    ]
    fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "stamps.fits")
    given = ["--column", "STAMP", "--id-column", "ID", "--keep", "Z"]
    ids, rows = embed(tmp_path / "stamps.fits", *given)
    assert ids == [f"s{row}" for row in range(N)]
    np.testing.assert_array_equal(rows, expected(PIXELS))
    about = json.loads((tmp_path / "out" / "out.npy.json").read_text())
    assert about["columns"] == {"Z": Z}


def _parquet(folder: Path) -> str:
    table = pa.table({"image": PIXELS.tolist(), "name": [*"abcde"], "z": Z})
    pyarrow.parquet.write_table(table, folder / "t.parquet")
    return str(folder / "t.parquet")


def _data_set(folder: Path) -> str:
    found = datasets.Dataset.from_dict({"image": PIXELS.tolist(), "name": [*"abcde"], "z": Z})
    found.save_to_disk(str(folder / "set"))
    return f"hf:{folder / 'set'}"


@pytest.mark.parametrize("make", [_parquet, _data_set])
def test_columns_of_tables_are_kept(
    tmp_path: Path, embed: Embed, make: Callable[[Path], str]
) -> None:
    source = make(tmp_path)
    given = ["--column", "image"] if source.endswith(".parquet") else []
    ids, rows = embed(source, *given, "--id-column", "name", "--keep", "z,name")
    assert ids == [*"abcde"]
    assert len(rows) == N
    about = json.loads((tmp_path / "out" / "out.npy.json").read_text())
    assert about["columns"] == {"z": Z, "name": [*"abcde"]}


_WRONG: dict[str, tuple[list[str], str]] = {
    "no data set": (["--column", "stamps"], "no data set 'stamps'"),
    "no column": (["--keep", "mass"], "no data set of a value a row 'mass'"),
    "no effect": (["--hdu", "1"], "--hdu would have no effect"),
}


@pytest.mark.parametrize("case", _WRONG)
def test_wrong_names_are_told(tmp_path: Path, embed: Embed, capsys: Any, case: str) -> None:
    options, message = _WRONG[case]
    galaxy10(tmp_path / "a.h5")
    embed(tmp_path / "a.h5", *options, code=2 if case == "no effect" else 1)
    assert message in " ".join(capsys.readouterr().err.split())


def test_values_are_those_of_the_images_own_group(tmp_path: Path, embed: Embed) -> None:
    """Of a file of several surveys, whose data sets have the same names."""
    with h5py.File(tmp_path / "two.h5", "w") as file:
        for number, survey in enumerate(("hsc", "jwst")):
            file[f"{survey}/images"] = PIXELS
            file[f"{survey}/ra"] = np.full(N, float(number))
            file[f"{survey}/more/z"] = np.zeros(N)
    for number, survey in enumerate(("hsc", "jwst")):
        embed(tmp_path / "two.h5", "--column", f"{survey}/images", "--keep", "ra", "--restart")
        about = kept_table(read_embeddings(str(tmp_path / "out" / "out.npy")))
        assert about["ra"] == [number] * N
    reader = open_reader(str(tmp_path / "two.h5"), ReadOptions(column="hsc/images", keep=("z",)))
    with pytest.raises(InputError, match="several data sets 'z': name hsc/more/z or jwst/more/z"):
        list(reader.read(0))


@pytest.fixture
def sky(tmp_path: Path) -> Array:
    """A mosaic of two planes with nine galaxies, of which one is off it; their fluxes."""
    wcs = tangent(150, 2, 0.2, (260, 260), angle=10)
    galaxies = around(150, 2, 18, 9)
    image = painted(galaxies, wcs, (260, 260))
    write(tmp_path / "tile.fits", np.stack([image, 2 * image]), wcs)
    galaxies.ra[4] += 1
    catalogue(tmp_path / "cat.fits", galaxies)
    return np.delete(galaxies.flux, 4)


def cut_out(folder: Path, name: str) -> Path:
    given = ["--catalogue", str(folder / "cat.fits"), "--size", "6arcsec", "--keep", "z"]
    given += ["--north-up", "--id-column", "name", "-o", str(folder / name)]
    assert run(["cutout", str(folder / "tile.fits"), *given]) == 0
    return folder / name


def _images(path: Path) -> Array:
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            return np.asarray(file["images"])
    if path.suffix == ".parquet":
        images = pyarrow.parquet.read_table(path)["image"].to_pylist()
        return np.array([image["flux"] for image in images], np.float32)
    return np.stack([fits.getdata(one) for one in sorted(path.glob("*.fits"))])


@pytest.mark.parametrize("name", ["cuts", "cuts.parquet", "cuts.h5"])
def test_cutouts_are_kept_with_their_flux(
    tmp_path: Path, sky: Array, name: str, embed: Embed
) -> None:
    path = cut_out(tmp_path, name)
    if path.is_file():
        cut_out(tmp_path, name)  # takes the place of the earlier one
    images = _images(path)
    assert images.shape == (8, 2, 30, 30)
    for flux, image in zip(sky, images, strict=True):
        found, x, y = measured(image[1])
        assert np.hypot(x, y) < 0.1
        assert found == pytest.approx(2 * flux, rel=0.01)
    ids = [f"g{row}" for row in range(9) if row != 4]
    given = ["--bands", "1"]
    if path.is_dir():
        header = fits.getheader(path / "g8.fits")
        place = WCS(header, naxis=2).pixel_to_world(14.5, 14.5)
        lines = (path / "cutouts.csv").read_text().splitlines()
        assert lines[0] == "file,id,ra,dec,off_edge,masked,z"
        assert place.ra.degree == pytest.approx(float(lines[8].split(",")[2]), abs=1e-7)
        found_ids, rows = embed(path, *given)
        assert found_ids == [str(path / f"{one}.fits") for one in ids]
    else:
        found_ids, rows = embed(path, *given, "--id-column", "id", "--keep", "ra,z")
        assert found_ids == ids
        about = kept_table(read_embeddings(str(tmp_path / "out" / "out.npy")))
        assert about["z"] == [round(0.1 + 0.1 * row, 3) for row in range(9) if row != 4]
    assert len(rows) == 8


@pytest.mark.parametrize("name", ["cuts.parquet", "cuts.h5"])
def test_columns_with_gaps_keep_their_digits(tmp_path: Path, name: str) -> None:
    """Numbers of which the first hundred are missing, and ids that no float64 holds."""
    wcs = tangent(150, 2, 0.2, (260, 260))
    galaxies = around(150, 2, 5, 130)
    write(tmp_path / "tile.fits", painted(galaxies, wcs, (260, 260)), wcs)
    late = np.arange(130) < 100
    big = MaskedColumn(2**60 + 1 + np.arange(130), mask=late)
    small = MaskedColumn(np.arange(130), mask=~late)
    hashes = np.uint64(2**63) + np.arange(130, dtype=np.uint64)
    catalogue(tmp_path / "cat.ecsv", galaxies, big=big, small=small, hashes=list(hashes))
    given = ["--catalogue", str(tmp_path / "cat.ecsv"), "--size", "2arcsec"]
    given += ["--keep", "big,small,hashes", "-o", str(tmp_path / name)]
    assert run(["cutout", str(tmp_path / "tile.fits"), *given]) == 0
    if name.endswith("h5"):
        with h5py.File(tmp_path / name) as file:
            found = {key: file[key][:].tolist() for key in ("big", "small", "hashes")}
        assert found["big"] == [b""] * 100 + [
            str(2**60 + 1 + row).encode() for row in range(100, 130)
        ]
        assert found["small"][:100] == list(range(100))
        assert np.isnan(found["small"][100:]).all()
        assert found["hashes"] == [2**63 + row for row in range(130)]
    else:
        kept = pyarrow.parquet.read_table(tmp_path / name)
        assert kept["big"].to_pylist() == [None] * 100 + [
            2**60 + 1 + row for row in range(100, 130)
        ]
        assert kept["small"].to_pylist() == [*range(100)] + [None] * 30
        assert kept["hashes"].to_pylist() == [str(2**63 + row) for row in range(130)]


def test_ids_that_no_header_holds(tmp_path: Path) -> None:
    wcs = tangent(150, 2, 0.2, (260, 260))
    galaxies = around(150, 2, 18, 4)
    write(tmp_path / "tile.fits", painted(galaxies, wcs, (260, 260)), wcs)
    ids = ["a\nb", "a/b", "ü", "\x7f"]
    catalogue(tmp_path / "cat.parquet", galaxies, own=ids)
    given = ["--catalogue", str(tmp_path / "cat.parquet"), "--size", "4arcsec"]
    given += ["--id-column", "own", "-o", str(tmp_path / "cuts")]
    assert run(["cutout", str(tmp_path / "tile.fits"), *given]) == 0
    with (tmp_path / "cuts" / "cutouts.csv").open(newline="") as lines:
        assert [row["id"] for row in csv.DictReader(lines)] == ids
    assert len(list((tmp_path / "cuts").glob("*.fits"))) == 4


def test_a_folder_that_is_not_empty_and_other_endings_are_refused(
    tmp_path: Path, sky: Array, capsys: Any
) -> None:
    cut_out(tmp_path, "cuts")
    command = ["cutout", str(tmp_path / "tile.fits"), "--size", "6arcsec"]
    command += ["--catalogue", str(tmp_path / "cat.fits"), "-o"]
    assert run([*command, str(tmp_path / "cuts")]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert run([*command, str(tmp_path / "cuts.zip")]) == 2
    there = ["cat.fits", "cuts", "cuts.skipped.jsonl", "tile.fits"]
    assert sorted(one.name for one in tmp_path.iterdir()) == there


def test_images_at_addresses(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(PNGS[0])
    kept = pa.array([{"path": f"file://{tmp_path}/{name}.png"} for name in "xy"], FEATURE)
    (tmp_path / "t.parquet").write_bytes(table(x=kept))
    first, second = open_reader(str(tmp_path / "t.parquet"), ReadOptions()).read(0)
    assert isinstance(first, Item)
    assert first.data == PNGS[0]
    assert isinstance(second, Skipped)
    assert "FileNotFoundError" in second.reason
