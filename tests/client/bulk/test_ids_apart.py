"""Ids stay apart: floats that stand for several whole numbers, and ids that two sources share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table as AstropyTable

from vim_embed_client.bulk.distinct import DistinctIds, repeats
from vim_embed_client.bulk.part_files import PartContent
from vim_embed_client.bulk.run import BulkRun
from vim_embed_client.bulk.sources.catalogue import CatalogueReader
from vim_embed_client.bulk.sources.mosaics import LIST_OF_CUTOUTS
from vim_embed_client.bulk.sources.options import ReadOptions, SkyOptions
from vim_embed_client.bulk.sources.reader import Skipped
from vim_embed_client.bulk.sources.registry import open_reader
from vim_embed_client.cli.common import SOME_LEFT_OUT
from vim_embed_client.cli.main import run
from vim_embed_client.client import Client
from vim_embed_client.errors import InputError
from vim_embed_client.figures.columns import read_column
from vim_embed_client.scoring.embedding_files import read_embeddings
from vim_embed_client.scoring.pairing import pair

from .skies import around, painted, tangent, write
from .survey import SIZE

BIG = 4611686018427387904  # 2^62
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 3, SIZE, SIZE), dtype=np.uint8)
Array = Any


def _parquet(path: Path, ids: Array) -> Path:
    import pyarrow as pa
    import pyarrow.parquet

    images = pa.FixedSizeListArray.from_arrays(pa.array(PIXELS.reshape(-1)), PIXELS[0].size)
    pyarrow.parquet.write_table(pa.table({"id": pa.array(ids), "image": images}), path)
    return path


def _hdf5(path: Path, ids: Array) -> Path:
    with h5py.File(path, "w") as file:
        file["images"], file["id"] = PIXELS, ids
    return path


def _fits(path: Path, ids: Array) -> Path:
    AstropyTable({"id": ids, "image": PIXELS}).write(path)
    return path


_FORMS: dict[str, tuple[Callable[[Path, Array], Path], str, dict[str, Any]]] = {
    "Parquet": (_parquet, "a.parquet", {"column": "image", "shape": (3, SIZE, SIZE)}),
    "HDF5": (_hdf5, "a.h5", {}),
    "FITS tables": (_fits, "a.fits", {"column": "image"}),
}


def _ids(tmp_path: Path, form: str, ids: Array) -> list[Any]:
    make, name, given = _FORMS[form]
    options = ReadOptions(id_column="id", **given)
    return list(open_reader(str(make(tmp_path / name, ids)), options).read(0))


@pytest.mark.parametrize("form", _FORMS)
@pytest.mark.parametrize(("kind", "exact"), [("f8", 1 << 53), ("f4", 1 << 24)])
def test_floats_that_stand_for_several_numbers(
    tmp_path: Path, form: str, kind: str, exact: int
) -> None:
    rows = _ids(tmp_path, form, np.array([7, exact, 4 * exact], kind))
    assert [row.id for row in rows[:2]] == ["7", str(exact)]
    assert isinstance(rows[2], Skipped)
    assert rows[2].fault
    assert "a float that stands for several whole numbers" in rows[2].reason


@pytest.mark.parametrize("form", _FORMS)
def test_whole_numbers_of_any_size_are_ids(tmp_path: Path, form: str) -> None:
    rows = _ids(tmp_path, form, np.array([1, BIG, BIG + 1]))
    assert [row.id for row in rows] == ["1", str(BIG), str(BIG + 1)]


def test_a_row_without_an_id_in_a_float_column(tmp_path: Path) -> None:
    rows = _ids(tmp_path, "HDF5", np.array([1.0, np.nan, 2.5]))
    assert isinstance(rows[1], Skipped)
    assert "is null" in rows[1].reason
    assert rows[2].id == "2.5"


def _sky(tmp_path: Path) -> tuple[Any, SkyOptions]:
    wcs = tangent(150, 2, 0.2, (120, 120))
    galaxies = around(150, 2, 8, 4)
    write(tmp_path / "tile.fits", painted(galaxies, wcs, (120, 120), noise=0.01), wcs)
    return galaxies, SkyOptions(images=(str(tmp_path / "tile.fits"),), size=3)


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("cat.csv", ["4.611686018427388e+18", "4611686018427387904.0", "12e45678", "7"]),
        ("cat.fits", np.array([BIG, BIG, 12, 7], "f8")),
        ("cat.parquet", np.array([1e8, 1e8, 12, 7], "f4")),
    ],
)
def test_ids_of_a_catalogue(tmp_path: Path, name: str, ids: Any) -> None:
    galaxies, sky = _sky(tmp_path)
    table = AstropyTable({"id": ids, "ra": galaxies.ra, "dec": galaxies.dec})
    if name == "cat.parquet":
        table.to_pandas().to_parquet(tmp_path / name)
    else:
        table.write(tmp_path / name)
    options = ReadOptions(sky=sky, id_column="id")
    rows = list(CatalogueReader(str(tmp_path / name), options).read(0))
    for row in rows[:2]:
        assert isinstance(row, Skipped)
        assert "several whole numbers" in row.reason
    assert [row.id for row in rows[2:]] == ["12e45678" if name == "cat.csv" else "12", "7"]


def test_tables_that_are_joined(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.eye(3, 4, dtype="f4"))
    (tmp_path / "a.npy.json").write_text(json.dumps({"ids": [str(BIG + n) for n in range(3)]}))
    AstropyTable({"id": np.array([BIG, BIG + 1, BIG + 2], "f8"), "z": [0.1, 0.2, 0.3]}).write(
        tmp_path / "cat.fits"
    )
    file = read_embeddings(str(tmp_path / "a.npy"))
    with pytest.raises(InputError, match="stands for several whole numbers: save the column"):
        read_column(f"{tmp_path}/cat.fits:z", file)
    with pytest.raises(InputError, match="stands for several whole numbers: save the column"):
        pair(file, file, pairs=f"{tmp_path}/cat.fits:id,id")


def _two_catalogues(tmp_path: Path) -> list[str]:
    galaxies, _ = _sky(tmp_path)
    names = {"a": ["g0", "g1", "g2", "g3"], "b": ["h0", "g1", "h2", "h3"]}
    for name, ids in names.items():
        table = AstropyTable({"id": ids, "ra": galaxies.ra, "dec": galaxies.dec})
        table.write(tmp_path / f"{name}.csv")
    given = [f"--catalogue={tmp_path}/{name}.csv" for name in names]
    return [str(tmp_path / "tile.fits"), *given, "--size=3arcsec", "--id-column=id"]


def test_an_id_of_two_catalogues(
    tmp_path: Path, service_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "o.parquet"
    command = ["embed", "--url", service_url, *_two_catalogues(tmp_path), "-o", str(output)]
    assert run(command) != 0
    assert "g1: its id is that of an earlier row too" in " ".join(capsys.readouterr().err.split())
    assert run([*command, "--on-error", "skip"]) == SOME_LEFT_OUT
    assert read_embeddings(str(output)).ids == ["g0", "g1", "g2", "g3", "h0", "h2", "h3"]


def test_an_id_of_two_catalogues_in_cutouts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["cutout", *_two_catalogues(tmp_path), "-o"]
    assert run([*command, str(tmp_path / "one")]) != 0
    assert "g1: its id is that of an earlier row too" in " ".join(capsys.readouterr().err.split())
    assert run([*command, str(tmp_path / "two"), "--on-error", "skip"]) == SOME_LEFT_OUT
    assert (tmp_path / "two" / LIST_OF_CUTOUTS).read_text().count(
        "g1"
    ) == 2  # the file and the id of one row


def test_an_id_of_two_headers(tmp_path: Path, service_url: str) -> None:
    for name in ("a", "b"):
        image = np.random.default_rng(0).normal(1, 1, (12, 12))
        fits.PrimaryHDU(image, fits.Header([("OBJECT", "NGC 1")])).writeto(
            tmp_path / f"{name}.fits"
        )
    paths = [str(tmp_path / f"{name}.fits") for name in ("a", "b")]
    command = ["embed", "--url", service_url, *paths, "--id-header=OBJECT", "--on-error=skip"]
    assert run([*command, "-o", str(tmp_path / "o.parquet")]) == SOME_LEFT_OUT
    assert read_embeddings(str(tmp_path / "o.parquet")).ids == ["NGC 1"]


def test_a_run_that_goes_on_knows_the_ids_of_the_first(tmp_path: Path, service_url: str) -> None:
    paths = [str(_parquet(tmp_path / f"{n}.parquet", ["a", "b", f"c{n}"])) for n in range(2)]

    def embed(stop_at: int | None = None) -> None:
        def progress(done: int, resumed: int, total: int | None) -> None:
            if stop_at is not None and done >= stop_at:
                raise KeyboardInterrupt

        options = ReadOptions(id_column="id", column="image", shape=(3, SIZE, SIZE))
        with Client(service_url) as client:
            BulkRun(
                client, paths, tmp_path / "o.npy", read_options=options, batch_rows=1, in_flight=1,
                part_rows=1, on_error="skip", on_progress=progress,
            ).run()  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        embed(stop_at=3)
    embed()
    assert read_embeddings(str(tmp_path / "o.npy")).ids == ["a", "b", "c0", "c1"]


def test_repeats_in_finished_parts_are_remarked() -> None:
    """As a cluster's engines write them, of which each sees its own sources alone."""

    def content(ids: list[str]) -> PartContent:
        return PartContent(
            ids=ids, stored=np.empty(0), skipped=[], fingerprints=np.empty(0), notes=[], columns={}
        )

    parts = [content(["a", "b"]), content(["c", "a"])]
    (group,) = repeats(lambda: parts)
    assert (group.count, group.first) == (2, ["a", "a"])
    assert not list(repeats(lambda: parts[:1]))


def test_names_that_a_file_writes_alike_are_one_id() -> None:
    ids = DistinctIds(["a\ufffd"])
    assert ids.repeated("a\udcff") is not None
    assert ids.repeated("b") is None
    assert ids.repeated("b") is not None
