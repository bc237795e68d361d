"""Options that change how rows are read: their effect, and that they have one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vim_embed_client.bulk.sources.options import ReadOptions
from vim_embed_client.bulk.sources.reader import Item
from vim_embed_client.bulk.sources.registry import find_sources, without_effect
from vim_embed_client.errors import InputError
from vim_embed_pixels.stretch import Stretch, to_rgb
from vim_embed_pixels.surveys import survey_stretch

from .conftest import Embed
from .row_files import (
    FLUXES,
    HSC,
    PIXELS,
    PNGS,
    SKY,
    G,
    entries_of,
    grey,
    npy,
    primary,
    table,
    tar,
    up,
    write,
)
from .survey import png

WITHOUT_EFFECT: dict[str, tuple[Mapping[str, bytes], Mapping[str, Any], list[str]]] = {
    "fluxes for images": ({"a.png": PNGS[0]}, {"stretch": HSC}, ["--survey"]),
    "what an image has no use for": (
        {"a.png": PNGS[0]},
        {"hdus": (1,), "shape": (3, 8, 8), "resize": True, "stack": True, "flip": True},
        ["--flip", "--hdu", "--resize", "--shape", "--stack"],
    ),
    "bands of grey images": (
        {"a.fits": primary(G)}, {"stretch": Stretch(bands=(2, 1, 0), blank=0.0)}, ["--bands"]
    ),
    "one file suffices": (
        {"a.png": PNGS[0], "b.fits": primary(FLUXES)}, {"stretch": HSC, "flip": True}, []
    ),
    "resizing fluxes": ({"a.npy": npy(SKY[0])}, {"resize": True}, ["--resize"]),
    "fluxes for a table of images": (
        {"a.parquet": table(x=PNGS)}, {"stretch": Stretch(blank="sky")}, ["--blank"]
    ),
    "a shape of nested lists": (
        {"a.parquet": table(x=PIXELS.tolist())}, {"shape": (3, 8, 8)}, ["--shape"]
    ),
    "a tar of images": (
        {"a.tar": tar({"1.png": PNGS[0]})}, {"stretch": Stretch(percentiles=(2, 98))},
        ["--percentiles"],
    ),
    "a tar with one FITS file": (
        {"a.tar": tar({"1.png": PNGS[0], "2.fits": primary(FLUXES)})}, {"stretch": HSC}, []
    ),
    "nothing to join": ({"a.png": PNGS[0]}, {"join_bands": ("z", "r", "g")}, ["--join-bands"]),
    "percentiles in place of a survey's limits": (
        {"a.npy": npy(PIXELS)}, {"stretch": survey_stretch("hsc", percentiles=(1.0, 99.0))},
        ["--percentiles", "--survey"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_options_without_effect_are_found(tmp_path: Path, name: str) -> None:
    files, given, idle = WITHOUT_EFFECT[name]
    write(tmp_path, files)
    options = ReadOptions(**given)
    sources = find_sources([str(tmp_path)], options=options)
    assert without_effect(sources, options) == idle


def test_options_without_effect_are_an_error(embed: Embed, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "a.png").write_bytes(PNGS[0])
    embed(tmp_path / "a.png", "--survey", "hsc", "--hdu", "SCI", code=2)
    assert "--hdu, --survey would have no effect on any of these" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--percentiles", "1,99", "--limits", "0:1"), "exclude each other"),
        (("--limits", "0:1", "--per-band"), "--per-band has no effect beside limits"),
        (("--blank", "nan"), "neither a finite number nor sky"),
        (("--join-bands", "z/r"), "not of the form z,r,g"),
    ],
)
def test_options_that_contradict_each_other(
    embed: Embed, tmp_path: Path, capsys: Any, args: tuple[str, ...], message: str
) -> None:
    (tmp_path / "a.fits").write_bytes(primary(G))
    embed(tmp_path / "a.fits", *args, code=2)
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_fits_file_and_a_jpeg_of_one_sky_are_the_same_way_up(
    embed: Embed, tmp_path: Path
) -> None:
    """A viewer puts FITS's first row at the bottom; a PNG is what it shows, as JPEG services do."""
    sky = G.copy()
    sky[:4] += 5  # bright in the south
    shown = to_rgb(sky, Stretch())[:, ::-1]
    (tmp_path / "a.fits").write_bytes(primary(sky))
    (tmp_path / "a.png").write_bytes(png(shown))
    ids, rows = embed(tmp_path)
    assert [Path(row_id).name for row_id in ids] == ["a.fits", "a.png"]
    np.testing.assert_array_equal(rows[0], rows[1])
    _, turned = embed(tmp_path, "--flip")
    np.testing.assert_array_equal(turned[1], rows[1])
    assert (turned[0] != rows[0]).any()


def test_the_middle_of_every_image_is_taken_before_it_is_stretched(tmp_path: Path) -> None:
    sky = np.pad(SKY[:1], ((0, 0), (3, 4), (5, 5)), constant_values=900)
    wide = np.pad(PIXELS[0], ((0, 0), (2, 2), (1, 2)), constant_values=77)
    side = PIXELS.shape[-1]
    write(tmp_path, {
        "a.fits": primary(sky[0]), "b.npy": npy(sky[0]), "c.npy": npy(wide), "d.png": png(wide),
        "e.tar": tar({"1.png": png(wide)}), "f.parquet": table(x=[png(wide)]),
        "g.png": png(PIXELS[1][:, 1:]),
    })  # fmt: skip
    found: dict[str, Any] = {}
    for crop, names in ((16, "ab"), (side, "cdefg")):
        for entry in entries_of(tmp_path, ReadOptions(crop=crop)):
            place = Path(entry.id).name[0] if "tar" not in entry.id else "e"
            if place in names and isinstance(entry, Item):
                found[place] = entry.data
                if callable(entry.data) and place != "g":
                    found[place] = entry.data()
    np.testing.assert_array_equal(found.pop("a"), up(grey(SKY[0])))
    np.testing.assert_array_equal(found.pop("b"), grey(SKY[0]))
    for place in "cdef":
        np.testing.assert_array_equal(found.pop(place), PIXELS[0], err_msg=place)
    with pytest.raises(InputError, match=f"fewer than --crop {side} takes"):
        found.pop("g")()
