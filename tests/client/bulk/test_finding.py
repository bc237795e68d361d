"""Which files of folders are sources, and that every other one is named."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from vim_embed_client.bulk.sources.options import ReadOptions
from vim_embed_client.bulk.sources.reader import Skipped
from vim_embed_client.bulk.sources.registry import find_sources
from vim_embed_client.errors import InputError

from .conftest import Embed
from .row_files import PNGS, G, R, entries_of, primary, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b/c.FITS", "b/notes.TXT", "b/README", ".hidden.png", ".git/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


PASSED_OVER = {
    ".git": "a hidden folder",
    ".hidden.png": "a hidden file",
    "b/README": "files without an ending are not read",
    "b/notes.TXT": ".TXT files are not read",
}


def test_what_is_no_source_is_passed_over_once(folder: Path) -> None:
    told: list[Skipped] = []
    paths = [str(folder), str(folder / "b"), f"{folder}/*"]
    found = find_sources(paths, pass_over=told.append)
    assert found == [str(folder / name) for name in ("a.png", "b/c.FITS")]
    assert {one.id: one.reason for one in told} == {
        str(folder / name): reason for name, reason in PASSED_OVER.items()
    }
    assert len(told) == len(PASSED_OVER)
    assert not any(one.fault for one in told)


def test_what_a_run_writes_is_neither_source_nor_passed_over(folder: Path) -> None:
    for name in ("o.npy", "o.npy.json", "o.npy.skipped.jsonl", "o.npy.parts/000000.npy"):
        (folder / "b" / name).parent.mkdir(exist_ok=True)
        (folder / "b" / name).touch()
    told: list[Skipped] = []
    found = find_sources(
        [str(folder / "b")], leave_out=[folder / "b" / "o.npy"], pass_over=told.append
    )
    assert found == [str(folder / "b/c.FITS")]
    assert {Path(one.id).name for one in told} == {"README", "notes.TXT"}


def test_a_folder_of_nothing_is_an_error_even_after_another(folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match=r"no images, arrays or shards in .*empty"):
        find_sources([str(folder / "a.png"), str(folder / "empty")])


def test_links_to_folders_are_followed_but_not_around(tmp_path: Path) -> None:
    write(tmp_path, {"a/1.png": PNGS[0], "b/2.png": PNGS[1]})
    (tmp_path / "a" / "there").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "back").symlink_to(tmp_path / "a")
    assert find_sources([str(tmp_path / "a")]) == [
        str(tmp_path / "a" / "1.png"), str(tmp_path / "a" / "there" / "2.png"),
    ]  # fmt: skip
    assert len(find_sources([str(tmp_path)])) == 2


def test_one_band_files_that_look_like_one_image_are_remarked(
    embed: Embed, tmp_path: Path, capsys: Any
) -> None:
    write(tmp_path, {f"n1_{band}.fits": primary(flux) for band, flux in (("g", G), ("r", R))})
    embed(tmp_path)
    told = " ".join(capsys.readouterr().err.split())
    assert f"{tmp_path}/n1_{{g,r}}.fits look like bands of one image" in told
    (tmp_path / "n1_g.fits").rename(tmp_path / "n1_a.fits")
    embed(tmp_path)
    assert "look like" not in capsys.readouterr().err


def test_names_that_are_no_utf_8_stay_apart(tmp_path: Path) -> None:
    for name in (b"\xfe.png", b"\xff.png"):
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))).write_bytes(PNGS[0])
    ids = [entry.id for entry in entries_of(tmp_path, ReadOptions())]
    assert ids == [f"{tmp_path}/\\xfe.png", f"{tmp_path}/\\xff.png"]


def test_files_that_are_not_read_are_named(embed: Embed, tmp_path: Path, capsys: Any) -> None:
    write(tmp_path, {"a.asdf": b"#ASDF"})
    embed(tmp_path / "a.asdf", code=1)
    assert "a.asdf: ASDF is not read: save the images as FITS" in capsys.readouterr().err
    embed(tmp_path, code=2)
    assert "ASDF is not read" in capsys.readouterr().err
