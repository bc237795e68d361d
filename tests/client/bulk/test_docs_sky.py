"""docs/sky.md: every command in it runs, and every option of cut-outs is in it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from vim_embed_client.bulk.sources.options import SKY_OPTIONS
from vim_embed_client.cli.cutout import cutout as cutout_command
from vim_embed_client.cli.embed import embed as embed_command
from vim_embed_client.cli.main import run
from vim_embed_client.cli.map import map_command
from vim_embed_client.cli.score import score as score_command
from vim_embed_client.scoring.embedding_files import read_embeddings

from .skies import around, catalogue, painted, tangent, write

DOCS = (Path(__file__).parents[3] / "docs" / "sky.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", DOCS, re.DOTALL)
_COMMANDS = (cutout_command, embed_command, map_command, score_command)


@pytest.fixture
def place(tmp_path: Path, service_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with everything that the page speaks of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIM_EMBED_URL", service_url)
    wcs = tangent(150, 2, 0.2, (200, 200))
    galaxies = around(150, 2, 10, 4)
    image = painted(galaxies, wcs, (200, 200), noise=0.01)
    for ending in ("fits", "csv"):
        catalogue(Path(f"cat.{ending}"), galaxies)
    for column in (0, 1):
        at = slice(0, 200), slice(100 * column, 100 * (column + 1))
        write(Path(f"mosaic-{column}.fits"), image[at], wcs[at])
    Path("bands").mkdir()
    for band in "zrg":
        write(Path(f"bands/mosaic-{band}.fits"), image, wcs)
    hdus = [fits.ImageHDU(image, wcs.to_header(), name="SCI")]
    hdus.append(fits.ImageHDU(np.zeros((200, 200), np.uint8), name="DQ"))
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto("tile.fits")


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.usefixtures("place")
def test_commands_run(block: str, capsys: Any) -> None:
    for line in block.strip().splitlines():
        words = [found for word in shlex.split(line) for found in _expanded(word)]
        assert words[0] == "vim-embed"
        assert run(words[1:]) == 0, capsys.readouterr().err
        if words[1] == "embed":
            found = read_embeddings(words[words.index("-o") + 1])
            assert len(found.ids or []) == len(found.embeddings) == 4


def _expanded(word: str) -> list[str]:
    """As a shell expands a pattern."""
    return sorted(map(str, Path().glob(word))) if "*" in word else [word]


def test_every_option_named_exists_and_every_option_of_cutouts_is_named() -> None:
    params = (param for command in _COMMANDS for param in command.params)
    known = {name for param in params for name in param.opts + param.secondary_opts}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", DOCS))
    assert named <= known
    assert (SKY_OPTIONS | {"--keep"}) <= named
