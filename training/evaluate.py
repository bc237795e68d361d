"""Figures of the held-out region: do the model's neighbours agree between views, and in properties?

The views are the demo's own (the whole picture seen from the ground), not those of training, and
the model is loaded and run as the service does it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data import regions
from vim_embed.inference.embedder import Embedder
from vim_embed.models.vim import Vim, init_random
from vim_embed.weights.load import load_model
from vim_embed_client.demo.stamps import Sources, cut_stamps, hubble_picture, stamp_boxes
from vim_embed_client.demo.views import ground_view, to_ground
from vim_embed_client.scoring.catalogue_property import property_agreement
from vim_embed_client.scoring.metrics import MetricScore
from vim_embed_client.scoring.mknn import Score, score

Pixels = NDArray[np.uint8]
Values = NDArray[np.float64]
RANDOM_SEEDS = (1, 2, 3)
_PERMUTATIONS = 100
WINDOW = 2.5  # pixels of the picture, standard deviation


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of one model on the held-out sources."""

    mknn: Score
    properties: dict[str, MetricScore]


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Both views (n, 3, S, S), and what was measured of the sources in the picture, by name."""

    space: Pixels
    ground: Pixels
    properties: dict[str, Values]


@cache
def held_out(size: int) -> HeldOut:
    """At the model's size; always the same."""
    picture, sources = hubble_picture(), regions().held_out
    ground = ground_view(picture)
    boxes = stamp_boxes(sources.positions)
    return HeldOut(
        space=cut_stamps(picture, boxes, size=size),
        ground=cut_stamps(ground, to_ground(boxes, picture, ground), size=size),
        properties=measured(picture, sources),
    )


def measured(picture: Pixels, sources: Sources) -> dict[str, Values]:
    """Half-light radius in pixels, colour (log10 of red over blue), ellipticity (1 - q).

    Over the median of the picture; radius and colour within twice the source's radius. q by second
    moments under a Gaussian of WINDOW pixels at the centre of light: of simulated galaxies, 40 % of
    them beside another one, the ellipticity so measured has a rank correlation of 0.92 with the
    true one, and 0.48 within twice the radius, where neighbours weigh most.
    """
    light = picture.astype(np.float64) - np.median(picture, axis=(0, 1))
    places = zip(sources.positions.tolist(), sources.radius.tolist(), strict=True)
    rows = [_measured(light, x, y, radius) for (x, y), radius in places]
    sizes, colour, ellipticity = np.array(rows).T
    return {"half-light radius": sizes, "colour": colour, "ellipticity": ellipticity}


def _measured(light: Values, x: float, y: float, radius: float) -> tuple[float, float, float]:
    reach = int(np.ceil(2 * radius))
    top, left = max(0, round(y) - reach), max(0, round(x) - reach)
    cut = light[top : round(y) + reach + 1, left : round(x) + reach + 1].clip(0)
    rows, columns = np.mgrid[: cut.shape[0], : cut.shape[1]]
    dy, dx = rows + top - y, columns + left - x
    apart = np.hypot(dx, dy)
    inside = apart <= 2 * radius
    weights = np.where(inside, cut.mean(axis=2), 0)
    total = weights.sum()
    order = np.argsort(apart, axis=None)
    grown = np.cumsum(weights.ravel()[order])
    half = apart.ravel()[order][np.searchsorted(grown, total / 2)]
    red, _, blue = np.where(inside[..., None], cut, 0).sum(axis=(0, 1))
    return float(half), float(np.log10((red + 1) / (blue + 1))), _ellipticity(light, x, y)


def _ellipticity(light: Values, x: float, y: float) -> float:
    """Under the window, so that a source wider than it seems rounder than it is."""
    reach = int(4 * WINDOW)
    top, left = max(0, round(y) - reach), max(0, round(x) - reach)
    cut = light[top : round(y) + reach + 1, left : round(x) + reach + 1].clip(0).mean(axis=2)
    rows, columns = np.mgrid[: cut.shape[0], : cut.shape[1]]
    dy, dx = rows + top - y, columns + left - x
    for _ in range(3):
        weights = cut * np.exp(-(dx**2 + dy**2) / (2 * WINDOW**2))
        weights /= weights.sum()
        dx, dy = dx - (weights * dx).sum(), dy - (weights * dy).sum()
    xx, yy, xy = ((weights * a * b).sum() for a, b in ((dx, dx), (dy, dy), (dx, dy)))
    least, most = np.linalg.eigvalsh(np.array([[xx, xy], [xy, yy]]))
    return float(1 - (max(least, 0) / most) ** 0.5)


def figures(model: Embedder, data: HeldOut) -> Figures:
    """By the pooling mean, in float32."""
    space, ground = model.embed(data.space), model.embed(data.ground)
    return Figures(
        mknn=score(space, ground),
        properties={
            name: property_agreement(space, values, name=name, permutations=_PERMUTATIONS)
            for name, values in data.properties.items()
        },
    )


def trained(path: Path, device: str = "auto") -> Embedder:
    """The weights as the service loads them."""
    return load_model("trained", path, device=device)


def untrained(like: Embedder, seed: int) -> Embedder:
    """Random weights of the same architecture, as training begins with."""
    assert isinstance(like.module, Vim)
    module = Vim(like.module.config)
    init_random(module, seed)
    return Embedder(like.info, module.to(like.device).requires_grad_(False).eval(), like.device)
