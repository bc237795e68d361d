"""Fluxes to pixels: the numbers of platonic-universe, and FITS files through the service."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import astropy.visualization as visual
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from astropy.io import fits
from PIL import Image

from vim_embed_client.bulk.sender import resized
from vim_embed_client.bulk.sources.registry import ReadOptions, open_reader
from vim_embed_client.cli.common import SOME_LEFT_OUT
from vim_embed_client.errors import InputError
from vim_embed_pixels.errors import UnusableImage, UnusableOptions
from vim_embed_pixels.fits import library, sound_hdus
from vim_embed_pixels.stretch import Stretch, cropped, to_rgb
from vim_embed_pixels.surveys import SURVEYS, survey_stretch

from .conftest import Embed
from .survey import SIZE, Array, expected

BANDS = {"hsc": 5, "jwst": 7, "legacysurvey": 4}


def galaxy(bands: int, size: int = 24, *, seed: int = 0, flux: float = 2.0) -> Array:
    """(bands, size, size) float32: a disk with noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    light = np.exp(-np.hypot(x, y * rng.uniform(1, 3)) / 0.3) * flux
    cube = light * np.linspace(0.3, 1, bands)[:, None, None]
    noisy: Array = cube + rng.normal(0, flux / 50, cube.shape)
    return noisy.astype(np.float32)


SCALES = {"hsc": 1.0, "jwst": 4.0, "legacysurvey": 0.03}
CUBES = {
    f"{survey}/{seed}": galaxy(bands, 96, seed=seed, flux=SCALES[survey])
    for survey, bands in BANDS.items()
    for seed in range(5)
}
THEIR_SCRIPT = """
import sys
import types
import numpy as np
import no_torchvision

# The module alone: the package imports transformers and data sets, which it has no use for.
package = sys.modules["pu"] = types.ModuleType("pu")
package.__path__ = [sys.argv[3]]
sys.modules["datasets"] = types.ModuleType("datasets")
sys.modules["datasets"].load_dataset = None
from pu.preprocess import flux_to_pil

cubes = dict(np.load(sys.argv[1]))
out = {}
for name, cube in cubes.items():
    survey = name.split("/")[0]
    out[f"fixed/{name}"] = flux_to_pil({"flux": cube}, survey, [survey])
    for kind, flux in (("own", cube), ("grey", cube[0])):
        out[f"{kind}/{name}"] = flux_to_pil({"flux": flux}, survey, [survey], percentile_norm=False)
np.savez(sys.argv[2], **out)
"""


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Array]:
    """What platonic-universe itself makes of CUBES, in a process with its missing imports."""
    spec = find_spec("pu")
    if spec is None or spec.origin is None:
        pytest.skip("needs platonic-universe")
    folder = tmp_path_factory.mktemp("theirs")
    np.savez(folder / "cubes.npz", **CUBES)  # type: ignore[arg-type]
    files = [str(folder / "cubes.npz"), str(folder / "o.npz"), str(Path(spec.origin).parent)]
    host = str(Path(__file__).parents[1] / "platonic" / "host")
    script = f"import sys; sys.path.append({host!r})\n{THEIR_SCRIPT}"
    subprocess.run([sys.executable, "-c", script, *files], check=True)
    return dict(np.load(folder / "o.npz"))


@pytest.mark.parametrize("name", CUBES)
def test_the_very_numbers_of_platonic_universe(theirs: dict[str, Array], name: str) -> None:
    survey, cube = name.split("/")[0], CUBES[name]
    assert len(np.unique(theirs[f"fixed/{name}"])) > 50
    # Their percentiles without fixed limits are 1 and 99, of all bands together, and arcsinh.
    own = survey_stretch(survey, percentiles=(1.0, 99.0))
    for ours, kind in (
        (to_rgb(cube, SURVEYS[survey]), "fixed"),
        (to_rgb(cube, own), "own"),
        (to_rgb(cube[0], Stretch()), "grey"),
    ):
        np.testing.assert_array_equal(ours.transpose(1, 2, 0), theirs[f"{kind}/{name}"])


