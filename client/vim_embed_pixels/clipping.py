"""Whether a stretch left anything to see: pixels that are cut off, and images that are all but
black or of one colour."""

from __future__ import annotations

from functools import reduce
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_DARK = 16  # of 255: below it, nothing is seen on a screen
_LEAST_SEEN = 0.01  # of the values of an image
_FEW_LEVELS = 4
_MANY_BLACK, _MANY_WHITE = 0.5, 0.1
_FIX = "so that a model sees little: `vim-embed preview` shows it under other --limits or --stretch"


class Clipped(NamedTuple):
    """Shares of an image's pixels: black has all bands 0, white has one at 255."""

    black: float
    white: float


def clipped(pixels: NDArray[np.uint8]) -> Clipped:
    """Of (bands, H, W)."""
    # Band by band: numpy's reduction is forty times slower where memory has them as H, W, bands.
    most = reduce(np.maximum, pixels)
    black = most.size - np.count_nonzero(most)
    white = np.count_nonzero(most == 255)
    return Clipped(black / most.size, white / most.size)


def remark(pixels: NDArray[Any]) -> str:
    """What to say of (3, H, W) RGB that shows next to nothing, with the fix; "" for others."""
    if int(pixels.max()) - int(pixels.min()) < _FEW_LEVELS:
        return f"all but constant, {_FIX}"
    if np.count_nonzero(pixels > _DARK) < _LEAST_SEEN * pixels.size:
        return f"nearly black, {_FIX}"
    black, white = clipped(pixels)
    if black >= _MANY_BLACK:
        return f"half of the pixels or more are black (0), {_FIX}"
    if white >= _MANY_WHITE:
        return f"a tenth of the pixels or more are white (255), {_FIX}"
    return ""
