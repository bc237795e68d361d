"""The ground view: wider, coarser and noisier, and of the same sources."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from vim_embed_client.demo.stamps import Sources, cut_stamps, stamp_boxes
from vim_embed_client.demo.views import (
    HYPER_SUPRIME_CAM,
    SPACE_FWHM_ARCSEC,
    SPACE_PIXEL_ARCSEC,
    ground_view,
    to_ground,
)

NOISELESS = replace(HYPER_SUPRIME_CAM, sky_noise=0.0, electrons=1e9)


def star(fwhm: float, *, side: int = 121) -> Any:
    """A lone star of this width, in arcseconds, in the middle of a black space picture."""
    sigma = fwhm / SPACE_PIXEL_ARCSEC / (8 * np.log(2)) ** 0.5
    offsets = np.arange(side) - side // 2
    profile = np.exp(-(offsets**2) / (2 * sigma**2))
    image = 250 * np.outer(profile, profile)
    return np.repeat(image[:, :, None], 3, axis=2).astype(np.uint8)


def width(image: Any, pixel: float) -> float:
    """Full width at half maximum in arcseconds, from the second moment along x."""
    light = image[:, :, 0].astype(float)
    x = np.arange(light.shape[1])
    total = light.sum()
    mean = (light * x).sum() / total
    variance = (light * (x - mean) ** 2).sum() / total
    return float((8 * np.log(2) * variance) ** 0.5 * pixel)


def test_a_star_gets_the_width_of_the_seeing() -> None:
    bright = star(0.45)
    wide = replace(NOISELESS, fwhm=1.2)
    before = width(bright, SPACE_PIXEL_ARCSEC)
    after = width(ground_view(bright, telescope=wide), wide.pixel)
    expected = (before**2 + 1.2**2 - SPACE_FWHM_ARCSEC**2) ** 0.5
    assert before == pytest.approx(0.45, rel=0.1)
    assert after == pytest.approx(expected, rel=0.1)


def test_light_is_conserved(picture: Any) -> None:
    quiet = ground_view(picture, telescope=NOISELESS)
    assert quiet.mean() == pytest.approx(picture.mean(), rel=0.01)
    for channel in range(3):
        assert quiet[..., channel].mean() == pytest.approx(picture[..., channel].mean(), rel=0.01)


def test_pixels_are_coarser(picture: Any, ground: Any) -> None:
    ratio = SPACE_PIXEL_ARCSEC / HYPER_SUPRIME_CAM.pixel
    assert ground.shape == (round(872 * ratio), round(1000 * ratio), 3)
    assert ground.dtype == np.uint8


def test_noise_is_that_of_its_seed(picture: Any, ground: Any) -> None:
    np.testing.assert_array_equal(ground_view(picture), ground)
    assert (ground_view(picture, seed=1) != ground).mean() > 0.5


def test_noise_has_the_strength_of_the_telescope() -> None:
    flat = np.full((200, 200, 3), 100, np.uint8)
    expected = (HYPER_SUPRIME_CAM.sky_noise**2 + 100 / HYPER_SUPRIME_CAM.electrons) ** 0.5
    view = ground_view(flat)
    assert view.std() == pytest.approx(expected, rel=0.03)
    assert view.mean() == pytest.approx(100, rel=0.01)


def test_row_i_is_the_same_source_in_both_views(
    picture: Any, ground: Any, sources: Sources
) -> None:
    boxes = stamp_boxes(sources.positions[:256])
    space = cut_stamps(picture, boxes, size=32)
    below = cut_stamps(ground, to_ground(boxes, picture, ground), size=32)
    first, second = (np.sqrt(v.reshape(len(v), -1).astype(float)) for v in (space, below))
    first -= first.mean(axis=1, keepdims=True)
    second -= second.mean(axis=1, keepdims=True)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second /= np.linalg.norm(second, axis=1, keepdims=True)
    best = (second @ first.T).argmax(axis=1)
    assert (best == np.arange(256)).mean() > 0.98


def test_both_views_show_the_same_field(picture: Any, ground: Any, sources: Sources) -> None:
    boxes = stamp_boxes(sources.positions)
    scaled = to_ground(boxes, picture, ground)
    np.testing.assert_allclose(scaled[:, [0, 2]] / ground.shape[1], boxes[:, [0, 2]] / 1000)
    np.testing.assert_allclose(scaled[:, [1, 3]] / ground.shape[0], boxes[:, [1, 3]] / 872)
