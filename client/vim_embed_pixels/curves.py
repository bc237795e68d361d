"""astropy's stretches and limits, under the names that users give.

Nothing of them is written anew: what astropy makes of an array, these make of it.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vim_embed_pixels.errors import UnusableImage, UnusableOptions

Array = NDArray[Any]

_CLASSES = {"asinh": "AsinhStretch", "sqrt": "SqrtStretch", "log": "LogStretch"}
NAMES = frozenset(_CLASSES)
_LUPTON_Q = 8.0  # astropy's own default


def bent(scaled: Array, name: str, softening: float | None) -> Array:
    """Numbers cut to 0..1, by astropy's stretch of this name; softening: its parameter `a`."""
    given = () if softening is None else (softening,)
    curved: Array = getattr(_library(), _CLASSES[name])(*given)(scaled, clip=True)
    return curved


def lupton(rgb: Array, minimum: float, width: float, softening: float | None) -> Array:
    """(3, H, W) fluxes as uint8: one arcsinh of the mean of the bands, which keeps their ratios.

    As make_lupton_rgb(…, minimum, stretch=width, Q=softening) of Lupton et al. 2004
    (2004PASP..116..133L).
    """
    astropy = _library()
    made = astropy.make_lupton_rgb(
        *rgb,
        interval=astropy.ManualInterval(vmin=minimum, vmax=None),
        stretch=width,
        Q=_LUPTON_Q if softening is None else softening,
    )
    return np.ascontiguousarray(made.transpose(2, 0, 1))


def zscale_limits(values: Array) -> tuple[float, float]:
    """IRAF's zscale over the finite values, with astropy's defaults. Raises UnusableImage."""
    if not np.isfinite(values).any():
        raise UnusableImage("all fluxes of one of its bands are NaN or infinite")
    low, high = _library().ZScaleInterval().get_limits(values)
    return float(low), float(high)


def _library() -> ModuleType:
    try:
        import astropy.visualization as library
    except ModuleNotFoundError:
        raise UnusableOptions(
            'this stretch needs astropy: pip install "vim-embed[astro]"'
        ) from None
    found: ModuleType = library
    return found
