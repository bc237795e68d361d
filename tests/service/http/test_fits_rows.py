"""`POST /embed` of FITS files of several rows: `hdu=all` and `stack=true`."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from astropy.io import fits

from support.fits_files import CUBE, FITS, GREY, SEVERAL, holed, png, primary, sky, written
from support.recording import Recording
from support.serving import from_npy, running
from vim_embed.http.app import create_app
from vim_embed.http.formats import image_decoder
from vim_embed.http.formats.fits_query import FitsQuery
from vim_embed.settings import Settings
from vim_embed_client.cli.main import run
from vim_embed_client.client import Client
from vim_embed_client.errors import ConfigurationError
from vim_embed_pixels.fits import FitsImages


@pytest.fixture(scope="module")
def engine() -> Recording:
    return Recording(image_size=16)


@pytest.fixture(scope="module")
def url(engine: Recording) -> Iterator[str]:
    settings = Settings(max_image_pixels=40_000, max_rows=32)
    with running(create_app(settings, engine)) as url:
        yield url


STACK = np.concatenate([sky(2, seed=n) for n in range(3)])
GALAXIES = sky(12).reshape(4, 3, 30, 30)
ROWS: dict[str, tuple[bytes, dict[str, str], list[str], int]] = {
    "a stack": (primary(STACK), {"stack": "true"}, ["--stack"], 6),
    "a stack of one": (primary(STACK[:1]), {"stack": "true"}, ["--stack"], 1),
    "cubes": (primary(GALAXIES), {"stack": "true", "bands": "2,1,0"}, ["--bands=2,1,0"], 4),
    "all HDUs in capitals": (SEVERAL, {"hdu": " ALL"}, ["--hdu=ALL"], 3),
    "all HDUs": (SEVERAL, {"hdu": "all"}, ["--hdu=all"], 3),
    "stacks in all HDUs": (
        written(*(fits.ImageHDU(STACK[n : n + 3], name=f"S{n}") for n in (0, 3))),
        {"hdu": "all", "stack": "true"}, ["--hdu=all", "--stack"], 6,
    ),
    "a packed stack": (gzip.compress(primary(STACK)), {"stack": "true"}, ["--stack"], 6),
    "large images": (
        primary(np.stack([sky(1, 190, n)[0] for n in range(3)])), {"stack": "true"}, ["--stack"], 3
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_a_file_are_those_that_the_client_makes(
    engine: Recording, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    data, query, flags, count = ROWS[name]
    if name == "large images":  # which are decoded by turns
        monkeypatch.setattr("vim_embed.http.formats.image_pool._LARGE_PIXELS", 40_000)
    path = tmp_path / "a.fits"
    path.write_bytes(data)
    output = str(tmp_path / "o.npy")
    engine.rows.clear()
    assert run(["embed", str(path), "--url", url, "-o", output, "--quiet", *flags]) == 0
    theirs = engine.rows[:]
    engine.rows.clear()
    answer = httpx.post(f"{url}/embed", params=query, content=data, headers=FITS)
    assert answer.status_code == 200, answer.text
    np.testing.assert_array_equal(engine.rows, theirs)
    assert len(from_npy(answer.content)) == len(theirs) == count
    assert len(np.unique(theirs, axis=0)) == count
    assert answer.headers["X-Vim-Embed-Fits-Rows"] == str(count)


def test_files_of_several_rows_in_one_form(engine: Recording, url: str) -> None:
    """Each image beside its file's others, whatever the others' numbers are."""
    files = [("images", ("a.fits", primary(STACK))), ("images", ("b.png", png())),
             ("images", ("c.fits", primary(STACK[4:]))),
             ("images", ("d.fits", primary(STACK)))]  # fmt: skip
    answer = httpx.post(f"{url}/embed?stack=true", files=files)
    assert answer.headers["X-Vim-Embed-Fits-Rows"] == "6,1,2,6"
    rows = from_npy(answer.content)
    np.testing.assert_array_equal(rows[7:9], rows[4:6])
    np.testing.assert_array_equal(rows[9:], rows[:6])
    told = httpx.post(
        f"{url}/embed?stack=true", files=files, headers={"Accept": "application/json"}
    ).json()["provenance"]
    assert told["fits_rows"] == "6,1,2,6"


def test_one_file_after_another_is_read_anew(url: str) -> None:
    """A process that holds a stack of one request shows nothing of it in the next."""
    whole, other = primary(STACK), primary(STACK[::-1].copy())
    query = {"stack": "true"}
    first = httpx.post(f"{url}/embed", params=query, content=whole, headers=FITS)
    refused = httpx.post(
        f"{url}/embed", params={**query, "crop": "31"}, content=whole, headers=FITS
    )
    assert refused.status_code == 422
    second = httpx.post(f"{url}/embed", params=query, content=other, headers=FITS)
    np.testing.assert_array_equal(from_npy(first.content), from_npy(second.content)[::-1])


def test_a_file_is_one_row_without_asking(url: str) -> None:
    answer = httpx.post(f"{url}/embed", content=SEVERAL, headers=FITS)
    assert len(from_npy(answer.content)) == 1
    assert "X-Vim-Embed-Fits-Rows" not in answer.headers


@pytest.mark.parametrize("query", [{"hdu": "all"}, {"stack": "true"}])
def test_a_preview_is_of_one_image(url: str, query: dict[str, str]) -> None:
    answer = httpx.post(f"{url}/preview", params=query, content=SEVERAL, headers=FITS)
    assert answer.status_code == 422
    assert "a preview is of one image" in answer.json()["error"]["message"]


@pytest.mark.parametrize("hdu", ["all", "ALL", " all"])
def test_the_client_has_a_row_for_each_image(url: str, hdu: str) -> None:
    with Client(url) as client, pytest.raises(ConfigurationError, match="vim-embed embed --hdu"):
        client.embed_images(SEVERAL, hdu=hdu)


REFUSED: dict[str, tuple[bytes, dict[str, str], int, str]] = {
    "galaxies": (primary(sky(6).reshape(2, 3, 30, 30)), {}, 422, "stack makes a row of each"),
    "a stack of one image": (GREY, {"stack": "true"}, 422, "it is no stack of images"),
    "a stack of three HDUs": (
        SEVERAL, {"stack": "true", "hdu": "Z,R,G"}, 422, "name one HDU, or all"
    ),
    "one of a stack that is blank": (
        primary(np.stack([sky(1)[0], holed()])), {"stack": "true"}, 422,
        "the image, row 1: in 15 pixels",
    ),
    "cubes in all HDUs": (CUBE, {"hdu": "all"}, 422, "5 bands: choose one or three"),
    "an HDU that begins as none": (
        SEVERAL.replace(b"XTENSION", b"XTENSI0N"), {"hdu": "all"}, 400, "behind its HDUs",
    ),
    "the last HDU begins as none": (
        b"XTENSI0N".join(SEVERAL.rsplit(b"XTENSION", 1)), {"hdu": "all"}, 400, "behind its HDUs",
    ),
    "more rows than a request may have": (
        primary(np.zeros((40, 3, 3), np.uint8)), {"stack": "true"}, 413, "40 images, over the",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_that_name_the_fix(url: str, name: str) -> None:
    data, query, status, words = REFUSED[name]
    answer = httpx.post(f"{url}/embed", params=query, content=data, headers=FITS)
    assert (answer.status_code, words in answer.json()["error"]["message"]) == (status, True), (
        answer.text
    )


def test_a_file_is_unpacked_and_opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its work would grow with the square of its rows."""
    unpackings, openings = [], []

    class Counted(gzip.GzipFile):
        def __init__(self, **given: Any) -> None:
            unpackings.append(given)
            super().__init__(**given)

    def opened(*given: Any) -> FitsImages:
        openings.append(given)
        return FitsImages(*given)

    monkeypatch.setattr(gzip, "GzipFile", Counted)
    monkeypatch.setattr("vim_embed_pixels.fits.FitsImages", opened)
    monkeypatch.setattr(image_decoder, "_limit", lambda order: None)
    data, side = gzip.compress(primary(STACK)), 8
    made = []
    with shared_memory(2 * 3 * side * side) as fd:
        decoder = image_decoder.Decoder(fd)
        for row in range(6):
            order = image_decoder.Order(
                size=len(data), side=side, interpolation="bilinear", resize_to=side,
                keep_aspect=False, max_pixels=40_000, large=40_000, seconds=9, place="the image",
                slot=0, shared=2 * 3 * side * side, again=row > 0, last=row == 5,
                row=row, fits=FitsQuery(stack=True).told(),
            )  # fmt: skip
            reply = decoder.answer(order, None if row else data)
            assert reply == {"pixels": 900}
            made.append(os.pread(fd, 3 * side * side, 0))
    assert len(unpackings) == len(openings) == 1
    assert len(set(made)) == 6


@contextmanager
def shared_memory(size: int) -> Iterator[int]:
    fd = os.memfd_create("rows")
    os.ftruncate(fd, size)
    yield fd
    os.close(fd)
