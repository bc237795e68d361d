"""docs/tutorial.md: every command in it runs, in order; the two surveys show the same sky."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from tutorial_pictures import PICTURES, ROOT, digest_of

from support.doc_blocks import Reader, blocks_of
from vim_embed.weights.catalogue import CATALOGUE
from vim_embed.weights.hub import digest_files, locate
from vim_embed_client.cli.main import run
from vim_embed_client.demo.mosaics import write_sky
from vim_embed_client.local_server import LocalServer
from vim_embed_client.scoring.embedding_files import read_embeddings

PAGE = ROOT / "docs" / "tutorial.md"
LIMITS = "--limits 0:255"
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


def few_galaxies(folder: Path) -> None:
    """Leave a tenth of the catalogue, with those that the page names: 400 take minutes."""
    table = Table.read(folder / "sky" / "cat.fits")
    page = PAGE.read_text()
    keep = [row % 10 == 0 or name in page for row, name in enumerate(table["id"])]
    table[keep].write(folder / "sky" / "cat.fits", overwrite=True)


@pytest.mark.timeout(1800)  # two dozen programs: a minute and a half, and many beside other work
def test_every_command_runs_in_order(tmp_path: Path) -> None:
    blocks = [block for block in blocks_of(PAGE, ROOT) if block.language == "bash"]
    with Reader(tmp_path, None, {"HF_HUB_OFFLINE": "1"}) as reader:
        for block in blocks:
            reader.run(block)
            if block is blocks[0]:
                few_galaxies(tmp_path)
    table = Table.read(tmp_path / "sky" / "cat.fits")
    files = {
        "hubble": "vim-micro",
        "ground": "vim-micro",
        "vim-tiny_hubble": "vim-tiny",
        "vim-tiny_ground": "vim-tiny",
    }
    for name, model in files.items():
        rows = read_embeddings(str(tmp_path / f"{name}.parquet"))
        assert rows.ids == list(table["id"])
        assert rows.provenance["model"] == model
        assert rows.random_weights == (model == "vim-tiny")
    for figure in PICTURES:
        assert (tmp_path / figure).stat().st_size > 10_000
    assert "\\toprule" in (tmp_path / "table.tex").read_text()
    models = [line.partition(",")[0] for line in (tmp_path / "table.csv").read_text().splitlines()]
    assert models[-2:] == ["vim-micro", "vim-tiny"]


def test_the_page_s_figures_are_those_of_the_packaged_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """MKNN with its limits and without, rounded; other kernels move a neighbour here and there."""
    page = PAGE.read_text()
    (embed,) = [line for line in page.splitlines() if line.endswith("-o hubble.parquet")]
    told = re.search(r"k = 10 is (0\.\d\d) with these limits, and (0\.\d\d) without", page)
    assert told
    write_sky(tmp_path / "sky")
    monkeypatch.chdir(tmp_path)
    with LocalServer(["vim-micro"]) as service:
        monkeypatch.setenv("VIM_EMBED_URL", service.url)
        for value, options in zip(told.groups(), (embed, embed.replace(LIMITS, "")), strict=True):
            for survey in ("hubble", "ground"):
                line = f"{options.replace('hubble', survey)} --overwrite"
                assert run(shlex.split(line)[1:]) == 0
            capsys.readouterr()
            assert run(["score", "hubble.parquet", "ground.parquet", "-k", "10", "--json"]) == 0
            (score,) = json.loads(capsys.readouterr().out)["scores"]
            assert score["mknn"] == pytest.approx(float(value), abs=0.012)


def test_its_pictures_are_of_the_packaged_weights() -> None:
    """make tutorial-pictures draws them anew."""
    shown = re.findall(r"!\[[^\]]+\]\(pictures/([^)]+)\)", PAGE.read_text())
    assert sorted(shown) == sorted(PICTURES.values())
    packaged = digest_files(locate(CATALOGUE["vim-micro"]).files)
    assert {digest_of(PAGE.parent / "pictures" / picture) for picture in shown} == {packaged}
