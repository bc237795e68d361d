"""The pictures to train on: the packaged Hubble picture but for a region, and simulated galaxies.

Both are (N, 3, PATCH, PATCH) uint8 around a source, at the picture's scale; views.py cuts views.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vim_embed_client.demo.stamps import STAMP_PIXELS, Sources, find_sources, hubble_picture
from vim_embed_client.demo.views import SPACE_FWHM_ARCSEC, SPACE_PIXEL_ARCSEC

Patches = NDArray[np.uint8]

PATCH = 96  # pixels: a stamp turned, drawn out, larger and moved; its corners may be mirrored
# Columns of the picture. No view reaches beyond its patch, so that training ends before 608 + 48;
# what is held out begins at 680 - 24, both being 656.
TRAINED_BELOW, HELD_OUT_FROM = 608, 680


@dataclass(frozen=True, kw_only=True)
class Regions:
    """Sources of the picture by region; those in between are in neither."""

    trained: Sources
    held_out: Sources


@cache
def regions() -> Regions:
    """Always the same ones."""
    sources = find_sources(hubble_picture(), stamp=STAMP_PIXELS)
    x = sources.positions[:, 0]
    return Regions(
        trained=_chosen(sources, x < TRAINED_BELOW), held_out=_chosen(sources, x >= HELD_OUT_FROM)
    )


def hubble_patches(sources: Sources) -> Patches:
    """The picture around each source, mirrored at the picture's edges."""
    half = PATCH // 2
    padded = np.pad(hubble_picture(), ((half, half), (half, half), (0, 0)), mode="reflect")
    corners = np.rint(sources.positions).astype(int)
    cut = [padded[y : y + PATCH, x : x + PATCH].transpose(2, 0, 1) for x, y in corners]
    return np.ascontiguousarray(np.stack(cut))


def simulated_patches(count: int, seed: int) -> Patches:
    """Bulge and disc galaxies (Sérsic 1963) through the space telescope's point-spread function,
    alone or with a neighbour, on a noisy sky, rendered in three bands and stretched by arcsinh
    (Lupton et al. 2004, PASP 116, 133). Needs galsim (extra `train`).
    """
    rng = np.random.default_rng(seed)
    return np.stack([_simulated(rng) for _ in range(count)])


def _simulated(rng: np.random.Generator) -> Patches:
    import galsim

    flux = 10 ** rng.uniform(2.2, 4.2)
    scene = _galaxy(rng, flux)
    if rng.random() < 0.3:
        shift = rng.uniform(-PATCH / 3, PATCH / 3, 2) * SPACE_PIXEL_ARCSEC
        other = _galaxy(rng, flux * 10 ** rng.uniform(-1, 0.3))
        scene = [one + two.shift(*shift) for one, two in zip(scene, other, strict=True)]
    psf = galsim.Gaussian(fwhm=SPACE_FWHM_ARCSEC)
    bands = []
    for band in scene:
        image = galsim.Convolve(band, psf).drawImage(
            nx=PATCH, ny=PATCH, scale=SPACE_PIXEL_ARCSEC, method="no_pixel"
        )
        light = image.array + rng.normal(0, 1.5, (PATCH, PATCH))
        bands.append(255 * np.arcsinh(np.maximum(light + 1, 0) / 6) / math.asinh(60))
    return np.stack(bands).clip(0, 255).astype(np.uint8)


def _galaxy(rng: np.random.Generator, flux: float) -> list[Any]:
    """A bulge and a disc in red, green and blue."""
    import galsim

    radius = float(np.exp(rng.normal(math.log(0.45), 0.5)))  # arcsec
    share = rng.beta(1, 2)  # of the bulge
    turn = galsim.Angle(rng.uniform(0, math.pi), galsim.radians)
    disc = galsim.Exponential(half_light_radius=radius).shear(q=rng.uniform(0.2, 1), beta=turn)
    bulge = galsim.Sersic(n=rng.uniform(1.5, 4), half_light_radius=0.4 * radius).shear(
        q=rng.uniform(0.6, 1), beta=turn
    )
    red = rng.normal(0.1, 0.25)  # colour of the disc: log10 of red over blue; bulges are redder
    slopes = (0.5, 0.0, -0.5)
    return [
        flux * 10 ** (red * s) * ((1 - share) * disc + share * 10 ** (0.3 * s) * bulge)
        for s in slopes
    ]


def _chosen(sources: Sources, mask: NDArray[np.bool_]) -> Sources:
    return Sources(
        positions=sources.positions[mask], flux=sources.flux[mask], radius=sources.radius[mask]
    )
