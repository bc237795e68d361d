"""`finite_rows` beside the slow way of saying it."""

from __future__ import annotations

import numpy as np
import pytest

from vim_embed.types.pixels import finite_rows


def test_every_float16_is_told_apart() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    np.testing.assert_array_equal(finite_rows(every[:, None]), np.isfinite(every))


def test_every_float32_of_a_sign_and_exponent_is_told_apart() -> None:
    tops = np.arange(2**9, dtype=np.uint32)[:, None] << 23
    fractions = np.array([0, 1, 2**22, 2**23 - 1], np.uint32)
    every = (tops | fractions).reshape(-1).view(np.float32)
    np.testing.assert_array_equal(finite_rows(every[:, None]), np.isfinite(every))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_one_pixel_is_found_wherever_it_is(dtype: type[np.floating]) -> None:
    random = np.random.default_rng()
    pixels = random.normal(size=(64, 3, 31, 33)).astype(dtype)
    flat = pixels.reshape(64, -1)
    bad = random.choice(64, 32, replace=False)
    places = random.integers(0, flat.shape[1], 32)
    places[:2] = 0, flat.shape[1] - 1
    flat[bad, places] = random.choice([np.nan, -np.nan, np.inf, -np.inf], 32)
    expected = np.isfinite(pixels).all(axis=(1, 2, 3))
    assert expected.sum() == 32
    np.testing.assert_array_equal(finite_rows(pixels), expected)
