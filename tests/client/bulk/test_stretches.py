"""Fluxes to grey levels: the numbers of astropy, limits, bands, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import astropy.visualization as visual
import numpy as np
import pytest

from vim_embed_pixels.errors import UnusableImage, UnusableOptions
from vim_embed_pixels.stretch import Stretch, cropped, to_rgb
from vim_embed_pixels.surveys import survey_stretch

from .survey import Array, galaxy


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
