"""The same field as a telescope on the ground would see it; knows no sources and no service.

The picture is a press image: its grey levels are a stretched rendering of flux in three of
nine bands, not calibrated. The view is therefore a likeness of a survey, not a simulation of
one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.transform import resize_local_mean

Array = NDArray[Any]

# 1000 pixels across about 2.3 arcminutes, the deepest part of the XDF (4.7 square arcminutes;
# Illingworth et al. 2013, ApJS 209, 6): drizzled at 0.06 arcsec and reduced for the press.
SPACE_PIXEL_ARCSEC = 0.139
# WFC3/IR, the widest of the bands combined in the picture (same paper).
SPACE_FWHM_ARCSEC = 0.18

_FWHM_PER_SIGMA = (8 * np.log(2)) ** 0.5


@dataclass(frozen=True, kw_only=True)
class Telescope:
    """fwhm, pixel: in arcseconds. sky_noise: standard deviation of the sky in grey levels.

    electrons: per grey level, which sets the photon noise of the sources.
    """

    name: str
    fwhm: float
    pixel: float
    sky_noise: float
    electrons: float


# Pixels and median i-band seeing of the Subaru Strategic Program (Aihara et al. 2018, PASJ 70,
# S4); the noise is a choice of ours.
HYPER_SUPRIME_CAM = Telescope(
    name="Subaru Hyper Suprime-Cam", fwhm=0.6, pixel=0.168, sky_noise=6.0, electrons=4.0
)


def ground_view(
    picture: NDArray[np.uint8], *, telescope: Telescope = HYPER_SUPRIME_CAM, seed: int = 0
) -> NDArray[np.uint8]:
    """A (H, W, 3) picture of the same field with coarser pixels, (h, w, 3).

    A Gaussian takes the point-spread function from the space telescope's width to the ground
    telescope's (widths add in quadrature); light is averaged over the larger pixels, which
    conserves it; photon and sky noise are added to each. h / H is the ratio of the scales.
    """
    blurred = gaussian_filter(
        picture.astype(np.float64), (*2 * (matching_sigma(telescope),), 0), mode="nearest"
    )
    ratio = SPACE_PIXEL_ARCSEC / telescope.pixel
    shape = tuple(round(side * ratio) for side in picture.shape[:2])
    coarse = resize_local_mean(blurred, shape, channel_axis=2, preserve_range=True)
    noisy = _expose(coarse, telescope, np.random.default_rng(seed))
    view: NDArray[np.uint8] = np.rint(np.clip(noisy, 0, 255)).astype(np.uint8)
    return view


def matching_sigma(telescope: Telescope) -> float:
    """Standard deviation, in space pixels, of the blur between the two point-spread functions."""
    fwhm = (telescope.fwhm**2 - SPACE_FWHM_ARCSEC**2) ** 0.5
    return float(fwhm / _FWHM_PER_SIGMA / SPACE_PIXEL_ARCSEC)


def to_ground(boxes: Array, space: Array, ground: Array) -> Array:
    """Boxes (N, 4) in the space picture's pixels as boxes of the same field in the ground's."""
    (height, width), (h, w) = space.shape[:2], ground.shape[:2]
    scaled: Array = boxes * np.array([w / width, h / height, w / width, h / height])
    return scaled


def _expose(light: Array, telescope: Telescope, rng: np.random.Generator) -> Array:
    photons = rng.poisson(light * telescope.electrons) / telescope.electrons
    return photons + rng.normal(scale=telescope.sky_noise, size=light.shape)
