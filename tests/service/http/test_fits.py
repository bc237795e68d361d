"""`POST /embed` of FITS files: the pixels that the client makes of them, and bounds by header.

Files of several rows: test_fits_rows.py; compressed ones: test_fits_tiles.py."""

from __future__ import annotations

import bz2
import gzip
import io
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from astropy.io import fits
from PIL import Image

from support.fits_files import (
    COMPRESSED,
    CUBE,
    FITS,
    GREY,
    SEVERAL,
    holed,
    png,
    primary,
    sky,
    tiled,
    written,
)
from support.recording import Recording
from support.serving import from_npy, running
from vim_embed.errors import MalformedRequest, PayloadTooLarge
from vim_embed.http.app import create_app
from vim_embed.http.formats.fits import check_headers
from vim_embed.settings import Settings
from vim_embed_client.cli.main import run
from vim_embed_client.client import Client

SIZE = 16
MOST_PIXELS = 40_000


@pytest.fixture(scope="module")
def engine() -> Recording:
    return Recording(image_size=SIZE)


@pytest.fixture(scope="module")
def url(engine: Recording) -> Iterator[str]:
    settings = Settings(max_image_pixels=MOST_PIXELS, max_rows=32)
    with running(create_app(settings, engine)) as url:
        yield url


def scaled(**cards: str) -> bytes:
    """Fluxes as whole numbers. cards: their values as they are written."""
    hdu = fits.ImageHDU(sky(1)[0])
    hdu.scale("int16", bzero=1.0, bscale=0.001)
    hdu.header["BLANK"] = -32768
    data = written(hdu)
    for key, value in cards.items():
        at = data.index(f"{key:8}= ".encode())
        data = data[: at + 10] + value.ljust(70).encode() + data[at + 80 :]
    return data


