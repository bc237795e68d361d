"""Fluxes that are exactly 0 because there is no data, which nothing in the file says."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_LEAST = 0.02  # of a band's pixels
_TOGETHER = 0.8
_FIX = "if there is no data, give --mask or --weight, or make these pixels NaN"


def remark_on_zeros(fluxes: NDArray[Any]) -> str:
    """What to say of (bands, H, W) or (H, W) floats with an area of zeros at an edge, or "".

    Zeros that lie scattered are counts, and so are those between others that do.
    """
    if fluxes.dtype.kind != "f" or fluxes.ndim < 2 or not fluxes.size:
        return ""
    zero = fluxes == 0
    if any(map(_is_area, zero.reshape(-1, *zero.shape[-2:]))):
        return f"its fluxes are exactly 0 in an area at an edge: {_FIX}"
    return ""


def _is_area(zero: NDArray[Any]) -> bool:
    """Whether zeros lie together, reach an edge, and leave other pixels that lie together."""
    if not _LEAST * zero.size <= np.count_nonzero(zero) < zero.size:
        return False
    at_edge = zero[0].any() or zero[-1].any() or zero[:, 0].any() or zero[:, -1].any()
    return bool(at_edge) and all(_together(one) >= _TOGETHER for one in (zero, ~zero))


def _together(where: NDArray[Any]) -> float:
    """Of the pixels that are true, the share whose next ones along both axes are too."""
    both = int(np.count_nonzero(where[:-1, :-1] & where[1:, :-1] & where[:-1, 1:]))
    return both / max(int(np.count_nonzero(where[:-1, :-1])), 1)
