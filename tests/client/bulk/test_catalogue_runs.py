"""`vim-embed embed --catalogue`: each position's embedding beside its own columns."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vim_embed_client.bulk.run import BulkRun
from vim_embed_client.bulk.sources.options import ReadOptions, SkyOptions
from vim_embed_client.bulk.sources.reader import Item
from vim_embed_client.bulk.sources.registry import open_reader
from vim_embed_client.cli.main import run
from vim_embed_client.client import Client
from vim_embed_client.errors import ConfigurationError, ResumeError
from vim_embed_client.figures.images import Images, as_picture
from vim_embed_client.scoring.embedding_files import read_embeddings
from vim_embed_client.scoring.kept_columns import kept_table

from .conftest import Embed
from .killing import VIM_EMBED, attempt, stub_server
from .skies import Galaxies, around, catalogue, painted, tangent, write

SIDE = 260


@pytest.fixture
def sky(tmp_path: Path) -> tuple[Path, Galaxies]:
    """A mosaic of one tile and a catalogue of nine galaxies, one of which is off it."""
    wcs = tangent(150, 2, 0.2, (SIDE, SIDE), angle=10)
    galaxies = around(150, 2, 18, 9)
    write(tmp_path / "tile.fits", painted(galaxies, wcs, (SIDE, SIDE), noise=0.01), wcs)
    galaxies.ra[4] += 1
    catalogue(tmp_path / "cat.fits", galaxies)
    return tmp_path, galaxies


def test_rows_come_with_their_columns(sky: tuple[Path, Galaxies], embed: Embed) -> None:
    folder, galaxies = sky
    given = ["--catalogue", folder / "cat.fits", "--size", "6arcsec", "--north-up"]
    ids, rows = embed(folder / "tile.fits", *given, "--id-column", "name", "--keep", "z")
    there = [row for row in range(9) if row != 4]
    assert ids == [f"g{row}" for row in there]
    assert len(np.unique(rows, axis=0)) == 8
    about = json.loads((folder / "out" / "out.npy.json").read_text())
    assert about["columns"]["z"] == [round(0.1 + 0.1 * row, 3) for row in there]
    np.testing.assert_allclose(about["columns"]["ra"], galaxies.ra[there])
    assert about["columns"]["off_edge"] == [0.0] * 8
    assert about["summary"]["passed_over_reasons"][0]["first"] == ["g4"]
    ((name, reason),) = [(one["id"], one["reason"]) for one in about["passed_over"]]
    assert name == "g4"
    assert "no mosaic" in reason or "covers" in reason


@pytest.mark.parametrize("ids", [[], ["--id-column", "name"]])
def test_sheets_draw_the_cutouts(sky: tuple[Path, Galaxies], embed: Embed, ids: list[str]) -> None:
    """Whether an id names the catalogue or not: the file records it."""
    folder, _ = sky
    embed(folder / "tile.fits", "--catalogue", folder / "cat.fits", "--size", "4arcsec", *ids)
    file = read_embeddings(str(folder / "out" / "out.npy"))
    options = ReadOptions(sky=SkyOptions(images=(str(folder / "tile.fits"),), size=4.0))
    rows = [
        one for one in open_reader(str(folder / "cat.fits"), options).read(0)
        if isinstance(one, Item)
    ]  # fmt: skip
    images = Images(file, None)
    for place in (0, 5, 7):
        drawn: Any = rows[place].data
        np.testing.assert_array_equal(images[place], as_picture(drawn()))
    (folder / "tile.fits").unlink()
    missing = r"tile\.fits is not there.*give this command there"
    with pytest.raises(ConfigurationError, match=missing):
        Images(file, None)[0]


_USAGE: dict[str, tuple[list[str], str]] = {
    "no catalogue": (["--size", "6arcsec"], "--size is for cut-outs"),
    "no size": (["--catalogue", "cat.fits"], "--catalogue needs the size"),
    "no unit": (["--catalogue", "cat.fits", "--size", "6"], "no angle with a unit"),
    "reserved": (["--catalogue", "cat.fits", "--size", '6"', "--keep", "id"], "of its own"),
    "no effect": (
        ["--catalogue", "cat.fits", "--size", '6"', "--stack"], "--stack would have no effect"
    ),
    "no mask": (
        ["--catalogue", "cat.fits", "--size", '6"', "--mask-flags", "4"], "--mask-flags would have"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", _USAGE)
def test_wrong_usage(
    sky: tuple[Path, Galaxies], monkeypatch: pytest.MonkeyPatch, capsys: Any, case: str
) -> None:
    options, message = _USAGE[case]
    monkeypatch.chdir(sky[0])
    assert run(["embed", "tile.fits", "-o", "out.npy", *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def _run(url: str, folder: Path, name: str, stop_at: int | None = None) -> None:
    """Embed the catalogue; Ctrl-C comes when so many rows are done."""

    def progress(done: int, resumed: int, rows: int | None) -> None:
        if stop_at is not None and done >= stop_at:
            raise KeyboardInterrupt

    sky = SkyOptions(images=(str(folder / "tile.fits"),), size=3.0)
    options = ReadOptions(sky=sky, id_column="name", keep=("z",))
    with Client(url) as client:
        BulkRun(
            client,
            [str(folder / "cat.fits")],
            folder / name,
            read_options=options,
            batch_rows=3,
            in_flight=2,
            part_rows=4,
            on_progress=progress,
        ).run()


def _written(path: Path) -> tuple[list[str], Any, dict[str, list[Any]]]:
    found = read_embeddings(str(path))
    table = kept_table(found)
    return found.ids or [], found.embeddings, {name: table[name] for name in ("ra", "z", "masked")}


def test_stopped_four_times_it_is_complete_and_in_order(tmp_path: Path, service_url: str) -> None:
    wcs = tangent(150, 2, 0.2, (SIDE, SIDE), angle=10)
    galaxies = around(150, 2, 18, 49)
    write(tmp_path / "tile.fits", painted(galaxies, wcs, (SIDE, SIDE), noise=0.01), wcs)
    galaxies.ra[[7, 20, 21]] += 1
    catalogue(tmp_path / "cat.fits", galaxies)
    for stop_at in sorted(random.Random(3).sample(range(4, 46), 4)):
        with pytest.raises(KeyboardInterrupt):
            _run(service_url, tmp_path, "o.parquet", stop_at)
        assert not (tmp_path / "o.parquet").exists()
    _run(service_url, tmp_path, "o.parquet")
    _run(service_url, tmp_path, "whole.parquet")
    ids, rows, columns = _written(tmp_path / "o.parquet")
    there = [row for row in range(49) if row not in (7, 20, 21)]
    assert ids == [f"g{row}" for row in there]
    assert columns["z"] == [round(0.1 + 0.1 * row, 3) for row in there]
    np.testing.assert_allclose(columns["ra"], galaxies.ra[there])
    wanted = _written(tmp_path / "whole.parquet")
    np.testing.assert_array_equal(rows, wanted[1])
    assert (ids, columns) == (wanted[0], wanted[2])


@pytest.mark.parametrize("changed", ["the catalogue", "the mosaic", "what is kept"])
def test_what_changed_in_between_is_refused(
    tmp_path: Path, service_url: str, changed: str, sky: tuple[Path, Galaxies]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        _run(service_url, tmp_path, "o.npy", 6)
    if changed == "what is kept":
        given = ["--catalogue", str(tmp_path / "cat.fits"), "--size", "3arcsec"]
        given += ["--id-column", "name", "--keep", "name", "--url", service_url]
        command = ["embed", str(tmp_path / "tile.fits"), *given, "-o", str(tmp_path / "o.npy")]
        assert run(command) == 4
        return
    file = tmp_path / ("cat.fits" if changed == "the catalogue" else "tile.fits")
    os.utime(file, (1, 1))
    with pytest.raises(ResumeError):
        _run(service_url, tmp_path, "o.npy")


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_killed_at_ten_random_points(tmp_path: Path) -> None:
    """SIGKILL, ten times: complete, ordered, none twice, columns beside their own rows."""
    rows = 4000  # half of the attempts read in a process of their own
    wcs = tangent(150, 2, 0.2, (1000, 1000), angle=10)
    galaxies = around(150, 2, 80, rows)
    noise = np.random.default_rng(0).normal(size=(1000, 1000)).astype("f4")
    write(tmp_path / "tile.fits", noise, wcs)
    catalogue(tmp_path / "cat.fits", galaxies)
    output = tmp_path / "o.parquet"
    with stub_server(8) as url:
        command = [VIM_EMBED, "embed", str(tmp_path / "tile.fits"), "--url", url]
        command += ["--catalogue", str(tmp_path / "cat.fits"), "--size", "3arcsec", "--quiet"]
        command += ["--id-column", "name", "--keep", "z", "--part-rows", "50", "-o", str(output)]
        command += ["--batch-rows", "8"]
        for kill_at in sorted(random.sample(range(1, rows * 3 // 4), 10)):
            assert attempt(command, tmp_path / "o.parquet.parts", kill_at=kill_at).code == -9
        assert attempt(command, tmp_path / "o.parquet.parts").code == 0
        ids, found, columns = _written(output)
        whole = [
            str(tmp_path / "whole.parquet") if word == str(output) else word for word in command
        ]
        assert attempt(whole, tmp_path / "whole.parquet.parts").code == 0
    assert ids == [f"g{row}" for row in range(rows)]
    np.testing.assert_array_equal(
        found, read_embeddings(str(tmp_path / "whole.parquet")).embeddings
    )
    np.testing.assert_allclose(columns["z"], 0.1 + 0.1 * np.arange(rows), atol=1e-3)
    np.testing.assert_allclose(columns["ra"], galaxies.ra)


_MISSPELT: dict[str, tuple[list[str], str]] = {
    "one of a position": (
        ["--position", "ra_deg,DE"],
        "no column 'ra_deg' (did you mean 'RA_deg1'?), but id, RA_deg1",
    ),
    "the other, with a unit": (
        ["--position", "RA_deg1,DEC[deg]"],
        "no column 'DEC' (did you mean 'DE'?), but id,",
    ),
    "both": (
        ["--position", "RAdeg,XYZ"],
        "no columns 'RAdeg' (did you mean 'RA_deg1'?) and 'XYZ', but id,",
    ),
    "two that are kept": (
        ["--position", "RA_deg1,DE", "--keep", "z,zphott,MAG"],
        "no columns 'zphott' (did you mean 'zphot'?) and 'MAG' (did you mean 'mag_g'?), but id,",
    ),
    "ids": (
        ["--position", "RA_deg1,DE", "--keep", "z", "--id-column", "idd"],
        "no column 'idd' (did you mean 'id'?), but id, RA_deg1, DE, z, zphot, mag_g",
    ),
}


@pytest.mark.parametrize("command", ["embed", "preview", "cutout"])
@pytest.mark.parametrize("case", _MISSPELT)
def test_the_column_that_is_not_there_is_named(
    sky: tuple[Path, Galaxies],
    service_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    case: str,
    command: str,
) -> None:
    """It alone, and the nearest that is there."""
    given, message = _MISSPELT[case]
    monkeypatch.chdir(sky[0])
    monkeypatch.setenv("VIM_EMBED_URL", service_url)
    Path("cat.csv").write_text("id,RA_deg1,DE,z,zphot,mag_g\n1,150,2,0,0,20\n")
    out = {"embed": "o.npy", "preview": "o.png", "cutout": "o.h5"}[command]
    given = ["--catalogue", "cat.csv", "--size", "3arcsec", *given, "-o", out]
    assert run([command, "tile.fits", *given]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert f"cat.csv has {message}" in told
    assert "--on-error" not in told
