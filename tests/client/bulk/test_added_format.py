"""The format that docs/contributing.md adds, as an example, does what a format has to do."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vim_embed_client.bulk.sources import registry
from vim_embed_client.bulk.sources.options import ReadOptions
from vim_embed_client.bulk.sources.reader import Item
from vim_embed_client.errors import InputError
from vim_embed_pixels.stretch import Stretch, to_rgb

PAGE = (Path(__file__).parents[3] / "docs" / "contributing.md").read_text()
FLUXES = np.arange(12, dtype=np.float32).reshape(3, 4)


def _block(language: str, sign: str) -> str:
    """The block within a list that has this sign."""
    blocks = re.findall(rf"^ +```{language}\n(.*?)^ +```$", PAGE, re.DOTALL | re.MULTILINE)
    (found,) = (block for block in blocks if sign in block)
    return textwrap.dedent(found)


@pytest.fixture(autouse=True)
def _added(monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {**vars(registry), "__name__": "pfm"}
    exec(_block("python", "class PfmReader"), names)
    row = eval(_block("text", "Format("), names)
    monkeypatch.setattr(registry, "FORMATS", (*registry.FORMATS, row))


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "m31.pfm"
    path.write_bytes(b"Pf\n4 3\n-1.0\n" + FLUXES.tobytes())
    return str(path)


def test_it_is_found_and_its_rows_are_fluxes_upside_down(file: str, tmp_path: Path) -> None:
    assert registry.find_sources([str(tmp_path)]) == [file]
    reader = registry.open_reader(file, ReadOptions())
    (entry,) = reader.read(0)
    assert isinstance(entry, Item)
    assert callable(entry.data)
    assert (entry.id, reader.count(), list(reader.read(1))) == (file, 1, [])
    np.testing.assert_array_equal(entry.data(), to_rgb(FLUXES[::-1], Stretch()))


def test_the_options_that_it_names_are_those_with_an_effect(file: str) -> None:
    stretched = ReadOptions(stretch=Stretch(limits=((0.0, 5.0),)))
    assert registry.without_effect([file], stretched) == []
    assert registry.without_effect([file], ReadOptions(stack=True)) == ["--stack"]


@pytest.mark.parametrize("left", [0, 5, 20, 59])
def test_a_damaged_file_is_named(file: str, left: int) -> None:
    whole = Path(file).read_bytes()
    Path(file).write_bytes(whole[:left])
    with pytest.raises(InputError, match=r"as PFM|float map"):
        list(registry.open_reader(file, ReadOptions()).read(0))
