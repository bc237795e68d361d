"""docs/tutorial.md: every command in it runs, in order; the two surveys show the same sky."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from support.serving import running
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.http.app import create_app
from vim_embed.settings import Settings
from vim_embed_client.cli.main import run
from vim_embed_client.demo.mosaics import write_sky
from vim_embed_client.scoring.embedding_files import read_embeddings

PAGE = Path(__file__).parents[3] / "docs" / "tutorial.md"
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
COUNT = 40


@pytest.fixture(scope="module")
def sky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tutorial")
    write_sky(folder / "sky", COUNT)
    return folder


def centroid(path: Path, ra: float, dec: float, arcsec: float) -> tuple[float, float]:
    """(ra, dec) of the light over the sky within so many arcseconds."""
    with fits.open(path) as hdus:
        image, wcs = hdus[0].data.astype(float), WCS(hdus[0].header)
    x, y = wcs.all_world2pix(ra, dec, 0)
    reach = arcsec / 3600 / wcs.wcs.cdelt[1]
    down, across = np.indices(image.shape)
    near = np.hypot(across - x, down - y) <= reach
    light = np.clip(image - np.median(image), 0, None)[near]
    middle = [float((axis[near] * light).sum() / light.sum()) for axis in (across, down)]
    found = wcs.all_pix2world(*middle, 0)
    return float(found[0]), float(found[1])


def test_both_surveys_have_the_galaxies_where_the_catalogue_says(sky: Path) -> None:
    table = Table.read(sky / "sky" / "cat.fits")
    assert len(table) == COUNT
    units = {name: str(table[name].unit) for name in table.colnames if table[name].unit}
    assert units == {"ra": "deg", "dec": "deg", "radius": "arcsec"}
    for row in table[:5]:
        places = [
            centroid(sky / "sky" / survey / f"{survey}-g.fits", row["ra"], row["dec"], 0.6)
            for survey in ("hubble", "ground")
        ]
        for ra, dec in places:
            apart = np.hypot((ra - row["ra"]) * np.cos(np.radians(dec)), dec - row["dec"]) * 3600
            assert apart < 0.12


def test_every_command_runs_in_order(
    sky: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(sky)
    commands = [shlex.split(line) for block in BLOCKS for line in block.strip().splitlines()]
    assert commands[0] == ["python", "-m", "vim_embed_client.demo.mosaics", "sky"]
    with running(create_app(Settings(), ArithmeticEngine(image_size=16))) as url:
        monkeypatch.setenv("VIM_EMBED_URL", url)
        for program, *arguments in commands[1:]:
            assert program == "vim-embed"
            assert run(arguments) == 0, capsys.readouterr().err
    hubble, ground = (read_embeddings(f"{name}.parquet") for name in ("hubble", "ground"))
    assert hubble.ids == ground.ids == [f"g{row:04}" for row in range(COUNT)]
    assert Path("mknn.png").stat().st_size > 10_000
    assert Path("map.png").stat().st_size > 10_000
    assert Path("sheet.png").stat().st_size > 10_000
    assert "\\toprule" in Path("table.tex").read_text()


def test_its_pictures_are_there() -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", PAGE.read_text())
    assert len(pictures) == 3
    assert all((PAGE.parent / picture).is_file() for picture in pictures)
