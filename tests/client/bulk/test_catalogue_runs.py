"""`vim-embed embed --catalogue`: each position's embedding beside its own columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vim_embed_client.cli.main import run

from .conftest import Embed
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
