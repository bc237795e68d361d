"""No command writes over a file that it reads, nor over an image that it did not draw."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure
from PIL import Image

from support.embedding_files import write_embeddings
from vim_embed.cli import main as server
from vim_embed_client.bulk.sources.drawn import drawn_here
from vim_embed_client.cli.main import COMMANDS, cli, run
from vim_embed_client.cli.written_files import OutputPath, WritingCommand
from vim_embed_client.demo.flow import check_folder
from vim_embed_client.figures.style import save
from vim_embed_client.formats import safetensors_chunks
from vim_embed_client.results import Provenance

CSV = b"id,z\n0,0.1\n"

# Arguments, the file that would be replaced, and what the message says: the argument that names it
# and the option to change; or the command that did not write it, with a space in front.
REFUSED: dict[str, tuple[str, str, str]] = {
    "an argument": ("join a.parquet b.parquet -o a.parquet", "a.parquet", "a.parquet|-o"),
    "the second": ("join a.parquet b.parquet -o b.parquet", "b.parquet", "b.parquet|-o"),
    "another spelling": (
        "join a.parquet b.parquet -o ./folder/../a.parquet", "a.parquet", "a.parquet|-o",
    ),
    "an absolute input": (
        "join {cwd}/a.parquet b.parquet -oa.parquet", "a.parquet", "/a.parquet|-o",
    ),
    "a symbolic link": ("join a.parquet b.parquet -o soft.parquet", "a.parquet", "a.parquet|-o"),
    "a hard link": ("join a.parquet b.parquet --output=hard.parquet", "a.parquet", "a.parquet|-o"),
    "a link as input": ("join soft.parquet b.parquet -o a.parquet", "a.parquet", "soft.parquet|-o"),
    "FILE:COLUMN": (
        "score a.npy b.npy --property m31.png:z --figure m31.png", "m31.png",
        "--property m31.png:z|--figure",
    ),
    "FILE[2]:COLUMN": (
        "map a.npy --colour cat.csv[2]:z -o cat.csv", "cat.csv", "--colour cat.csv[2]:z|-o",
    ),
    "one of two outputs": (
        "map a.npy --colour cat.csv:z -o new.png -o cat.csv", "cat.csv", "--colour cat.csv:z|-o",
    ),
    "TABLE:ONE,TWO": (
        "compare m=a.npy,b.npy n=a.npy,b.npy --pairs cat.csv:id,z -o cat.csv", "cat.csv",
        "--pairs cat.csv:id,z|-o",
    ),
    "NAME=FIRST,SECOND": (
        "compare m=a.npy,cat.csv n=a.npy,b.npy -o cat.csv", "cat.csv", "m=a.npy,cat.csv|-o",
    ),
    "MODEL:SURVEY=FILE": ("table m:s=a.npy m:t=cat.csv -o cat.csv", "cat.csv", "m:t=cat.csv|-o"),
    "a style": ("layers a.npy b.npy --style m31.svg -o m31.svg", "m31.svg", "--style m31.svg|-o"),
    "a flag of the service": (
        "bench --plot m31.png -- --certificate m31.png", "m31.png", "m31.png|--plot",
    ),
    "a catalogue": (
        "embed tile.fits --catalogue a.parquet --size 6arcsec -o a.parquet", "a.parquet",
        "--catalogue a.parquet|-o",
    ),
    "a catalogue that is cut out": (
        "cutout tile.fits --catalogue a.parquet --size 6arcsec -o a.parquet", "a.parquet",
        "--catalogue a.parquet|-o",
    ),
    "a mask": ("embed m31.png --mask mask.npz -o mask.npz", "mask.npz", "--mask mask.npz|-o"),
    "an image": ("preview m31.png -o m31.png", "m31.png", ""),
    "an image in capitals": ("preview M33.PNG -o M33.PNG", "M33.PNG", ""),
    "a folder of images": ("preview folder -o folder/g.png", "folder/g.png", ""),
    "a pattern": ("preview folder/* -o folder/g.png", "folder/g.png", ""),
    "a linked image": ("preview m31.png -o soft.png", "m31.png", ""),
    "an image of neighbours": (
        "neighbours a.npy --images folder -o folder/g.png", "folder/g.png", "",
    ),
    "a foreign .svg": ("neighbours a.npy -o m31.svg", "m31.svg", ""),
    "an image to explain": ("explain folder -o folder/g.png", "folder/g.png", ""),
    "arrays to explain": ("explain mask.npz --arrays mask.npz", "mask.npz", " explain|--arrays"),
    "images": ("embed pixels.npy a.npy -o pixels.npy", "pixels.npy", " embed|-o"),
    "images by a link": ("embed pixels.npy a.npy -o hard.npy", "pixels.npy", " embed|-o"),
    "another's table": ("join a.parquet b.parquet -o cat.parquet", "cat.parquet", " join|-o"),
    "a summary": ("demo -o results", "results/summary.json", " demo|-o"),
    "a figure": ("demo -o drawn", "drawn/figure.png", " demo|-o"),
    "a foreign .h5": (
        "cutout tile.fits --catalogue cat.csv --size 6arcsec -o cuts.h5", "cuts.h5", " cutout|-o",
    ),
    "a foreign .parquet": (
        "cutout tile.fits --catalogue cat.csv --size 6arcsec -o a.parquet", "a.parquet",
        " cutout|-o",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    for name in ("a.npy", "b.npy", "a.parquet", "b.parquet"):
        rows = rng.standard_normal((8, 4)).astype(np.float32)
        write_embeddings(folder / name, rows, list("abcdefgh"), Provenance(model="m"))
    pixels = rng.integers(0, 256, (2, 3, 16, 16), dtype=np.uint8)
    np.save(folder / "pixels.npy", pixels)
    np.savez(folder / "mask.npz", pixels)
    (folder / "folder").mkdir()
    for name in ("m31.png", "M33.PNG", "folder/g.png", "folder/h.png"):
        Image.fromarray(pixels[0].T).save(folder / name)
    (folder / "cat.csv").write_bytes(CSV)
    (folder / "results").mkdir()
    (folder / "drawn").mkdir()
    (folder / "results/summary.json").write_text('{"score": 1}')
    (folder / "drawn/figure.png").write_bytes(b"somebody's")
    for name in ("m31.svg", "tile.fits", "cuts.h5", "cat.parquet"):
        (folder / name).write_bytes(b"somebody's")
    save(Figure((1, 1)), folder / "sheet.png")
    return folder


@pytest.fixture
def here(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    (tmp_path / "soft.parquet").symlink_to("a.parquet")
    (tmp_path / "soft.png").symlink_to("m31.png")
    os.link(tmp_path / "a.parquet", tmp_path / "hard.parquet")
    os.link(tmp_path / "pixels.npy", tmp_path / "hard.npy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VIM_EMBED_URL", raising=False)
    return tmp_path


@pytest.mark.parametrize("case", REFUSED)
def test_the_file_is_as_it_was_and_the_message_names_the_fix(
    here: Path, case: str, capsys: Any
) -> None:
    line, name, told = REFUSED[case]
    before = (here / name).read_bytes()
    names = sorted(here.rglob("*"))
    assert run(line.format(cwd=here).split()) == 2
    said = capsys.readouterr().err
    by, _, option = told.partition("|")
    if by.startswith(" ") or not told:
        assert f"is there and was not written by vim-embed{by}: give another " in said
        assert f"{option or '-o'}, or remove it" in said
    else:
        assert "would replace what is read (" in said
        assert f"{by}): give another {option}" in said
    assert (here / name).read_bytes() == before
    assert sorted(here.rglob("*")) == names


@pytest.mark.parametrize("ending", [".png", ".pdf", ".svg", ".PNG"])
def test_figures_of_ours_are_known_and_replaced(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"figure{ending}"
    save(Figure((1, 1)), path)
    assert drawn_here(path)
    Figure((1, 1)).savefig(path)
    assert not drawn_here(path)


@pytest.mark.parametrize("sources", [["folder"], ["folder/g.png", "folder/sheet.png"]])
def test_an_earlier_sheet_is_no_source_and_is_replaced(
    here: Path, sources: list[str], capsys: Any
) -> None:
    (here / "folder/sheet.png").touch()  # empty files are nobody's
    assert run(["preview", "folder/g.png", "-o", "folder/sheet.png"]) == 0
    before = (here / "folder/sheet.png").stat().st_mtime_ns
    capsys.readouterr()
    assert run(["preview", *sources, "-o", "folder/sheet.png"]) == 0
    rows = 2 if sources == ["folder"] else 1
    assert f"{rows} rows of" in capsys.readouterr().out
    assert (here / "folder/sheet.png").stat().st_mtime_ns > before


def test_a_table_that_is_no_input_is_replaced(here: Path) -> None:
    assert run(["map", "a.npy", "-o", "cat.csv"]) == 0
    assert (here / "cat.csv").read_bytes() != CSV


@pytest.mark.parametrize("line", ["certify --images x.json", "bench --certificate x.json"])
def test_the_server_s_commands_likewise(tmp_path: Path, line: str) -> None:
    path = tmp_path / "x.json"
    path.write_text("{}")
    args = line.replace("x.json", str(path)).split()
    done = CliRunner().invoke(server, [*args, "--output", str(path)])
    assert done.exit_code == 2
    assert "would replace what is read (" in done.output
    assert path.read_text() == "{}"


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "demo"])
def test_every_command_that_writes_is_guarded(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    flags = {"--output", "--figure", "--plot", "--arrays"}
    for param in command.params:
        if flags & set(param.opts):
            assert isinstance(param.type, OutputPath), param
            assert isinstance(command, WritingCommand)


def test_a_figure_beside_what_the_demo_wrote_is_the_demos(here: Path) -> None:
    """Also one that was drawn before figures had a mark."""
    folder = here / "drawn"
    assert not check_folder(folder)
    rows = np.zeros((1, 2), np.float32)
    (folder / "embeddings.safetensors").write_bytes(
        b"".join(safetensors_chunks({"space": rows}, {"sources_found": "1"}))
    )
    assert check_folder(folder)
