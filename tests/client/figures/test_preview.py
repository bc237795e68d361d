"""`vim-embed preview` shows the very pixels that a model gets; `embed` says what is cut off."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from astropy.io import fits
from matplotlib.backends.backend_agg import FigureCanvasAgg
from numpy.typing import NDArray
from PIL import Image

from support.figure_layout import assert_apart_and_within
from support.recording import Recording
from support.serving import running
from vim_embed.http.app import create_app
from vim_embed.settings import Settings
from vim_embed_client import Client
from vim_embed_client.bulk.preview import PreviewRow, preview_rows
from vim_embed_client.bulk.sender import fingerprint
from vim_embed_client.bulk.sources.options import ReadOptions
from vim_embed_client.bulk.sources.registry import find_sources
from vim_embed_client.cli.main import run
from vim_embed_client.figures.contact_sheet import contact_sheet
from vim_embed_pixels.clipping import Clipped, clipped, remark
from vim_embed_pixels.surveys import survey_stretch

SIZE = 24
Array = NDArray[Any]


@pytest.fixture(scope="module")
def engine() -> Recording:
    return Recording(image_size=SIZE)


@pytest.fixture(scope="module")
def url(engine: Recording) -> Iterator[str]:
    with running(create_app(Settings(), engine)) as url:
        yield url


def sky(bands: int = 5, side: int = 40, seed: int = 0) -> Array:
    """(bands, side, side) fluxes: a bright spot above the middle, on a noisy sky."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    spot = np.exp(-np.hypot(x - side / 2, y - side / 3) / 5)
    made: Array = spot * np.linspace(0.5, 1.5, bands)[:, None, None]
    return (made + rng.normal(0, 0.05, (bands, side, side))).astype(np.float32)


def picture(side: int = 50, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (side, side + 7, 3), dtype=np.uint8)


def encoded(array: Array, kind: str, **more: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **more)
    return buffer.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture(seed=1), "JPEG", exif=exif)


