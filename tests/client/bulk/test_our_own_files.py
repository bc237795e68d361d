"""What vim-embed itself wrote among the images is no image: figures, embeddings, attention,
cut-outs in a folder of their own."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from support.embedding_files import write_embeddings
from support.fixtures_vim import DATA
from vim_embed_client.bulk.sources.mosaics import LIST_OF_CUTOUTS
from vim_embed_client.cli.main import run
from vim_embed_client.figures.style import save
from vim_embed_client.results import Provenance

from .conftest import Embed
from .skies import around, painted, tangent, write
from .survey import SIZE

FIGURE, EMBEDDINGS = "a figure that vim-embed drew", "embeddings that vim-embed wrote"
OURS = {
    "sheet.png": FIGURE,
    "z.npy": EMBEDDINGS,
    "z.npz": EMBEDDINGS,
    "z.parquet": EMBEDDINGS,
    "a.npz": "attention that `vim-embed explain` wrote",
}
MODEL = f"micro=vim:{DATA / 'vim_micro.pth'}"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"g{number}.png")
    return folder


def ours(folder: Path, name: str) -> Path:
    """Such a file, as a command writes it."""
    path = folder / name
    if name == "sheet.png":
        save(Figure((1, 1)), path)
    elif name == "a.npz":
        arguments = ["--model", MODEL, "--sample", "--rows", "1", "--arrays", str(path)]
        assert run(["explain", *arguments]) == 0
    else:
        rows = np.random.default_rng(0).standard_normal((SIZE, SIZE)).astype(np.float32)
        write_embeddings(path, rows, [f"g{n}" for n in range(SIZE)], Provenance(model="m"))
    return path


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("pattern", ["", "/*[gyzt]"])
def test_it_is_passed_over_by_name_in_a_folder(
    embed: Embed, images: Path, capsys: Any, name: str, pattern: str
) -> None:
    ours(images, name)
    capsys.readouterr()
    ids, rows = embed(f"{images}{pattern}", "--json")
    assert [Path(one).name for one in ids] == ["g0.png", "g1.png", "g2.png"]
    assert len(rows) == 3
    told = capsys.readouterr()
    [why] = [one for one in json.loads(told.out)["passed_over_reasons"] if OURS[name] in str(one)]
    assert name in str(why)


@pytest.mark.parametrize("name", OURS)
def test_alone_it_is_an_error(embed: Embed, images: Path, capsys: Any, name: str) -> None:
    path = ours(images, name)
    capsys.readouterr()
    embed(path, code=1)
    assert f"{name}: {OURS[name]}" in " ".join(capsys.readouterr().err.split())


def test_a_figure_is_passed_over_wherever_it_is(embed: Embed, images: Path, tmp_path: Path) -> None:
    path = ours(images, "sheet.png")
    assert len(embed(images, "--crop", "20")[0]) == 3
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for one in (path, images / "g1.png"):
            shard.add(one, arcname=one.name)
    assert len(embed(tmp_path / "shard.tar")[0]) == 1


def test_a_preview_of_the_folder_does_without_figures(
    images: Path, tmp_path: Path, capsys: Any
) -> None:
    for name in OURS:
        ours(images, name)
    capsys.readouterr()
    assert run(["preview", str(images), "-o", str(tmp_path / "p.png"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["rows"]) == 3
    assert {Path(one["id"]).name: one["reason"] for one in told["left_out"]} == OURS


def test_explain_leaves_its_own_outputs_out(images: Path, capsys: Any) -> None:
    """Also the second time, when they are there, and beside another sheet."""
    ours(images, "sheet.png")
    outputs = ["-o", str(images / "e.png"), "--arrays", str(images / "e.npz")]
    for sources in ([str(images)], [str(images)], [str(images / "g0.png"), str(images / "e.png")]):
        capsys.readouterr()
        assert run(["explain", *sources, "--model", MODEL, "--rows", "9", *outputs, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["images"] == (3 if len(sources) == 1 else 1)


@pytest.mark.parametrize("command", ["explain", "preview"])
def test_the_output_alone_is_nothing_to_read(images: Path, capsys: Any, command: str) -> None:
    path = str(ours(images, "sheet.png"))
    before = Path(path).read_bytes()
    model = ["--model", MODEL] if command == "explain" else []
    assert run([command, path, "-o", path, *model]) == 2
    assert "is what would be written: name what is to be read" in capsys.readouterr().err
    assert Path(path).read_bytes() == before


@pytest.fixture
def tiles(tmp_path: Path) -> tuple[Path, list[str]]:
    """A folder with a mosaic, and the arguments of a catalogue of it."""
    folder, catalogue = tmp_path / "tiles", tmp_path / "cat.csv"
    folder.mkdir()
    galaxies, shape = around(150, 2, 8, 4), (200, 200)
    wcs = tangent(150, 2, 0.1, shape)
    write(folder / "tile.fits", painted(galaxies, wcs, shape), wcs)
    lines = [
        f"g{n},{ra},{dec}"
        for n, (ra, dec) in enumerate(zip(galaxies.ra, galaxies.dec, strict=True))
    ]
    catalogue.write_text("\n".join(["id,ra,dec", *lines]))
    return folder, ["--catalogue", str(catalogue), "--size", "2arcsec"]


def test_cutouts_below_their_mosaics_are_no_mosaics(
    tiles: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, catalogue = tiles
    clean, again = tmp_path / "clean", folder / "again"
    for output in (clean, folder / "cuts", again):
        assert run(["cutout", str(folder), *catalogue, "-o", str(output)]) == 0
    for path in clean.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()
    shutil.rmtree(again)
    (folder / "tile.fits").rename(tmp_path / "tile.fits")
    assert (folder / "cuts" / LIST_OF_CUTOUTS).is_file()
    smaller = [*catalogue[:-1], "1arcsec", "-o", str(tmp_path / "smaller")]
    assert run(["cutout", str(folder / "cuts"), *smaller]) == 0  # they may be cut once more


def test_what_is_no_figure_of_ours_stays_an_image(embed: Embed, tmp_path: Path) -> None:
    figure = io.BytesIO()
    Figure((1, 1)).savefig(figure)  # matplotlib's own
    (tmp_path / "plot.png").write_bytes(figure.getvalue())
    np.save(tmp_path / "flux.npy", np.random.default_rng(0).random((SIZE, SIZE)))
    (tmp_path / "flux.npy.json").write_text('{"telescope": "HSC"}')
    assert len(embed(tmp_path / "plot.png", tmp_path / "flux.npy")[0]) == 2