SAME: dict[str, tuple[bytes, dict[str, str]]] = {
    "grey": (GREY, {}),
    "gzip": (gzip.compress(GREY), {}),
    "tiles": (COMPRESSED, {}),
    "scaled integers": (scaled(), {}),
    "top down": (primary(sky(1)[0], ROWORDER="TOP-DOWN"), {}),
    "one of one": (primary(sky(3)[None]), {"bands": "2,1,0"}),
    "colours of the header": (primary(sky(3), BANDS="grz"), {}),
    "bands by name": (primary(sky(5), BANDS="grizy"), {"bands": "z,r,g"}),
    "bands, limits": (CUBE, {"bands": "3,1,0", "limits": "-0.1:1.5", "stretch": "sqrt"}),
    "survey": (CUBE, {"survey": "hsc"}),
    "the head's survey": (CUBE, {"survey": "hsc@head"}),
    "percentiles": (CUBE, {"bands": "4", "percentiles": "2,98", "per_band": "true"}),
    "lupton": (
        CUBE, {"bands": "4,2,0", "stretch": "lupton", "limits": "0:1", "softening": "5"},
    ),
    "zscale, crop and flip": (
        CUBE, {"bands": "1", "stretch": "zscale", "crop": "17", "flip": "true"},
    ),
    "limits with units": (CUBE, {"bands": "1", "limits": "0:27mag", "zero_point": "27"}),
    "units of the file": (primary(sky(1)[0], BUNIT="uJy"), {"limits": "-50nJy:2uJy"}),
    "blank": (primary(holed()), {"blank": "sky"}),
    "the image, not the mask": (SEVERAL, {}),
    "an HDU": (SEVERAL, {"hdu": "R"}),
    "three HDUs": (SEVERAL, {"hdu": "Z,R,G"}),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_the_service_makes_the_pixels_that_the_client_makes(
    engine: Recording, url: str, tmp_path: Path, name: str
) -> None:
    data, query = SAME[name]
    path = tmp_path / "a.fits"
    path.write_bytes(data)
    flags = [
        f"--{key.replace('_', '-')}" + ("" if value == "true" else f"={value}")
        for key, value in query.items()
    ]
    engine.rows.clear()
    output = str(tmp_path / "o.npy")
    assert run(["embed", str(path), "--url", url, "-o", output, "--quiet", *flags]) == 0
    answer = httpx.post(f"{url}/embed", params=query, content=data, headers=FITS)
    assert answer.status_code == 200, answer.text
    ours, theirs = engine.rows
    np.testing.assert_array_equal(ours, theirs)
    assert len(np.unique(ours)) > 20


def test_fits_and_other_images_in_one_form(url: str) -> None:
    files = [("images", ("a.fits", GREY)), ("images", ("b.png", png())),
             ("images", ("c.fits.gz", gzip.compress(GREY)))]  # fmt: skip
    rows = from_npy(httpx.post(f"{url}/embed?crop=20", files=files).content)
    alone = httpx.post(f"{url}/embed?crop=20", content=GREY, headers={"Content-Type": "image/fits"})
    np.testing.assert_array_equal(rows[0], from_npy(alone.content)[0])
    np.testing.assert_array_equal(rows[0], rows[2])
    assert (rows[0] != rows[1]).any()


def test_gzip_of_several_members(url: str) -> None:
    """As bgzip and pigz make them, or `cat`: the HDU that is meant may be in a later one."""
    cut = 2880  # the first HDU has a header alone
    expected = httpx.post(f"{url}/embed", content=SEVERAL, headers=FITS)
    for at in (1, 100, cut, 2 * cut, len(SEVERAL) - 1):
        packed = gzip.compress(SEVERAL[:at]) + gzip.compress(SEVERAL[at:]) + bytes(512)
        answer = httpx.post(f"{url}/embed", content=packed, headers=FITS)
        assert answer.status_code == 200, answer.text
        assert answer.content == expected.content


REFUSED: dict[str, tuple[bytes, dict[str, str], int, str]] = {
    "no FITS": (png(), {}, 400, "does not begin with SIMPLE"),
    "nothing to choose": (CUBE, {}, 422, "5 bands: choose one or three with bands=R,G,B"),
    "NaN": (primary(holed()), {}, 422, "give blank=sky, or blank=VALUE"),
    "flat": (primary(np.ones((9, 9), np.float32)), {}, 422, "too flat"),
    "five axes": (primary(sky(3)[None, None]), {"stack": "true"}, 422, "the most axes"),
    "a spectrum": (primary(sky(1)[0, 0]), {}, 422, "no image: it has PRIMARY (30 float32)"),
    "a scale of letters": (scaled(BSCALE="'0.001'"), {}, 422, "BSCALE is '0.001', and no number"),
    "a zero of letters": (scaled(BZERO="'1'"), {}, 422, "BZERO is '1', and no number"),
    "a blank of letters": (
        scaled(BLANK="'5'"), {}, 422, "BLANK is '5', and no whole number: correct its header",
    ),
    "a blank of halves": (scaled(BLANK="0.5"), {}, 422, "BLANK is 0.5, and no whole number"),
    "no such HDU": (SEVERAL, {"hdu": "SCI"}, 422, "no HDU SCI: it has 0 PRIMARY, 1 DQ, 2 G"),
    "a band by a name": (CUBE, {"bands": "z"}, 422, "its bands have no names"),
    "bands of one": (GREY, {"bands": "0"}, 422, "one band, so that bands has no effect"),
    "bands of a survey's one": (
        GREY, {"survey": "hsc", "bands": "0"}, 422, "one band, so that bands has no effect",
    ),
    "other bytes": (GREY + b"junk" * 720, {}, 400, "2,880 bytes behind its HDUs"),
    "other bytes in gzip": (gzip.compress(GREY + b"junk" * 720), {}, 400, "behind its HDUs"),
    "two files": (GREY + CUBE, {}, 400, "another FITS file behind it"),
    "no standard": (
        GREY.replace(b"SIMPLE  =                    T", b"SIMPLE  =                    F"), {}, 422,
        "HDU 0 does not begin as one of standard FITS",
    ),
    "a byte more": (GREY[:5000] + b"\r" + GREY[5000:], {}, 400, "8,641 bytes, which are no whole"),
    "a byte less": (gzip.compress(GREY[:5000] + GREY[5001:]), {}, 400, "lost or added on its way"),
    "fewer columns than there are": (
        GREY.replace(b"NAXIS1  =                   30", b"NAXIS1  =                   20"), {},
        400, "a header is damaged",
    ),
    "no such stretch": (GREY, {"stretch": "cube"}, 422, "no stretch 'cube': use one of linear"),
    "no such survey": (GREY, {"survey": "sdss"}, 422, "no survey 'sdss'"),
    "contradiction": (GREY, {"limits": "0:1", "percentiles": "1,99"}, 422, "exclude each other"),
    "limits": (GREY, {"limits": "1"}, 422, "'1' is not of the form -0.06:1.5"),
    "units": (GREY, {"limits": "0:22mag"}, 422, "give zero_point, the AB magnitude"),
    "crop": (GREY, {"crop": "31"}, 422, "30×30 pixels, fewer than crop=31"),
    "a table": (
        written(fits.BinTableHDU.from_columns([fits.Column("x", "E", array=[1.0])])), {}, 422,
        "no image but tables (a table): `vim-embed embed` takes",
    ),
    "bzip2": (bz2.compress(GREY), {}, 400, "packed with bzip2: unpack it"),
    "zip": (b"PK\3\4" + GREY, {}, 400, "packed with zip: unpack it"),
    "too many pixels": (
        primary(np.zeros((201, 200), np.uint8)), {}, 413, "over the limit of 40000",
    ),
    "tiles that claim more": (
        written(fits.CompImageHDU(np.zeros((3000, 3000), np.float32))), {}, 413, "over the limit",
    ),
    "cut short": (GREY[:-2880], {}, 400, "claims 3,600 bytes of data"),
    "gzip cut short": (gzip.compress(GREY)[:-20], {}, 400, "gzip stream has no end"),
    "a bomb of gzip members": (
        gzip.compress(GREY) + gzip.compress(bytes(1 << 24)), {}, 413, "unpacks to over",
    ),
    "gzip and other bytes": (gzip.compress(GREY) + b"junk", {}, 400, "what follows it"),
    "gzip of an image": (gzip.compress(png()), {}, 400, "no FITS file inside"),
    "more tiles than the size takes": (tiled(ZNAXIS2=20), {}, 422, "30 tiles, and 20 make"),
    "fewer tiles than the size takes": (tiled(ZNAXIS2=31), {}, 422, "30 tiles, and 31 make"),
    "larger tiles": (tiled(ZTILE2=7), {}, 422, "30 tiles, and 5 make"),
    "a gzip bomb": (gzip.compress(bytes(1 << 25)), {}, 413, "unpacks to over"),
    "survey of a PNG": (png(), {"survey": "hsc"}, 422, "survey would have no effect"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_that_name_the_fix(url: str, name: str) -> None:
    data, query, status, words = REFUSED[name]
    headers = {"Content-Type": "image/png"} if "PNG" in name else FITS
    answer = httpx.post(f"{url}/embed", params=query, content=data, headers=headers)
    assert (answer.status_code, words in answer.json()["error"]["message"]) == (status, True), (
        answer.text
    )


def test_parameters_of_fits_are_an_error_beside_an_array(url: str) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((3, SIZE, SIZE), np.uint8))
    answer = httpx.post(
        f"{url}/embed?bands=2,1,0&flip=true", content=buffer.getvalue(),
        headers={"Content-Type": "application/x-npy"},
    )  # fmt: skip
    assert answer.status_code == 422
    assert "bands, flip would have no effect" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("data", "kind"), [(CUBE, "application/fits"), (png(), "image/png")])
def test_a_preview_is_what_the_model_sees(
    engine: Recording, url: str, data: bytes, kind: str
) -> None:
    query = {"bands": "4,2,0", "limits": "0.2:1", "crop": "20"} if data is CUBE else {}
    headers = {"Content-Type": kind}
    engine.rows.clear()
    assert httpx.post(f"{url}/embed", params=query, content=data, headers=headers).is_success
    answer = httpx.post(f"{url}/preview", params=query, content=data, headers=headers)
    assert answer.headers["Content-Type"] == "image/png"
    with Image.open(io.BytesIO(answer.content)) as image:
        shown = np.asarray(image).transpose(2, 0, 1)
    (sent,) = engine.rows
    np.testing.assert_array_equal(shown, sent)
    black, white = (float(answer.headers[f"X-Vim-Embed-{name}"]) for name in ("Black", "White"))
    assert black == pytest.approx((sent == 0).all(axis=0).mean(), abs=1e-6)
    assert white == pytest.approx((sent == 255).any(axis=0).mean(), abs=1e-6)


def test_a_preview_of_an_array_is_refused(url: str) -> None:
    headers = {"Content-Type": "application/x-npy"}
    answer = httpx.post(f"{url}/preview", content=b"x", headers=headers)
    assert answer.status_code == 415
    assert "one encoded image or FITS file" in answer.json()["error"]["message"]


def test_a_service_without_astropy_names_the_extra(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = util.find_spec
    monkeypatch.setattr(
        "vim_embed.http.formats.fits.find_spec",
        lambda name: None if name == "astropy" else found(name),
    )
    answer = httpx.post(f"{url}/embed", content=GREY, headers=FITS)
    assert answer.status_code == 415
    assert "vim-embed[astro]" in answer.json()["error"]["message"]


def header(*cards: str) -> bytes:
    return b"".join(card.ljust(80).encode() for card in (*cards, "END")).ljust(2880)


EMPTY = ("SIMPLE  =                    T", "BITPIX  =                    8")
NO_AXES = (*EMPTY, "NAXIS   =                    0")
EXTENSION = (
    "XTENSION= 'IMAGE   '",
    "BITPIX  =                    8",
    "NAXIS   =                    0",
)
HEADERS: dict[str, tuple[bytes, type[Exception], str]] = {
    "no END": (b"SIMPLE  =".ljust(5760), MalformedRequest, "no END"),
    "half a block": (header(*NO_AXES)[:160], MalformedRequest, "no END"),
    "huge axes": (
        header(*EMPTY, "NAXIS   = 2", "NAXIS1  = 999999999", "NAXIS2  = 999999999"),
        MalformedRequest, "claims 999,999,998,000,000,001 bytes",
    ),
    "many axes": (header(*EMPTY, "NAXIS   = 999"), MalformedRequest, "999 axes"),
    "a negative side": (header(*EMPTY, "NAXIS   = 1", "NAXIS1  = -9"), MalformedRequest, "below 0"),
    "a negative count": (
        header(*EMPTY, "NAXIS   = 1", "NAXIS1  = 9", "GCOUNT  = -1"), MalformedRequest, "below 0",
    ),
    "no side": (
        header(*EMPTY, "NAXIS   = 2", "NAXIS2  = 9"), MalformedRequest, "lacks NAXIS1$",
    ),
    "no depth": (
        header(EMPTY[0], "BITPIX  = 7", "NAXIS   = 1", "NAXIS1  = 9"), MalformedRequest,
        "BITPIX is none of 8, 16",
    ),
    "two sides": (
        header(*EMPTY, "NAXIS   = 2", "NAXIS1  = 9", "NAXIS2  = 9", "NAXIS1  = 3"),
        MalformedRequest, "NAXIS1 twice, and they differ",
    ),
    "signs": (header(*EMPTY, "NAXIS   = --1"), MalformedRequest, "NAXIS is no whole number"),
    "no number": (header(*EMPTY, "NAXIS   = 'two'"), MalformedRequest, "NAXIS is no whole number"),
    "many HDUs": (
        header(*NO_AXES) + 256 * header(*EXTENSION), PayloadTooLarge, "over 256 HDUs",
    ),
    "a long header": (
        b"SIMPLE  =".ljust(80) + b"HISTORY x".ljust(80) * 30_000, PayloadTooLarge, "of headers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("padding", [b"\0" * 28_800, b" " * 2880])
def test_padding_behind_the_last_hdu_is_none(url: str, padding: bytes) -> None:
    expected = httpx.post(f"{url}/embed", content=GREY, headers=FITS)
    for query in ({}, {"hdu": "all"}):
        answer = httpx.post(f"{url}/embed", params=query, content=GREY + padding, headers=FITS)
        assert answer.content == expected.content


def test_padding_may_be_left_out(url: str) -> None:
    expected = httpx.post(f"{url}/embed", content=GREY, headers=FITS)
    answer = httpx.post(f"{url}/embed", content=GREY[: 2880 + 3600], headers=FITS)
    assert answer.content == expected.content


def unreadable_last(*names: str) -> bytes:
    """HDUs of these names, of which astropy cannot read the last."""
    tiles = fits.CompImageHDU(sky(1)[0], name=names[-1])
    data = written(*(fits.ImageHDU(sky(1)[0], name=name) for name in names[:-1]), tiles)
    return data.replace(b"ZNAXIS2 =", b"ZNAXIS7 =")


@pytest.mark.parametrize(
    ("names", "query", "sound"),
    [
        (("A", "SCI"), {}, False),  # which is the one that is meant, perhaps
        (("SCI", "A"), {}, True),
        (("A", "SCI"), {"hdu": "A"}, True),
        (("A", "SCI"), {"hdu": "1"}, True),
        (("A", "SCI"), {"hdu": "-1"}, False),
        (("A", "SCI"), {"hdu": "all"}, False),
    ],
)
def test_an_hdu_that_cannot_be_read_is_no_reason_to_take_another(
    url: str, names: tuple[str, ...], query: dict[str, str], sound: bool
) -> None:
    data = unreadable_last(*names)
    answer = httpx.post(f"{url}/embed", params=query, content=data, headers=FITS)
    assert answer.is_success == sound, answer.text
    if not sound:
        assert answer.status_code == 422
        assert "HDU 2 cannot be read" in answer.text
        assert "name the image that is meant with hdu" in answer.text


def summed(*hdus: Any) -> bytes:
    buffer = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(buffer, checksum=True)
    return buffer.getvalue()


def damaged(data: bytes) -> bytes:
    """A bit of the last HDU's data is another."""
    with fits.open(io.BytesIO(data), disable_image_compression=True) as file:
        at = file[-1].fileinfo()["datLoc"] + 300
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


IMAGES = [fits.ImageHDU(sky(1, seed=n)[0], name=name) for n, name in enumerate("AB")]
SUMMED: dict[str, tuple[bytes, dict[str, str]]] = {
    "an image": (summed(IMAGES[0]), {}),
    "in gzip": (summed(IMAGES[0]), {}),
    "a stack": (summed(fits.ImageHDU(sky(3))), {"stack": "true"}),
    "all HDUs": (summed(*IMAGES), {"hdu": "all"}),
    "bands": (summed(*IMAGES), {"hdu": "A,A,B"}),
    "tiles": (summed(fits.CompImageHDU(sky(1)[0])), {}),
}


@pytest.mark.parametrize("name", SUMMED)
def test_data_that_their_sum_does_not_fit(url: str, tmp_path: Path, name: str) -> None:
    sound, query = SUMMED[name]
    packed = gzip.compress if name == "in gzip" else bytes
    answer = httpx.post(f"{url}/embed", params=query, content=packed(sound), headers=FITS)
    assert answer.is_success, answer.text
    data = packed(damaged(sound))
    answer = httpx.post(f"{url}/embed", params=query, content=data, headers=FITS)
    assert answer.status_code == 422
    assert "DATASUM" in answer.json()["error"]["message"]
    path = tmp_path / "a.fits"
    path.write_bytes(data)
    flags = [f"--{key}" + ("" if value == "true" else f"={value}") for key, value in query.items()]
    output = str(tmp_path / "o.npy")
    assert run(["embed", str(path), "--url", url, "-o", output, "--quiet", *flags]) == 1


def test_keys_that_only_look_like_those_of_axes() -> None:
    """A header may have whatever other keys it likes."""
    others = ("NAXISX  = 'abc'", "NAXIS10 = 'x'", "COMMENT NAXIS1  = 3", "HISTORY NAXIS1  = 4")
    assert check_headers(header(*NO_AXES, *others)) == 2880


def test_what_a_sum_does_not_tell(url: str) -> None:
    """Of other HDUs, of headers, which many tools edit, and of a DATASUM without a value."""
    others = damaged(summed(*IMAGES))
    whole = SUMMED["an image"][0]
    at = whole.rindex(b"DATASUM")
    for data in (
        others,
        whole.replace(b"EXTNAME = 'A  ", b"EXTNAME = 'SCI"),
        whole[:at] + b"DATASUM = ''".ljust(80) + whole[at + 80 :],
    ):
        answer = httpx.post(f"{url}/embed", content=data, headers=FITS)
        assert answer.is_success, answer.text


@pytest.mark.parametrize("name", HEADERS)
def test_headers_are_bounded(name: str) -> None:
    data, kind, words = HEADERS[name]
    with pytest.raises(kind, match=words):
        check_headers(data)


def test_an_axis_of_none_is_that_of_random_groups_if_the_header_says_so() -> None:
    sides = ("NAXIS   = 2", "NAXIS1  = 0", "NAXIS2  = 5000")
    assert check_headers(header(*EMPTY, *sides)) == 2880
    groups = header(*EMPTY, *sides, "GROUPS  =                    T / random", "GCOUNT  = 1")
    assert check_headers(groups + bytes(5760)) == 8640


def test_where_the_last_hdu_ends() -> None:
    whole = header(*NO_AXES) + header(*EXTENSION)
    assert check_headers(whole) == check_headers(whole + b"junk" * 720) == len(whole)
    for data in (GREY, CUBE, SEVERAL, COMPRESSED, scaled()):
        assert check_headers(data) == len(data)


@pytest.mark.parametrize(
    ("given", "query"),
    [
        ({"bands": (3, 1, 0), "limits": (-0.1, 2), "stretch": "asinh"},
         "bands=3,1,0&stretch=asinh&limits=-0.1:2"),
        ({"bands": "z,r,g", "limits": ((0, 1), (0, 2), (0, 3)), "flip": True},
         "bands=z,r,g&limits=0:1,0:2,0:3&flip=true"),
        ({"bands": [2], "percentiles": (1, 99.5), "blank": "sky", "crop": 20},
         "bands=2&percentiles=1,99.5&blank=sky&crop=20"),
    ],
)  # fmt: skip
def test_the_client_takes_the_options_and_the_answer_records_them(
    url: str, engine: Recording, given: dict[str, Any], query: str
) -> None:
    file = primary(sky(4), BANDS="grzy" if "z,r,g" not in str(given) else "griz")
    answer = httpx.post(f"{url}/embed?{query}", content=file, headers=FITS).raise_for_status()
    by_query = engine.rows.pop()
    with Client(url) as client:
        found = client.embed_images(file, **given)
    np.testing.assert_array_equal(engine.rows.pop(), by_query)
    np.testing.assert_array_equal(found.embeddings, from_npy(answer.content))
    assert found.provenance.fits == answer.headers["X-Vim-Embed-Fits"] == query
    assert "X-Vim-Embed-Fits" not in httpx.post(
        f"{url}/embed", content=primary(sky(1)[0]), headers=FITS
    ).headers  # fmt: skip