# As platonic-universe's data has them: bands, pixels, and a typical flux.
HEAD_CUBES = {
    f"{survey}/{seed}": galaxy(bands, size, seed=seed, flux=flux)
    for survey, (bands, size, flux) in {
        "hsc": (5, 160, 1.0), "jwst": (7, 96, 4.0), "legacysurvey": (4, 160, 0.03)
    }.items()
    for seed in range(3)
}  # fmt: skip
HEAD_SCRIPT = """
import sys
import astropy.visualization as visual
import numpy as np
from pu.preprocess import flux_to_pil

out = {}
for name, cube in dict(np.load(sys.argv[1])).items():
    survey = name.split("/")[0]
    own = {"norm_mode": "per_image"}
    for kind, how in (("head", {}), ("flat", {"resize": False}), ("own", own)):
        out[f"{kind}/{name}"] = flux_to_pil({"flux": cube}, survey, [survey], **how)
np.savez(sys.argv[2], **out)
"""


def head_stretch(survey: str, kind: str) -> Stretch:
    if kind == "own":
        return survey_stretch(f"{survey}@head", percentiles=(1.0, 99.0))
    how = survey_stretch(f"{survey}@head")
    return replace(how, zoom=None) if kind == "flat" else how


def test_the_numbers_of_platonic_universe_s_head() -> None:
    """Its own output for HEAD_CUBES, kept here: its head is no release. Of commit 6672072."""
    kept = np.load(Path(__file__).parents[2] / "data" / "flux_to_pil_head.npz")
    for name in kept:
        kind, survey, seed = name.split("/")
        ours = to_rgb(HEAD_CUBES[f"{survey}/{seed}"], head_stretch(survey, kind))
        off = np.abs(ours.transpose(1, 2, 0).astype(int) - kept[name])
        # Another processor's arcsinh may differ in its last bit.
        assert off.max() <= 1
        assert (off == 0).mean() > 0.999


@pytest.mark.skipif("PU_HEAD" not in os.environ, reason="needs a checkout of its head at PU_HEAD")
def test_the_very_numbers_of_platonic_universe_s_head(tmp_path: Path) -> None:
    np.savez(tmp_path / "cubes.npz", **HEAD_CUBES)  # type: ignore[arg-type]
    head = Path(os.environ["PU_HEAD"])
    host = Path(__file__).parents[1] / "platonic" / "host"
    command = [sys.executable, "-c", HEAD_SCRIPT, str(tmp_path / "cubes.npz"), str(tmp_path / "o")]
    found = {
        "PYTHONPATH": f"{head / 'src'}{os.pathsep}{host}",
        "PU_PERCENTILES_PATH": str(head / "data" / "percentiles.json"),
    }
    subprocess.run(command, check=True, env=os.environ | found)
    theirs = np.load(tmp_path / "o.npz")
    assert len(theirs) == 27
    for name in theirs:
        kind, survey, seed = name.split("/")
        ours = to_rgb(HEAD_CUBES[f"{survey}/{seed}"], head_stretch(survey, kind))
        np.testing.assert_array_equal(ours.transpose(1, 2, 0), theirs[name], err_msg=name)


def test_the_head_s_limits_come_from_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built_in = survey_stretch("hsc@head").limits
    bands = {band: {"p1": -1.0, "p99": place} for place, band in enumerate("grz", start=1)}
    path = tmp_path / "data" / "percentiles.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"hsc": bands}))
    monkeypatch.chdir(tmp_path)
    assert survey_stretch("hsc@head").limits == ((-1.0, 3), (-1.0, 2), (-1.0, 1)) != built_in
    monkeypatch.setenv("PU_PERCENTILES_PATH", str(tmp_path / "gone.json"))
    with pytest.raises(UnusableOptions, match="does not hold platonic-universe's percentiles"):
        survey_stretch("hsc@head")


def test_the_percentiles_that_a_user_gives() -> None:
    cube = galaxy(3, 50).astype(np.float64)
    low, high = np.percentile(cube, [5, 95])
    wanted = np.arcsinh((cube - low) / (high - low))
    wanted = (wanted - wanted.min()) / (wanted.max() - wanted.min()) * 255
    found = to_rgb(cube, Stretch(percentiles=(5, 95)))
    assert np.abs(found - np.floor(wanted)).max() <= 1
    single = to_rgb(cube, Stretch(percentiles=(5, 95), per_band=True))
    for band in range(3):
        alone = to_rgb(cube[band], Stretch(percentiles=(5, 95)))[0]
        np.testing.assert_array_equal(single[band], alone)
    assert (single != found).any()


