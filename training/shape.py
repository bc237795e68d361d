"""A pretext task without labels: the embedding is to show the ellipticity measured in its own view.

Nearest neighbours agree in what embeddings vary in. So it is not enough that the ellipticity can be
read off: it has to take a share of the variance. `shape_loss` asks that the first number of the
embedding is the ellipticity, and has that share.

The card measures the same kind of quantity, in the picture around held-out sources (evaluate.py).
Here it is measured in the views of trained ones, moved, drawn out, and noisy as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_WINDOW = 2.5 / 48  # of the side of a view, standard deviation
_CENTRINGS = 6  # until the window is on the source


def ellipticity(views: Tensor) -> Tensor:
    """(B,) of grey levels (B, 3, S, S): 1 - q, of minor over major axis q.

    By second moments of the light over the view's median, under a Gaussian at the centre of light.
    """
    side = views.shape[-1]
    sky = views[..., ::2, ::2].flatten(2).median(2).values[..., None, None]
    light = (views - sky).clamp(min=0).mean(1) + 1e-3
    at = torch.arange(side, device=views.device) - (side - 1) / 2
    x = y = torch.zeros(len(views), 1, 1, device=views.device)
    for _ in range(_CENTRINGS):
        dx, dy = at[None, None, :] - x, at[None, :, None] - y
        weights = light * torch.exp(-(dx.square() + dy.square()) / (2 * (_WINDOW * side) ** 2))
        weights = weights / weights.sum((1, 2), keepdim=True)
        x, y = (
            x + (weights * dx).sum((1, 2), keepdim=True),
            y + (weights * dy).sum((1, 2), keepdim=True),
        )
    xx, yy, xy = (_moment(weights, one, two) for one, two in ((dx, dx), (dy, dy), (dx, dy)))
    half, spread = (xx + yy) / 2, torch.hypot((xx - yy) / 2, xy)
    return 1 - ((half - spread).clamp(min=0) / (half + spread)).sqrt()


def shape_loss(units: Tensor, seen: Tensor, share: float) -> Tensor:
    """Of embeddings (B, D) of length 1, and the ellipticity (B,) measured in their views.

    0 where the first number of an embedding is that ellipticity, and its variance is this share of
    that of all D numbers.
    """
    wanted = (seen - seen.mean()) / (seen.std() + 1e-6)
    apart = units - units.mean(0)
    apart = apart / apart.square().sum(1).mean().sqrt()
    return F.smooth_l1_loss(apart[:, 0] * (1 / share) ** 0.5, wanted)


def _moment(weights: Tensor, one: Tensor, two: Tensor) -> Tensor:
    """Second moments (B,) about the centre of light."""
    mean = (weights * one * two).sum((1, 2))
    return mean - (weights * one).sum((1, 2)) * (weights * two).sum((1, 2))
