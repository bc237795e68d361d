"""Fluxes of FITS files and of data sets, through the service."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from astropy.io import fits
from PIL import Image

from vim_embed_client.bulk.sender import resized
from vim_embed_client.bulk.sources.reader import Skipped
from vim_embed_client.bulk.sources.registry import ReadOptions, open_reader
from vim_embed_client.cli.common import SOME_LEFT_OUT
from vim_embed_client.errors import InputError
from vim_embed_pixels.fits_library import library, sound_hdus
from vim_embed_pixels.stretch import Stretch, to_rgb
from vim_embed_pixels.surveys import SURVEYS, survey_stretch

from .conftest import Embed
from .survey import SIZE, Array, expected, galaxy


def shown(flux: Array, how: Stretch, interpolation: str = "BICUBIC") -> Array:
    """(SIZE, SIZE) pixels that the model must see, made with Pillow alone."""
    image = Image.fromarray(to_rgb(flux, how).transpose(1, 2, 0))
    small = image.resize((SIZE, SIZE), Image.Resampling[interpolation])
    return np.asarray(small).transpose(2, 0, 1)


def up(flux: Array) -> Array:
    """FITS counts rows of pixels from the lowest."""
    return flux[..., ::-1, :]


def write(path: Path, *images: Any) -> Path:
    fits.HDUList([fits.PrimaryHDU(), *images]).writeto(path)
    return path


def test_fits_of_every_shape(embed: Embed, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    cubes = np.stack([galaxy(5, seed=seed) for seed in range(3)])
    how = Stretch(bands=(3, 1, 0))
    write(folder / "a.fits", fits.ImageHDU(cubes[0, :4]))
    write(folder / "b.fits", fits.ImageHDU(cubes[1]))
    write(folder / "c.fits.gz", fits.ImageHDU(cubes))
    write(
        folder / "d.fits.fz",
        fits.CompImageHDU(cubes[2], compression_type="GZIP_2", quantize_level=0),
    )
    scaled = fits.ImageHDU(cubes[0].copy())
    scaled.scale("int16", bzero=1.0, bscale=0.001)
    write(folder / "e.fit", scaled)
    ids, rows = embed(folder, "--bands", "3,1,0")
    assert ids == [
        f"{folder}/a.fits",
        f"{folder}/b.fits",
        *(f"{folder}/c.fits.gz#{row}" for row in range(3)),
        f"{folder}/d.fits.fz",
        f"{folder}/e.fit",
    ]
    rounded = fits.getdata(folder / "e.fit", 1)
    fluxes = [cubes[0, :4], cubes[1], *cubes, fits.getdata(folder / "d.fits.fz", 1), rounded]
    pixels = np.stack([shown(up(flux), how) for flux in fluxes])
    np.testing.assert_array_equal(rows, expected(pixels))
    assert [
        one.id for one in open_reader(f"{folder}/c.fits.gz", ReadOptions(stretch=how)).read(2)
    ] == [f"{folder}/c.fits.gz#2"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("hdu", [0, 1])
def test_a_header_that_claims_many_axes_is_named(hdu: int, tmp_path: Path) -> None:
    """astropy went through a million million of them, and took memory for each."""
    content = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(galaxy(3)), fits.ImageHDU(galaxy(3))]).writeto(content)
    data, at = content.getvalue(), -1
    for _ in range(hdu + 1):
        at = data.index(b"NAXIS   =", at + 1)
    card = b"NAXIS   =         999999999999".ljust(80)
    path = tmp_path / "a.fits"
    path.write_bytes(data[:at] + card + data[at + 80 :])
    if hdu == 0:
        with pytest.raises(InputError, match="999999999999 axes"):
            list(open_reader(str(path), ReadOptions()).read(0))
        return
    with path.open("rb") as file, library().open(file, memmap=False) as opened:
        found, damage = sound_hdus(opened)
        assert len(found) == 1
    assert "its HDU 1 cannot be read" in damage
    assert "999999999999 axes" in damage


@pytest.mark.parametrize(
    ("behind", "damage"),
    [
        (b"", ""),
        (bytes(28_800), ""),
        (b" " * 2880, ""),
        (b"XTENSI0N" * 720, "its HDU 1 cannot be read"),
        ((b"JUNK".ljust(80) + b"END").ljust(2880), "its HDU 1 cannot be read"),
        (b"\0" * 2880 + b"junk" * 720, "its HDU 1 cannot be read"),
    ],
)
def test_bytes_behind_the_last_hdu(tmp_path: Path, behind: bytes, damage: str) -> None:
    """A damaged header hides the HDUs from it on, of which the image may be one."""
    path = tmp_path / "a.fits"
    path.write_bytes(one_image() + behind)
    entries = list(open_reader(str(path), ReadOptions()).read(0))
    faults = [entry.reason for entry in entries if isinstance(entry, Skipped)]
    assert len(faults) == bool(damage) == len(entries) - 1
    assert damage in "".join(faults)


@pytest.mark.parametrize("change", ["a byte more", "a byte less", "zeros more"])
def test_data_that_have_shifted_are_no_row(tmp_path: Path, change: str) -> None:
    """As after a transfer as text: they lie in the padding then."""
    data = one_image()
    path = tmp_path / "a.fits"
    more = {"a byte more": b"\r", "zeros more": bytes(79)}.get(change, b"")
    path.write_bytes(data[:4000] + more + data[4000 + (change == "a byte less") :])
    (fault,) = open_reader(str(path), ReadOptions()).read(0)
    assert isinstance(fault, Skipped)
    assert "no whole blocks of 2,880" in fault.reason


def one_image() -> bytes:
    content = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(galaxy(3)[0])]).writeto(content)
    return content.getvalue()


@pytest.mark.parametrize(
    ("key", "what"), [("TFIELDS", "columns"), ("ZNAXIS", "axes"), ("NAXIS", "axes")]
)
def test_a_compressed_image_of_a_billion_columns_or_axes(
    tmp_path: Path, key: str, what: str
) -> None:
    """astropy goes through them."""
    content = io.BytesIO()
    tiles = fits.CompImageHDU(galaxy(3)[0], name="TILES")
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(galaxy(3)[0]), tiles]).writeto(content)
    at = content.getvalue().rindex(f"{key:8}=".encode())
    card = f"{key:8}=           4294967296".ljust(80).encode()
    path = tmp_path / "a.fits"
    path.write_bytes(content.getvalue()[:at] + card + content.getvalue()[at + 80 :])
    row, fault = open_reader(str(path), ReadOptions()).read(0)
    assert not isinstance(row, Skipped)
    assert isinstance(fault, Skipped)
    assert f"4294967296 {what}" in fault.reason


def three_hdus(path: Path, card: bytes, value: bytes) -> Path:
    """Three images, and a card of the last that is damaged."""
    content = io.BytesIO()
    images = [fits.ImageHDU(galaxy(3)[0], name=name) for name in "ABC"]
    fits.HDUList([fits.PrimaryHDU(), *images]).writeto(content)
    at = content.getvalue().rindex(card)
    path.write_bytes(content.getvalue()[:at] + value + content.getvalue()[at + len(value) :])
    return path


UNREADABLE = (b"NAXIS   =", b"NAXIS   =         999999999999")
NO_HDU = (b"XTENSION", b"XTENSI0N")


@pytest.mark.parametrize("damage", [UNREADABLE, NO_HDU])
def test_a_damaged_hdu_is_a_fault_beside_the_sound_ones(
    tmp_path: Path, damage: tuple[bytes, bytes]
) -> None:
    path = three_hdus(tmp_path / "a.fits", *damage)
    *rows, fault = open_reader(str(path), ReadOptions(hdus=("all",))).read(0)
    assert len(rows) == 2
    assert isinstance(fault, Skipped)
    assert "its HDU 3" in fault.reason


@pytest.mark.parametrize("damage", [UNREADABLE, NO_HDU])
def test_the_last_hdu_of_a_damaged_file_is_not_known(
    tmp_path: Path, damage: tuple[bytes, bytes]
) -> None:
    path = three_hdus(tmp_path / "a.fits", *damage)
    (fault,) = open_reader(str(path), ReadOptions(hdus=(-1,))).read(0)
    assert isinstance(fault, Skipped)
    assert "its HDU 3" in fault.reason


def test_hdus_are_chosen_by_number_or_name(embed: Embed, tmp_path: Path) -> None:
    cube = galaxy(3)
    table = fits.BinTableHDU.from_columns([fits.Column("x", "E", array=[1.0])])
    named = [fits.ImageHDU(cube[i], name=name) for i, name in enumerate(("G", "R", "Z"))]
    path = write(tmp_path / "a.fits", table, *named)
    _, rows = embed(path, "--hdu", "Z,R,2")
    np.testing.assert_array_equal(rows, expected(shown(up(cube[::-1]), Stretch())[None]))
    _, rows = embed(path)
    np.testing.assert_array_equal(rows, expected(shown(up(cube[0]), Stretch())[None]))
    for name in ("1", "7", "NONE"):
        embed(path, "--hdu", name, code=1)


def test_fits_options_reach_the_stretch(embed: Embed, tmp_path: Path) -> None:
    cube = galaxy(7)
    cube[0, 0, 0] = np.nan
    path = write(tmp_path / "a.fits", fits.ImageHDU(cube))
    for args, given in (
        (["--survey", "jwst"], {"survey": "jwst"}),
        (["--survey", "jwst", "--percentiles", "2,98"], {"survey": "jwst", "percentiles": (2, 98)}),
        (
            ["--bands", "0", "--stretch", "linear"],
            {"survey": None, "bands": (0,), "kind": "linear"},
        ),
        (["--bands=2,1,0", "--per-band"], {"survey": None, "bands": (2, 1, 0), "per_band": True}),
        (
            ["--bands=2,1,0", "--limits", "-0.1:1"],
            {"survey": None, "bands": (2, 1, 0), "limits": ((-0.1, 1.0),)},
        ),
    ):
        _, rows = embed(path, "--blank", "0.25", *args)
        how = survey_stretch(**given, blank=0.25)
        np.testing.assert_array_equal(rows, expected(shown(up(cube), how)[None]), err_msg=f"{args}")


def test_fits_that_hold_no_image_are_reported(
    embed: Embed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "a.fits")
    write(folder / "b.fits", fits.ImageHDU(galaxy(5)))
    write(folder / "c.fits", fits.ImageHDU(np.zeros((4, 4), np.float32)))
    whole = write(folder / "d.fits", fits.ImageHDU(galaxy(1, 90))).read_bytes()
    (folder / "d.fits").write_bytes(whole[: len(whole) // 2])
    write(folder / "e.fits", fits.ImageHDU(galaxy(1)))
    ids, _ = embed(folder, "--on-error", "skip", code=SOME_LEFT_OUT)
    assert ids == [f"{folder}/e.fits"]
    told = capsys.readouterr().err
    for name, reason in (
        ("a", "it holds no image"),
        ("b", r"its shape is (5, 24, 24): say whether"),
        ("c", "it is too flat"),
        ("d", "cannot be read as FITS"),
    ):
        assert f"skipped {folder}/{name}.fits: {reason}" in told


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
def test_pixels_are_resized_as_the_service_resizes_images(interpolation: str) -> None:
    from vim_embed.http.formats.images import decode_image
    from vim_embed.types.preprocessing import HALF, Preprocessing

    from .survey import png

    pixels = to_rgb(galaxy(3, 61), Stretch())
    spec = Preprocessing(image_size=32, interpolation=interpolation, mean=HALF, std=HALF)
    theirs = decode_image(png(pixels), spec, max_pixels=10**6)
    ours = resized(pixels, {"image_size": 32, "interpolation": interpolation})  # type: ignore[typeddict-item]
    np.testing.assert_array_equal(ours, theirs)


def test_flux_columns_of_platonic_universe_s_data_sets(embed: Embed, tmp_path: Path) -> None:
    cubes = [galaxy(7, seed=seed, flux=4.0) for seed in range(4)]
    bands = [f"jwst-{n}" for n in range(7)]
    rows = [{"flux": cube.tolist(), "band": bands} for cube in cubes]
    pyarrow.parquet.write_table(pa.table({"jwst_image": rows}), tmp_path / "t.parquet")
    _, found = embed(tmp_path / "t.parquet", "--survey", "jwst")
    pixels = np.stack([shown(cube, SURVEYS["jwst"]) for cube in cubes])
    np.testing.assert_array_equal(found, expected(pixels))


def test_pan_starrs_s_arcsinh_is_undone(embed: Embed, tmp_path: Path) -> None:
    flux = np.random.default_rng(0).normal(0, 20, (SIZE, SIZE)).astype(np.float32)
    stored = (2.5 * np.log10(np.e) * np.arcsinh((flux - 0.25) / 3)).astype(np.float32)
    header = fits.Header({"BSOFTEN": 1.5, "BOFFSET": 0.25})
    fits.PrimaryHDU(flux).writeto(tmp_path / "plain.fits")
    fits.PrimaryHDU(stored, header).writeto(tmp_path / "stored.fits")
    (_, plain), (_, found) = embed(tmp_path / "plain.fits"), embed(tmp_path / "stored.fits")
    np.testing.assert_allclose(found, plain, atol=1.5)  # of 255 grey levels


def _desi(path: Path) -> None:
    hdus = [fits.ImageHDU(np.ones(90, "f4"), name="B_WAVELENGTH")]
    hdus += [fits.ImageHDU(np.eye(40, 90, dtype="f4"), name=f"B_{n}") for n in ("FLUX", "IVAR")]
    hdus.append(fits.ImageHDU(np.ones((40, 11, 90), "f4"), name="B_RESOLUTION"))
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path)


def _sdss(path: Path) -> None:
    cards = fits.Header({"COEFF0": 3.58, "COEFF1": 1e-4})
    fits.PrimaryHDU(np.eye(5, 90, dtype="f4"), cards).writeto(path)


def _slit(path: Path) -> None:
    cards = fits.Header({"CTYPE1": "WAVE", "CTYPE2": "SLIT"})
    fits.PrimaryHDU(np.eye(20, 90, dtype="f4"), cards).writeto(path)


@pytest.mark.parametrize("make", [_desi, _sdss, _slit])
def test_spectra_are_no_images(make: Any, tmp_path: Path) -> None:
    make(tmp_path / "spectra.fits")
    reader = open_reader(str(tmp_path / "spectra.fits"), ReadOptions())
    with pytest.raises(InputError, match="it holds spectra and no image"):
        list(reader.read(0))
