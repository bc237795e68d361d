"""Compressed FITS images whose tiles lie: in a request, and in astropy's own reader."""

from __future__ import annotations

import io
import struct
import sys
from collections.abc import Iterator
from types import FunctionType

import astropy
import httpx
import numpy as np
import pytest
from astropy.io import fits
from astropy.io.fits.hdu.compressed import _codecs, _compression, _quantization

from support.fits_files import COMPRESSED, FITS, SEVERAL, Array, primary, sky, tiled, written
from support.serving import running
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.http.app import create_app
from vim_embed.settings import Settings
from vim_embed_pixels import tiles
from vim_embed_pixels.errors import UnusableImage
from vim_embed_pixels.fits import FitsOptions, Hdu, check_size, rgb_of
from vim_embed_pixels.fits_library import library
from vim_embed_pixels.tiles import check_tiles


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(create_app(Settings(), ArithmeticEngine(image_size=16))) as url:
        yield url


def packed(kind: str, flux: Array) -> tuple[bytes, int]:
    """A compressed image of one tile, and where the tile begins."""
    hdu = fits.CompImageHDU(flux, compression_type=kind, tile_shape=flux.shape)
    data = written(hdu)
    with fits.open(io.BytesIO(data), disable_image_compression=True) as file:
        at: int = file[1].fileinfo()["datLoc"] + file[1].header["NAXIS1"]
    return data, at