FULL = ((0.0, 1.5),)
# What astropy itself makes of (3, H, W) fluxes, as numbers from 0 to 255, by the options.
LIBRARY: dict[str, tuple[dict[str, Any], Callable[[Array], Array]]] = {
    "linear": (
        {"limits": FULL, "kind": "linear"},
        lambda cube: 255 * visual.LinearStretch()(visual.ManualInterval(0, 1.5)(cube)),
    ),
    "sqrt": (
        {"limits": FULL, "kind": "sqrt"},
        lambda cube: 255 * visual.SqrtStretch()(visual.ManualInterval(0, 1.5)(cube)),
    ),
    "log": (
        {"limits": FULL, "kind": "log"},
        lambda cube: 255 * visual.LogStretch()(visual.ManualInterval(0, 1.5)(cube)),
    ),
    "asinh": (
        {"limits": FULL, "kind": "asinh"},
        lambda cube: 255 * visual.AsinhStretch()(visual.ManualInterval(0, 1.5)(cube)),
    ),
    "asinh, softer": (
        {"limits": FULL, "kind": "asinh", "softening": 0.02},
        lambda cube: 255 * visual.AsinhStretch(0.02)(visual.ManualInterval(0, 1.5)(cube)),
    ),
    "asinh of percentiles": (
        {"percentiles": (0.5, 99.0), "kind": "asinh"},
        lambda cube: 255 * visual.AsinhStretch()(
            visual.AsymmetricPercentileInterval(0.5, 99)(cube)
        ),
    ),
    "zscale": (
        {"kind": "zscale"}, lambda cube: 255 * visual.ZScaleInterval()(cube),
    ),
    "zscale of each band, asinh": (
        {"limits": "zscale", "kind": "asinh", "per_band": True},
        lambda cube: 255 * np.stack(
            [visual.AsinhStretch()(visual.ZScaleInterval()(band)) for band in cube]
        ),
    ),
    "lupton": (
        {"limits": ((-0.1, 0.9),), "kind": "lupton"},
        lambda cube: visual.make_lupton_rgb(
            *cube, interval=visual.ManualInterval(-0.1), stretch=1.0, Q=8
        ).transpose(2, 0, 1),
    ),
    "lupton, softer": (
        {"limits": ((0.0, 0.5),), "kind": "lupton", "softening": 3.0},
        lambda cube: visual.make_lupton_rgb(
            *cube, interval=visual.ManualInterval(0), stretch=0.5, Q=3
        ).transpose(2, 0, 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("softening", "levels"),
    [(None, [0, 96, 254, 255, 255]), (1e-3, [0, 254, 255, 255, 255])],
    ids=["Q = 8", "Q near 0"],
)
def test_the_upper_limit_of_lupton_is_no_white(softening: float | None, levels: list[int]) -> None:
    """As docs/bulk.md says: 96 of 255, and white at 95 times the range."""
    fluxes = np.broadcast_to(np.array([-5.0, 1.0, 94.0, 96.0, 500.0], np.float32), (3, 2, 5))
    how = survey_stretch(None, limits=((0.0, 1.0),), kind="lupton", softening=softening)
    assert to_rgb(fluxes, how)[0, 0].tolist() == levels


@pytest.mark.parametrize("name", LIBRARY)
def test_the_grey_levels_of_astropy(name: str) -> None:
    given, theirs = LIBRARY[name]
    cube = galaxy(3, 40, seed=4)
    ours = to_rgb(cube, survey_stretch(None, **given))
    assert len(np.unique(ours)) > 40
    wanted = theirs(cube)
    # Between two grey levels the last bit decides: the sums are done in another order.
    near = np.abs(wanted - np.round(wanted)) < 1e-3
    np.testing.assert_array_equal(ours[~near], np.floor(wanted)[~near].astype(int))
    assert np.abs(ours - wanted).max() <= 1.001


def test_zscale_is_of_the_finite_fluxes() -> None:
    cube = galaxy(3, 40)
    holed = cube.copy()
    holed[:, :4] = np.nan
    low, high = visual.ZScaleInterval().get_limits(holed)
    wanted = 255 * ((cube - low) / (high - low)).clip(0, 1)
    found = to_rgb(holed, Stretch(limits="zscale", blank="sky"))
    assert np.abs(found - wanted)[:, 4:].max() <= 1.001


def test_the_middle_square() -> None:
    image = np.arange(2 * 5 * 8).reshape(2, 5, 8)
    np.testing.assert_array_equal(cropped(image, 3), image[:, 1:4, 2:5])
    np.testing.assert_array_equal(cropped(image, 2), image[:, 1:3, 3:5])
    assert cropped(image, None) is image
    with pytest.raises(UnusableImage, match="5×8 pixels, fewer than --crop 6"):
        cropped(image, 6)


@pytest.mark.parametrize("bands", [(0, 1, 2), (5,), ("g",), (0, "g", 0)])
def test_one_plane_has_no_other_bands(bands: tuple[int | str, ...]) -> None:
    """It was shown in grey, as if nobody had asked for bands."""
    plane = np.random.default_rng().random((40, 40))
    with pytest.raises(UnusableImage, match=r"1 band|no names"):
        to_rgb(plane, Stretch(bands=bands))
    for same in ((0,), (0, 0, 0), (-1,)):
        assert (to_rgb(plane, Stretch(bands=same)) == to_rgb(plane, Stretch())).all()


def test_bands_limits_and_kinds() -> None:
    cube = galaxy(6)
    how = Stretch(bands=(4, 0, 2), limits=((0.0, 1.0), (0.0, 2.0), (0.0, 0.5)))
    wanted = (cube[[4, 0, 2]] / np.array([1, 2, 0.5])[:, None, None]).clip(0, 1) * 255
    assert np.abs(to_rgb(cube, how) - np.floor(wanted)).max() <= 1
    grey = to_rgb(cube, Stretch(bands=(-1,)))
    np.testing.assert_array_equal(grey, to_rgb(cube[5], Stretch()))
    bent = to_rgb(cube, Stretch(bands=(4, 0, 2), limits=((0.0, 1.0),), kind="platonic"))
    assert (bent.min(), bent.max()) == (0, 255)


@pytest.mark.parametrize(
    ("flux", "how", "message"),
    [
        (np.zeros((3, 4, 4)), Stretch(), "too flat"),
        (np.full((4, 4), np.nan), Stretch(blank=0.0), "all its fluxes are NaN or infinite"),
        (np.array([[1, 2], [3, np.nan]]), Stretch(), "in 1 pixels fluxes are NaN .* --blank sky"),
        (np.zeros((5, 4, 4)), Stretch(), "5 bands: choose one or three with --bands"),
        (np.zeros((5, 4, 4)), Stretch(bands=(0, 1, 5)), "numbered from 0, and none is 5"),
        (np.zeros(4), Stretch(), r"shape \(4,\)"),
    ],
)
def test_fluxes_that_make_no_image(flux: Array, how: Stretch, message: str) -> None:
    with pytest.raises(UnusableImage, match=message):
        to_rgb(flux, how)


@pytest.mark.parametrize(
    "given",
    [
        {"percentiles": (99.0, 1.0)},
        {"percentiles": (-1.0, 50.0)},
        {"limits": ((1.0, 1.0),)},
        {"kind": "asinh20"},
        {"kind": "zscale", "limits": ((0.0, 1.0),)},
        {"kind": "lupton", "limits": ((0.0, 1.0),) * 3},
        {"kind": "lupton", "per_band": True},
        {"kind": "linear", "softening": 0.1},
        {"kind": "asinh", "softening": 0.0},
    ],
)
def test_unusable_stretches_are_refused(given: Any) -> None:
    with pytest.raises(UnusableOptions):
        Stretch(**given)


def test_percentiles_are_of_the_finite_fluxes() -> None:
    cube = galaxy(3) + 1000  # an unsubtracted sky
    holed = cube.copy()
    holed[:, :3] = np.nan
    holed[0, 5, 5] = np.inf
    whole = np.isfinite(holed)
    for blank in (0.0, "sky"):
        how = Stretch(blank=blank)
        low, high = np.percentile(cube[whole], [1, 99])
        wanted = np.arcsinh((cube - low) / (high - low))
        least, most = wanted[whole].min(), wanted[whole].max()
        wanted = (wanted - least) / (most - least) * 255
        found = to_rgb(holed, how)
        assert np.abs(found.astype(int) - np.floor(wanted))[whole].max() <= 1
        assert len(np.unique(found[whole])) > 150
        filled = found[~whole]
        sky = [np.median(band[good]) for band, good in zip(holed, whole, strict=True)]
        expected = np.arcsinh((np.array(sky) - low) / (high - low))
        expected = np.floor((expected - least) / (most - least) * 255)
        grey = {0} if blank == 0 else {int(v) + d for v in expected for d in (-1, 0, 1)}
        assert set(filled.tolist()) <= grey


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
