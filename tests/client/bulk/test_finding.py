"""Which files of folders are sources, and that every other one is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from vim_embed_client.bulk.sources.reader import Skipped
from vim_embed_client.bulk.sources.registry import find_sources
from vim_embed_client.errors import InputError


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
        [str(folder / "b")], leave_out=folder / "b" / "o.npy", pass_over=told.append
    )
    assert found == [str(folder / "b/c.FITS")]
    assert {Path(one.id).name for one in told} == {"README", "notes.TXT"}


def test_a_folder_of_nothing_is_an_error_even_after_another(folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match=r"no images, arrays or shards in .*empty"):
        find_sources([str(folder / "a.png"), str(folder / "empty")])
