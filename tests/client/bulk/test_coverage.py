"""Cut-outs that no mosaic has room for are told at once; all that is left out is named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from vim_embed_client.bulk.preview import PATIENCE
from vim_embed_client.bulk.sources.catalogue import CatalogueReader
from vim_embed_client.bulk.sources.mosaics import Mosaics
from vim_embed_client.bulk.sources.options import ReadOptions, SkyOptions
from vim_embed_client.bulk.sources.reader import Skipped
from vim_embed_client.cli.main import run
from vim_embed_client.sky.coverage import Nearby
from vim_embed_client.sky.positions import read_positions
from vim_embed_client.sky.tables import read_table

from .skies import around, catalogue, tangent, write

SCALE = 0.2
_TILES: dict[str, list[dict[str, Any]]] = {
    "one": [{}],
    "turned": [{"angle": 30.0}],
    "distorted": [{"angle": -12.0, "sip": 6.0}],
    "far from its tangent point": [{"offset": (9000.0, 7000.0)}],
    "two, of which one is turned": [{"offset": (-55.0, 0.0)}, {"offset": (55.0, 0.0), "angle": 20}],
}


def tiles(folder: Path, case: str, shape: tuple[int, int]) -> tuple[float, float]:
    """Write the tiles; a position on the first."""
    for number, given in enumerate(_TILES[case]):
        wcs = tangent(150, 2, SCALE, shape, **given)
        image = np.random.default_rng(number).normal(size=shape).astype(np.float32)
        write(folder / f"tile{number}.fits", image, wcs)
        if number == 0:
            ra, dec = wcs.all_pix2world([[shape[1] / 2, shape[0] / 2]], 0)[0]
    return float(ra), float(dec)


@pytest.mark.parametrize("north_up", [False, True])
@pytest.mark.parametrize("case", _TILES)
def test_no_cutout_has_less_off_the_edge_than_the_outlines_tell(
    tmp_path: Path, case: str, north_up: bool
) -> None:
    rng = np.random.default_rng(len(case))
    ra, dec = tiles(tmp_path, case, (90, 130))
    table = catalogue(tmp_path / "cat.fits", around(ra, dec, 14, 4, seed=3))
    bounds = []
    for size in (0.3, 4.0, *rng.uniform(10, 60, 4)):
        scale = float(rng.choice([0.1, 0.5, 3.0])) if size > 9 else None
        sky = SkyOptions(
            images=(str(tmp_path / "tile*"),), size=size, scale=scale, north_up=north_up,
            max_blank=1.0,
        )  # fmt: skip
        reader = CatalogueReader(str(table), ReadOptions(sky=sky))
        rows = list(reader.cutouts(0))
        truth = min(1.0 if isinstance(row, Skipped) else row.cutout.off_edge for row in rows)
        mosaics = Mosaics(ReadOptions(sky=sky))
        nearby = Nearby.of(
            mosaics.tiles, *read_positions(read_table(table)), reach=size * 0.71 / 3600
        )
        mosaics.close()
        found = nearby.least_off_edge(
            mosaics.tiles, size=size / 3600, scale=(scale or SCALE) / 3600, turned=north_up
        )
        assert found <= truth + 1e-9
        bounds.append(found)
    assert max(bounds) > 0.2


def unreadable(*args: Any) -> Any:
    raise AssertionError("pixels were read")


@pytest.mark.parametrize("command", ["preview", "embed", "cutout"])
def test_a_size_beyond_the_mosaics_is_told_before_any_pixel_is_read(
    tmp_path: Path, service_url: str, monkeypatch: pytest.MonkeyPatch, capsys: Any, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIM_EMBED_URL", service_url)
    ra, dec = tiles(tmp_path, "one", (90, 130))
    catalogue(tmp_path / "cat.fits", around(ra, dec, 8, 300))
    monkeypatch.setattr(Mosaics, "read", unreadable)
    out = {"preview": "o.png", "embed": "o.npy", "cutout": "o.h5"}[command]
    given = ["tile0.fits", "--catalogue", "cat.fits", "--size", "40arcsec", "-o", out]
    assert run([command, *given]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "40 arcsec is larger than the mosaic tile0.fits of 26 × 18 arcsec" in told
    assert not (tmp_path / out).exists()
    assert not (tmp_path / "o.npy.parts").exists()


def test_positions_that_are_all_near_the_edge(tmp_path: Path, capsys: Any) -> None:
    wcs = tangent(150, 2, SCALE, (90, 130))
    write(tmp_path / "tile.fits", np.ones((90, 130), np.float32), wcs)
    corner = wcs.all_pix2world([[1, 1]], 0)[0]
    catalogue(tmp_path / "cat.fits", around(float(corner[0]), float(corner[1]), 0.1, 4))
    given = ["--catalogue", str(tmp_path / "cat.fits"), "--size", "8arcsec"]
    assert run(["cutout", str(tmp_path / "tile.fits"), *given, "-o", str(tmp_path / "o.h5")]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "all near the edge of the mosaics" in told
    assert run([
        "cutout", str(tmp_path / "tile.fits"), *given, "--max-blank", "0.9", "-o",
        str(tmp_path / "o.h5"),
    ]) == 0  # fmt: skip


def test_a_preview_stops_where_all_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """All pixels are masked, which no outline tells; positions on no mosaic are free to pass."""
    monkeypatch.delenv("VIM_EMBED_URL", raising=False)
    shape = (90, 130)
    wcs = tangent(150, 2, SCALE, shape)
    write(tmp_path / "tile.fits", np.full(shape, np.nan, np.float32), wcs)
    galaxies = around(150, 2, 5, 4 * PATIENCE)
    galaxies.ra[:PATIENCE] += 1
    catalogue(tmp_path / "cat.fits", galaxies)
    tried: list[int] = []
    read = Mosaics.read

    def counted(self: Mosaics, *args: Any) -> Any:
        tried.append(1)
        return read(self, *args)

    monkeypatch.setattr(Mosaics, "read", counted)
    given = ["--catalogue", str(tmp_path / "cat.fits"), "--size", "2arcsec"]
    assert run(["preview", str(tmp_path / "tile.fits"), *given, "-o", str(tmp_path / "o.png")]) == 1
    assert len(tried) == PATIENCE
    told = " ".join(capsys.readouterr().err.split())
    assert "100.0% masked" in told
    assert f"the rest of it was not looked at, after {PATIENCE} in vain" in told


def test_all_that_is_left_out_is_named_somewhere(
    tmp_path: Path, service_url: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Where the messages say: of groups, they name three and the range of their numbers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIM_EMBED_URL", service_url)
    ra, dec = tiles(tmp_path, "one", (90, 90))
    catalogue(tmp_path / "cat.fits", around(ra, dec, 9, 36))
    given = ["tile0.fits", "--catalogue", "cat.fits", "--size", "5arcsec", "--json"]
    outputs = {"preview": "o.png", "embed": "o.parquet", "cutout": "o.h5"}
    told, listed = {}, {}
    for command, out in outputs.items():
        assert run([command, *given, "-o", out]) == 0
        captured = capsys.readouterr()
        told[command] = json.loads(captured.out)
        if command != "preview":
            some = r"cat.fits#0, cat.fits#\d, cat.fits#\d and \d+ more"
            reason = r"of its pixels [\d.]+ to [\d.]+% are off"
            assert re.search(f"{some}: {reason}", captured.err)
            assert "All ids and reasons: " in captured.err
    listed["preview"] = told["preview"]["left_out"]
    listed["embed"] = told["embed"]["passed_over"]
    lines = Path(told["cutout"]["left_out"]).read_text().splitlines()
    listed["cutout"] = [json.loads(line) for line in lines]
    about = pyarrow.parquet.read_schema("o.parquet").metadata
    assert json.loads(about[b"vim_embed.passed_over"]) == listed["embed"]
    (group,) = told["embed"]["passed_over_reasons"]
    for ids in ([one["id"] for one in some] for some in listed.values()):
        assert len(ids) == group["count"] > 3
        assert ids[:10] == group["first"]
    assert run(["cutout", *given, "--max-blank", "1", "-o", "o.h5"]) == 0
    assert not Path("o.h5.skipped.jsonl").exists()
