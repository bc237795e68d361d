"""Models of other bands than RGB: through the client, and in bulk from every kind of source."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits

from support.fixtures_vim import banded
from support.serving import running
from vim_embed import load_model
from vim_embed.engines.build import build_engines
from vim_embed.http.app import create_app
from vim_embed.settings import Settings
from vim_embed_client import AsyncClient, Client, InputError, InvalidInputError
from vim_embed_client.cli.main import run as vim_embed
from vim_embed_client.scoring.embedding_files import read_embeddings
from vim_embed_pixels.errors import UnusableImage, UnusableOptions
from vim_embed_pixels.images import Fit, fitted
from vim_embed_pixels.stretch import Stretch, to_rgb

from .survey import pictures, png

RNG = np.random.default_rng(3)
FLOATS = {c: RNG.standard_normal((3, c, 64, 64)).astype("f4") for c in (1, 4, 5)}
CUBE = (RNG.random((5, 40, 48)) * np.arange(1, 6)[:, None, None]).astype("f4")
MEAN, STD = (0.5, 0.4, 0.3, 0.2, 0.1), (0.5, 0.6, 0.7, 0.8, 0.9)
SCALE = ["--mean", ",".join(map(str, MEAN)), "--std", ",".join(map(str, STD))]
NAMES = "grizy"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bands")


@pytest.fixture(scope="module")
def models(folder: Path) -> dict[int, Any]:
    paths = {c: banded(folder, c) for c in FLOATS}
    return {c: load_model(f"bands{c}", path, device="cpu") for c, path in paths.items()}


@pytest.fixture(scope="module")
def url(folder: Path, models: dict[int, Any]) -> Iterator[str]:
    settings = Settings(
        models=tuple(f"bands{c}={folder}/bands{c}.pth" for c in models), device="cpu"
    )
    with running(create_app(settings, build_engines(settings))) as address:
        yield address


@pytest.mark.parametrize("channels", FLOATS)
async def test_the_clients_send_as_many_bands_as_the_model_takes(
    url: str, models: dict[int, Any], channels: int
) -> None:
    name, pixels = f"bands{channels}", FLOATS[channels]
    wanted = models[channels].embed(pixels)
    layers = models[channels].embed_layers(pixels)
    async with AsyncClient(url) as waiting:
        np.testing.assert_allclose(await waiting.embed(pixels, model=name), wanted, atol=1e-6)
    with Client(url) as client:
        np.testing.assert_allclose(client.embed(pixels, model=name), wanted, atol=1e-6)
        np.testing.assert_allclose(client.embed(pixels[0], model=name), wanted[:1], atol=1e-6)
        found = client.embed_layers(pixels, model=name)
        np.testing.assert_allclose(found["layers.0"], layers["layers.0"], atol=1e-6)
        tokens = client.embed(pixels, model=name, pooling="tokens")
        assert (tokens.grid, tokens.embeddings.shape[:2]) == ((4, 4), (3, 17))
        with pytest.raises(InputError, match=f"expected {channels} channels"):
            client.embed(np.zeros((2, 2, 64, 64), "f4"), model=name)
        levels = np.zeros((1, channels, 64, 64), np.uint8)
        with pytest.raises(InputError, match=r"mean must be \w+ finite numbers"):
            client.embed(levels, model=name, mean=(0.5, 0.5))
        with pytest.raises(InvalidInputError, match="no encoded image holds"):
            client.embed_images(png(pictures(1)[0]), model=name)


def test_bytes_are_scaled_with_the_mean_and_deviation_of_each_band(
    url: str, models: dict[int, Any]
) -> None:
    levels = RNG.integers(0, 256, (2, 5, 64, 64), dtype=np.uint8)
    wanted = models[5].embed(_normalised(levels))
    with Client(url) as client:
        found = client.embed(levels, model="bands5", mean=MEAN, std=STD)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_floats_are_normalised_already(
    url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """So that mean and std would have no effect on them."""
    source = tmp_path / "floats.npy"
    np.save(source, FLOATS[5])
    mean, std = (",".join(map(str, one)) for one in (MEAN, STD))
    embed(url, source, "--mean", mean, "--std", std, code=1)
    assert "--mean and --std would have no effect" in capfd.readouterr().err
    embed(url, source, "--mean", mean, code=1)
    embed(url, source)


def _normalised(levels: Any) -> Any:
    mean, std = (np.array(one).reshape(5, 1, 1) for one in (MEAN, STD))
    return ((levels / 255 - mean) / std).astype("f4")


def embed(url: str, source: Path, *options: str, code: int = 0) -> Any:
    """The rows that the command makes of a source with the model of five bands."""
    output = source.with_name(source.name + ".out.npy")
    args = ["embed", str(source), "-o", str(output), "--url", url, "--model", "bands5", "--quiet"]
    assert vim_embed([*args, *options]) == code
    return read_embeddings(str(output)).embeddings if code in (0, 5) else None


def shown(order: tuple[int, ...] = (0, 1, 2, 3, 4), **how: Any) -> Any:
    """(1, 5, 64, 64) normalised pixels of CUBE, upside down as FITS is shown."""
    pixels = to_rgb(CUBE[list(order)], Stretch(channels=5, **how))[:, ::-1]
    each = [fitted(np.stack([band] * 3), Fit(64, "bicubic"))[0] for band in pixels]
    return _normalised(np.stack(each)[None])


def _cube(path: Path, **cards: Any) -> Path:
    header = fits.Header(list(cards.items()))
    fits.PrimaryHDU(CUBE, header).writeto(path)
    return path


def _extensions(path: Path) -> Path:
    hdus = [fits.ImageHDU(CUBE[i], name=name) for i, name in enumerate(NAMES)]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path)
    return path


def _files(path: Path, names: str = NAMES) -> Path:
    path.mkdir()
    for i, name in enumerate(names):
        fits.PrimaryHDU(CUBE[i]).writeto(path / f"m31-{name}.fits")
    return path


def _three(path: Path) -> Path:
    return _files(path, "gri")


LIMITS = ((0.0, 1.0), (0.0, 2.0), (0.0, 3.0), (0.0, 4.0), (0.0, 5.0))


@pytest.mark.parametrize(
    ("make", "options", "order"),
    [
        (_cube, [], (0, 1, 2, 3, 4)),
        (_cube, ["--bands", "4,3,2,1,0"], (4, 3, 2, 1, 0)),
        (lambda path: _cube(path, BANDS="grizy"), ["--bands", "y,z,i,r,g"], (4, 3, 2, 1, 0)),
        (lambda path: _cube(path, BANDS="g, r,i,z,y"), ["--bands", "R,0,i,z,y"], (1, 0, 2, 3, 4)),
        (
            lambda path: _cube(path, **{f"BAND{i + 1}": f"F{i}W" for i in range(5)}),
            ["--bands", "F4W,F0W,F1W,F2W,F3W"],
            (4, 0, 1, 2, 3),
        ),
        (_extensions, ["--hdu", "Y,Z,I,R,G"], (4, 3, 2, 1, 0)),
        (_extensions, ["--hdu", "1,2,3,4,5"], (0, 1, 2, 3, 4)),
        (_files, ["--join-bands", "y,z,i,r,g"], (4, 3, 2, 1, 0)),
    ],
    ids=["cube", "numbers", "names", "mixed", "cards", "hdus", "hdu-numbers", "files"],
)
def test_bands_of_fits_by_number_or_name(
    url: str, models: dict[int, Any], tmp_path: Path, make: Any, options: list[str], order: Any
) -> None:
    found = embed(url, make(tmp_path / "in.fits"), *options, *SCALE)
    np.testing.assert_allclose(found, models[5].embed(shown(order)), rtol=1e-4, atol=1e-5)


def test_limits_of_each_band(url: str, models: dict[int, Any], tmp_path: Path) -> None:
    limits = ",".join(f"{low}:{high}" for low, high in LIMITS)
    found = embed(url, _cube(tmp_path / "in.fits"), "--limits", limits, *SCALE)
    wanted = models[5].embed(shown(limits=LIMITS))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_arrays_and_tables_of_normalised_floats(
    url: str, models: dict[int, Any], tmp_path: Path
) -> None:
    pixels = FLOATS[5]
    wanted = models[5].embed(pixels)
    np.save(tmp_path / "many.npy", pixels)
    np.save(tmp_path / "last.npy", pixels.transpose(0, 2, 3, 1))
    np.savez(tmp_path / "some.npz", images=pixels)
    pq.write_table(pa.table({"x": pixels.tolist()}), tmp_path / "nested.parquet")
    for name in ("many.npy", "last.npy", "some.npz", "nested.parquet"):
        np.testing.assert_allclose(embed(url, tmp_path / name), wanted, atol=1e-6, err_msg=name)


def test_bands_of_fluxes_in_a_table_by_name(
    url: str, models: dict[int, Any], tmp_path: Path
) -> None:
    row = {"flux": CUBE.tolist(), "band": [f"hsc-{name}" for name in NAMES]}
    pq.write_table(pa.table({"x": [row]}), tmp_path / "t.parquet")
    names = ",".join(f"hsc-{NAMES[place]}" for place in (4, 3, 2, 1, 0))
    found = embed(url, tmp_path / "t.parquet", "--bands", names, "--flip", *SCALE)
    wanted = models[5].embed(shown((4, 3, 2, 1, 0)))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "options", "reason"),
    [
        (_cube, [], "give --mean and --std, a number for each"),
        (_cube, ["--bands", "0,1,2", *SCALE], "takes 5 bands, so that as many are needed, got 3"),
        (_cube, ["--limits", "0:1,0:2", *SCALE], "limits are for one band or for 5, got 2 pairs"),
        (_cube, ["--bands", "0,1,2,3,7", *SCALE], "numbered from 0, and none is 7"),
        (_cube, ["--bands", "g,r,i,z,y", *SCALE], "its bands have no names"),
        (
            lambda path: _cube(path, BANDS="grizy"),
            ["--bands", "g,r,i,z,u", *SCALE],
            "it has no band u: it has g, r, i, z, y",
        ),
        (_extensions, ["--hdu", "G", *SCALE], "1 bands: choose the 5 that the model takes"),
        (_extensions, ["--hdu", "G,R,I", *SCALE], "takes 5 bands, and --hdu names 3"),
        (_three, ["--join-bands", "g,r,i", *SCALE], "takes 5 bands, and --join-bands names 3"),
        (_cube, ["--survey", "hsc", *SCALE], "as many are needed, got 3"),
        (_cube, ["--stretch", "lupton", *SCALE], "lupton is for three bands"),
    ],
)
def test_what_makes_no_image_of_five_bands_says_why(
    url: str, tmp_path: Path, capsys: Any, make: Any, options: list[str], reason: str
) -> None:
    source = make(tmp_path / "in.fits")
    output = tmp_path / "o.npy"
    args = ["embed", str(source), "-o", str(output), "--url", url, "--model", "bands5"]
    assert vim_embed([*args, *options]) in (1, 2)
    assert reason in " ".join(capsys.readouterr().err.split())
    assert not output.exists()


def test_encoded_images_are_named_as_left_out(url: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png(pictures(1)[0]))
    np.save(tmp_path / "in" / "b.npy", FLOATS[5])
    assert len(embed(url, tmp_path / "in", "--on-error", "skip", code=5)) == 3
    (skipped,) = json.loads((tmp_path / "in.out.npy.json").read_text())["skipped"]
    assert skipped["id"].endswith("a.png")
    assert "it is an encoded image, which has no 5 bands" in skipped["reason"]


@pytest.mark.parametrize(
    ("channels", "how", "message"),
    [
        (3, {"bands": (1, 2)}, "one band .* or three .* needed, got 2"),
        (3, {"limits": ((0.0, 1.0),) * 2}, "for one band or for three, got 2 pairs"),
        (4, {"bands": (1,)}, "takes 4 bands"),
        (1, {"bands": (0, 1, 2)}, "takes 1 bands"),
    ],
)
def test_the_number_of_bands_is_the_model_s(channels: int, how: Any, message: str) -> None:
    with pytest.raises(UnusableOptions, match=message):
        Stretch(**how).for_channels(channels)
    if "bands" in how:
        with pytest.raises(UnusableImage, match="choose"):
            to_rgb(CUBE, Stretch(channels=channels, **how))


def test_one_band() -> None:
    np.testing.assert_array_equal(
        to_rgb(CUBE[2], Stretch(channels=1)), to_rgb(CUBE[2], Stretch())[:1]
    )