CLAIMS = {
    "more rows": ("HCOMPRESS_1", 2, ">i", 31),
    "more columns": ("HCOMPRESS_1", 6, ">i", 3000),
    "sides below 0": ("HCOMPRESS_1", 2, ">ii", (-30, -30)),
    "bit planes": ("HCOMPRESS_1", 22, ">B", 255),
    "no magic": ("HCOMPRESS_1", 0, ">H", 0),
    "words": ("PLIO_1", 6, ">h", 30_000),
    "more words": ("PLIO_1", 8, ">h", 30_000),
    "words of the old kind": ("PLIO_1", 4, ">h", 30_000),
    "words below 0": ("PLIO_1", 8, ">h", -9),
    "a begin before it": ("PLIO_1", 2, ">h", -30_000),
    "fewer pixels than it has": ("PLIO_1", 14, ">H", 0),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_compressed_tiles_that_lie(name: str) -> None:
    """astropy's C code would write or read beyond its memory, in a process that lives on."""
    kind, place, form, value = CLAIMS[name]
    flux = (np.arange(900).reshape(30, 30) % 100).astype(np.int32)
    data, tile = packed(kind, flux)
    np.testing.assert_array_equal(opened(data), flux)
    lying = bytearray(data)
    values = value if isinstance(value, tuple) else (value,)
    struct.pack_into(form, lying, tile + place, *values)
    with pytest.raises(ValueError, match=f"{kind[:4]}.* tile"):
        opened(bytes(lying))


def changed(data: bytes, **header: str) -> bytes:
    """The file with other values in the headers of its last HDU, as they would be damaged."""
    at = data.rindex(b"XTENSION")
    for key, value in header.items():
        place = data.index(key.ljust(8).encode() + b"= ", at) + 10
        data = data[:place] + value.rjust(20).encode() + data[place + 20 :]
    return data


LYING_HEADERS = {
    "RICE numbers of no size": ("RICE_1", {"ZVAL2": "-4"}, "blocks of 32 numbers of -4 bytes"),
    "RICE numbers of three bytes": ("RICE_1", {"ZVAL2": "3"}, "numbers of 3 bytes"),
    "RICE numbers that astropy does not know": ("RICE_1", {"ZVAL2": "8"}, "numbers of 8 bytes"),
    "RICE blocks of none": ("RICE_1", {"ZVAL1": "0"}, "blocks of 0"),
    "a dither before the table's": ("dithered", {"ZDITHER0": "-9999"}, "ZDITHER0"),
    "no dither": ("dithered", {"ZDITHER0": "0"}, "ZDITHER0"),
    "rounded without scales": ("dithered", {"TTYPE3": "'SCALE   '"}, "lacks the column ZSCALE"),
    "rounded without zeros": ("dithered", {"TTYPE4": "'ZERO    '"}, "lacks the column ZZERO"),
    "a heap that is cut": ("RICE_1", {"PCOUNT": "800"}, "compressed tile 22 lies beyond"),
    "a heap of HCOMPRESS that is cut": ("HCOMPRESS_1", {"PCOUNT": "900"}, "lies beyond"),
    "a heap that begins later": ("GZIP_1", {"TFORM1": "'1PJ(99) '"}, "lies beyond"),
}


@pytest.mark.parametrize("name", LYING_HEADERS)
def test_headers_of_compressed_images_that_lie(url: str, name: str) -> None:
    """astropy's C code would go beyond its memory, or show what that held before."""
    kind, header, words = LYING_HEADERS[name]
    sound = KINDS[kind]
    assert httpx.post(f"{url}/embed", content=sound, headers=FITS).is_success
    answer = httpx.post(f"{url}/embed", content=changed(sound, **header), headers=FITS)
    assert answer.status_code in (400, 422), answer.text
    assert words in answer.json()["error"]["message"]


KINDS = {
    "dithered": written(fits.CompImageHDU(sky(1)[0], quantize_method=1, dither_seed=7)),
    **{
        kind: written(
            fits.CompImageHDU(
                (np.abs(sky(1)[0]) * 1000).astype(np.int32), compression_type=kind,
                tile_shape=(10, 30) if kind == "HCOMPRESS_1" else (1, 30),
            )
        )
        for kind in ("RICE_1", "HCOMPRESS_1", "GZIP_1")
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", ["RICE_1", "HCOMPRESS_1", "PLIO_1", "GZIP_1", "GZIP_2"])
@pytest.mark.parametrize("bytes_less", [1, 2, 7, 20])
def test_compressed_tiles_that_are_cut(kind: str, bytes_less: int) -> None:
    """Where a table says that a tile ends too early, no picture is made of what lies behind it."""
    flux = (np.arange(900).reshape(30, 30) % 100).astype(np.int32)
    flux[:, ::3] *= -1 if kind != "PLIO_1" else 1
    data, tile = packed(kind, flux)
    np.testing.assert_array_equal(opened(data), flux)
    shorter = bytearray(data)
    (count,) = struct.unpack_from(">i", shorter, tile - 8)
    elements = -(-bytes_less // 2) if kind == "PLIO_1" else bytes_less
    struct.pack_into(">i", shorter, tile - 8, count - elements)
    with pytest.raises(Exception, match=r"."):
        opened(bytes(shorter))


def opened(data: bytes) -> Array:
    with library().open(io.BytesIO(data)) as file:
        read: Array = file[1].section[:, :]
        return read


@pytest.fixture
def checks_anew() -> Iterator[None]:
    """What is known of this astropy is found out again."""
    check_tiles.cache_clear()
    tiles._is_checked.cache_clear()
    yield
    check_tiles.cache_clear()
    tiles._is_checked.cache_clear()


NAMES = {
    "HCOMPRESS_1": "decompress_hcompress_1_c",
    "PLIO_1": "decompress_plio_1_c",
    "RICE_1": "decompress_rice_1_c",
}
CODECS = {"HCOMPRESS_1": "HCompress1", "PLIO_1": "PLIO1", "RICE_1": "Rice1"}


@pytest.mark.usefixtures("checks_anew")
@pytest.mark.parametrize("change", ["no such name", "a name that nobody calls", "no such module"])
def test_an_astropy_whose_tiles_cannot_be_checked(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version may have other private names: images with such tiles are refused, and all
    other files are read as before."""
    flux = (np.arange(900).reshape(30, 30) % 100).astype(np.int32)
    sound = {kind: packed(kind, flux)[0] for kind in NAMES}
    others = [primary(flux), SEVERAL, KINDS["GZIP_1"], tiled()]
    expected = [drawn(data) for data in others]
    for kind, name in NAMES.items():
        monkeypatch.setattr(_codecs, name, getattr(_compression, name))
        if change == "no such name":
            monkeypatch.delattr(_codecs, name)
        elif change == "a name that nobody calls":
            codec = getattr(_codecs, CODECS[kind])
            moved = FunctionType(codec.decode.__code__, dict(vars(_codecs)))
            monkeypatch.setattr(codec, "decode", moved)
    if change == "no such module":
        monkeypatch.setitem(sys.modules, _codecs.__name__, None)
        monkeypatch.delattr(sys.modules[_codecs.__name__.rpartition(".")[0]], "_codecs")
    library()
    for kind, data in sound.items():
        with pytest.raises(UnusableImage, match=f"{kind}.*astropy {astropy.__version__}: unpack"):
            drawn(data)
    for data, pixels in zip(others, expected, strict=True):
        np.testing.assert_array_equal(drawn(data), pixels)


@pytest.mark.usefixtures("checks_anew")
def test_an_astropy_whose_dithers_cannot_be_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    library()
    drawn(KINDS["dithered"])
    tiles._is_checked.cache_clear()
    monkeypatch.setattr(_quantization, "unquantize_float_c", _compression.unquantize_float_c)
    with pytest.raises(UnusableImage, match=r"SUBTRACTIVE_DITHER_1.*unpack"):
        drawn(KINDS["dithered"])
    assert drawn(COMPRESSED).any(), "it is rounded without a dither"


def test_an_astropy_whose_tiles_cannot_be_counted() -> None:
    known = {"shape": (9, 9), "tile_shape": (1, 9), "compression_type": "GZIP_1"}
    hdu = type("CompImageHDU", (), known)()  # as astropy's, without its table
    with pytest.raises(UnusableImage, match="unpack"):
        check_size(Hdu(hdu, "SCI"), 10_000)


@pytest.mark.usefixtures("checks_anew")
def test_this_astropy_can_be_checked() -> None:
    library()
    flux = (np.arange(900).reshape(30, 30) % 100).astype(np.int32)
    for kind in NAMES:
        np.testing.assert_array_equal(drawn(packed(kind, flux)[0]), drawn(primary(flux)))


def drawn(data: bytes) -> Array:
    return rgb_of(io.BytesIO(data), len(data), FitsOptions(), lambda width, height: None)