def in_tar(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def write_every_source(folder: Path) -> None:
    fits.PrimaryHDU(sky()).writeto(folder / "a.fits")
    np.save(folder / "b.npy", np.stack([sky(seed=1), sky(seed=2)]))
    (folder / "c.png").write_bytes(encoded(picture(), "PNG"))
    (folder / "d.jpg").write_bytes(turned())
    (folder / "e.png").write_bytes(encoded(picture(SIZE)[:, :SIZE], "PNG"))
    (folder / "f.gif").write_bytes(encoded(picture(seed=3)[..., 0], "GIF"))
    (folder / "g.tar").write_bytes(in_tar("1.webp", encoded(picture(seed=4), "WEBP")))
    np.save(folder / "h.npy", picture(seed=5).transpose(2, 0, 1))
    column = pa.array([encoded(picture(seed=6), "PNG")])
    pyarrow.parquet.write_table(pa.table({"image": column}), folder / "i.parquet")


@pytest.mark.parametrize("crop", [None, 20])
def test_a_preview_has_the_very_pixels_that_the_model_gets(
    engine: Recording, url: str, tmp_path: Path, crop: int | None
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_every_source(folder)
    args = ["--bands", "3,1,0", "--resize", *(["--crop", f"{crop}"] if crop else [])]
    options = ReadOptions(stretch=survey_stretch(None, bands=(3, 1, 0)), resize=True, crop=crop)
    one_by_one = ["--batch-rows", "1", "--in-flight", "1", "--quiet"]
    engine.rows.clear()
    output = str(tmp_path / "o.npy")
    assert run(["embed", str(folder), "--url", url, "-o", output, *args, *one_by_one]) == 0
    with Client(url) as client:
        spec = client.models()["models"][0]["preprocessing"]
    shown = list(preview_rows(find_sources([str(folder)]), options, spec, 40))
    assert len(shown) == len(engine.rows) == 10
    for row, sent in zip(shown, engine.rows, strict=True):
        assert isinstance(row, PreviewRow)
        assert sent.dtype == np.uint8
        np.testing.assert_array_equal(row.pixels, sent, err_msg=row.id)


def test_normalised_floats_are_shown_as_the_rgb_that_they_stand_for(tmp_path: Path) -> None:
    spec: Any = {"image_size": SIZE, "interpolation": "bicubic", "mean": [0.4, 0.5, 0.6],
                 "std": [0.2, 0.3, 0.4]}  # fmt: skip
    rgb = picture(SIZE)[:, :SIZE].transpose(2, 0, 1)
    mean, std = (np.reshape(spec[name], (3, 1, 1)) for name in ("mean", "std"))
    np.save(tmp_path / "a.npy", ((rgb / 255 - mean) / std).astype(np.float32))
    (row,) = preview_rows([str(tmp_path / "a.npy")], ReadOptions(), spec, 4)
    assert isinstance(row, PreviewRow)
    np.testing.assert_array_equal(row.pixels, rgb)


def test_rows_are_spread_over_the_sources(tmp_path: Path) -> None:
    for name in range(9):
        np.save(tmp_path / f"{name}.npy", picture(seed=name)[None].repeat(5, axis=0))
    sources = find_sources([str(tmp_path)])

    def ids(count: int, some: Sequence[str]) -> list[str]:
        return [Path(row.id).name for row in preview_rows(some, ReadOptions(), None, count)]

    assert ids(3, sources) == ["0.npy#0", "4.npy#0", "8.npy#0"]
    assert ids(4, sources[:2]) == ["0.npy#0", "0.npy#1", "1.npy#0", "1.npy#1"]
    assert ids(7, sources[:1]) == [f"0.npy#{row}" for row in range(5)]


def grey(*values: int) -> Array:
    return np.array([[values]] * 3, np.uint8)


@pytest.mark.parametrize(
    ("pixels", "shares", "words"),
    [
        (grey(0, 0, 0, 200), Clipped(0.75, 0.0), "half of the pixels or more are black"),
        (grey(255, 90, 60, 40), Clipped(0.0, 0.25), "a tenth of the pixels or more are white"),
        (grey(10, 60, 100, 200), Clipped(0.0, 0.0), ""),
        (grey(0, 12, 16, 3), Clipped(0.25, 0.0), "nearly black"),
        (grey(99, 100, 101, 99), Clipped(0.0, 0.0), "all but constant"),
        (np.array([[[0, 255]], [[9, 0]], [[200, 0]]], np.uint8), Clipped(0.0, 0.5), "white (255)"),
    ],
)  # fmt: skip
def test_shares_of_black_and_white(pixels: Array, shares: Clipped, words: str) -> None:
    assert clipped(pixels) == shares
    assert words in remark(pixels)
    assert bool(words) == bool(remark(pixels))


def test_the_command(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIM_EMBED_URL", raising=False)
    folder = tmp_path / "in"
    folder.mkdir()
    for seed in range(3):
        fits.PrimaryHDU(sky(1, seed=seed)[0]).writeto(folder / f"{seed}.fits")
    (folder / "bad.fits").write_bytes(b"SIMPLE  = nothing")
    (folder / "notes.txt").write_text("no image")
    sheet = tmp_path / "sheet.png"
    args = [str(folder), "-o", str(sheet), "--limits=0.1:0.5", "--json"]
    assert run(["preview", *args]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [Path(row["id"]).name for row in told["rows"]] == ["0.fits", "1.fits", "2.fits"]
    assert {tuple(row["size"]) for row in told["rows"]} == {(40, 40)}
    for seed, row in enumerate(told["rows"]):
        below = float((sky(1, seed=seed)[0] < 0.1).mean())
        assert row["black"] == pytest.approx(below, abs=0.02)
        assert "are black (0)" in row["remark"]
    assert told["model"] is None
    assert [group["first"] for group in told["skipped_reasons"]] == [[f"{folder}/bad.fits"]]
    assert told["passed_over_reasons"][0]["count"] == 1
    with Image.open(sheet) as drawn:
        assert drawn.width > 900


def test_the_help_says_what_happens_without_a_service(capsys: Any) -> None:
    assert run(["preview", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "[default: VIM_EMBED_URL, else none: images stay as the stretch leaves them]" in told


def test_what_the_command_refuses(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.delenv("VIM_EMBED_URL", raising=False)
    (tmp_path / "a.png").write_bytes(encoded(picture(), "PNG"))
    np.save(tmp_path / "flat.npy", np.zeros((9, 9), np.float32))
    for args, code, words in (
        (["a.png", "--survey", "hsc"], 2, "--survey would have no effect"),
        (["a.png", "--model", "x"], 2, "give its --url too"),
        (["flat.npy"], 1, "there is nothing to draw"),
        (["gone.png"], 2, "gone.png"),
    ):
        path = str(tmp_path / args[0])
        assert run(["preview", path, *args[1:], "-o", str(tmp_path / "s.png")]) == code
        assert words in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "s.png").exists()


def test_the_sheet_is_laid_out_apart(tmp_path: Path) -> None:
    rows = [
        PreviewRow(
            id=f"a/{n}", pixels=picture(seed=n).transpose(2, 0, 1), clipped=Clipped(n / 20, 0),
            remark="all but constant" if n == 3 else "",
        )
        for n in range(11)
    ]  # fmt: skip
    told = [row.id for row in rows], "eleven rows", ["1: all but constant"]
    unresized = contact_sheet(rows, *told, resized=False)
    assert unresized.texts[0].get_text() == "What the model sees, before it is resized"
    figure = contact_sheet(rows, *told)
    assert figure.texts[0].get_text() == "What the model sees"
    FigureCanvasAgg(figure).draw()
    boxes = [text.get_window_extent() for text in figure.texts]
    assert_apart_and_within(figure, boxes + [axes.bbox for axes in figure.axes])
    framed = [axes.spines["top"].get_linewidth() > 1 for axes in figure.axes]
    assert framed == [n == 3 for n in range(11)]


def test_embed_says_that_images_are_cut_off(url: str, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for seed in range(3):
        fits.PrimaryHDU(sky(1, seed=seed)[0]).writeto(folder / f"{seed}.fits")
    dark = next(  # one that its bytes choose to be looked at
        data for seed in range(400)
        if fingerprint(data := encoded(picture(8, seed) // 40, "PNG"), "encoded") % 16 == 0
    )  # fmt: skip
    (folder / "dark.png").write_bytes(dark)
    output = str(tmp_path / "o.npy")
    args = ["embed", str(folder), "--url", url, "-o", output]
    assert run([*args, "--limits=0.1:0.5", "--json"]) == 0
    told = capsys.readouterr()
    notes = json.loads(told.out)["notes"]
    assert [(note["count"], note["reason"][:12]) for note in notes] == [
        (3, "half of the "), (1, "nearly black"),
    ]  # fmt: skip
    assert "or more are black (0)" in notes[0]["reason"]
    assert "nearly black" in " ".join(told.err.split())
    (folder / "dark.png").unlink()
    assert run([*args, "--percentiles", "1,99", "--json", "--quiet", "--overwrite"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == []
