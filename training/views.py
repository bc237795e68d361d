"""Two views of a source for contrastive training: from space, and from the ground.

All on the device, from a seeded generator. Pixels are grey levels from 0 to 255 until `normalised`.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from training.data import PATCH
from vim_embed.types.preprocessing import VIM_PREPROCESSING
from vim_embed_client.demo.stamps import STAMP_PIXELS
from vim_embed_client.demo.views import (
    HYPER_SUPRIME_CAM,
    SPACE_FWHM_ARCSEC,
    SPACE_PIXEL_ARCSEC,
)

SEEING = (0.3, 0.85)  # arcsec, full width at half maximum
_APERTURE = (9.0, 18.0)  # radius in pixels of the picture
_SHIFT = 1.0  # pixels of the picture
_SCALE = 0.08
_STRETCH = 0.35  # at most, of the logarithm of a side
_TURN = math.radians(10)  # beside quarter turns
_FWHM_PER_SIGMA = math.sqrt(8 * math.log(2))


def shared_turns(count: int, share: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Quarter turns and mirrorings of two views: 0 to 7, of each of `count` sources.

    The same ones in both views for a share of the sources, independent of each other for the rest.
    """
    first, second = ((8 * _uniform(count, generator)).floor() for _ in range(2))
    return first, torch.where(_uniform(count, generator) < share, first, second)


def stretches(count: int, generator: Generator) -> Tensor:
    """(B, 2, 2): each source drawn out along some direction, its area kept.

    The same in both views. Two stretches of one picture differ in ellipticity alone.
    """
    ratio = (_STRETCH * _uniform(count, generator)).exp()
    angle = math.pi * _uniform(count, generator)
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([cos, -sin, sin, cos], dim=1).view(count, 2, 2)
    return turn @ torch.diag_embed(torch.stack([ratio, 1 / ratio], dim=1)) @ turn.mT


def alone(patches: Tensor, share: float, generator: Generator) -> Tensor:
    """Patches (B, C, P, P) as floats, a share of them with sky beyond an aperture of their source.

    What a source has in common with itself alone is its own light: not where its neighbours are.
    """
    light = patches.float()
    side = light.shape[-1]
    at = torch.arange(side, device=light.device) - side // 2
    apart = (at[:, None].square() + at.square()).sqrt()
    low, high = _APERTURE
    radius = low + (high - low) * _uniform(len(light), generator)
    radius = torch.where(_uniform(len(light), generator) < share, radius, 2.0 * side)
    inside = torch.sigmoid(radius[:, None, None] - apart)[:, None]
    sky = light[..., ::4, ::4].flatten(2).median(2).values[..., None, None]
    return sky + inside * (light - sky)


def space_view(
    patches: Tensor, size: int, generator: Generator, turns: Tensor, stretch: Tensor
) -> Tensor:
    """(B, 3, P, P) uint8 to (B, 3, S, S): turned, mirrored, moved, scaled, with a little noise."""
    view = _placed(patches, size, generator, turns, stretch)
    return (view + _normal(view.shape, generator)).clamp(0, 255)


def ground_view(
    patches: Tensor, size: int, generator: Generator, turns: Tensor, stretch: Tensor
) -> Tensor:
    """The same by a telescope on the ground: its seeing, coarser pixels, photon and sky noise."""
    view = _placed(patches, size, generator, turns, stretch)
    low, high = SEEING
    fwhm = low + (high - low) * _uniform(len(view), generator)
    sigma = (fwhm.square() - SPACE_FWHM_ARCSEC**2).sqrt() / _FWHM_PER_SIGMA / SPACE_PIXEL_ARCSEC
    view = blurred(view, sigma * size / STAMP_PIXELS)
    telescope = HYPER_SUPRIME_CAM
    coarse = round(STAMP_PIXELS * SPACE_PIXEL_ARCSEC / telescope.pixel)
    light = F.interpolate(view, size=(coarse, coarse), mode="area")
    spread = (light / telescope.electrons + telescope.sky_noise**2).sqrt()
    noisy = (light + spread * _normal(light.shape, generator)).clamp(0, 255)
    return F.interpolate(noisy, size=(size, size), mode="bicubic").clamp(0, 255)


def blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """(B, C, H, W) each by a Gaussian of its own standard deviation (B,) in pixels."""
    mixed = [_mixing(side, sigma)[:, None] for side in images.shape[-2:]]
    return mixed[0] @ images @ mixed[1].transpose(-1, -2)


def _mixing(side: int, sigma: Tensor) -> Tensor:
    """(B, side, side): row i holds the weights that pixel i gives to each pixel of its line."""
    at = torch.arange(side, device=sigma.device)
    weights = torch.exp(-0.5 * ((at[:, None] - at) / sigma[:, None, None]).square())
    return weights / weights.sum(-1, keepdim=True)


def normalised(views: Tensor) -> Tensor:
    """Grey levels as the model wants them."""
    mean, std = (
        torch.tensor(values, device=views.device).view(1, 3, 1, 1)
        for values in (VIM_PREPROCESSING.mean, VIM_PREPROCESSING.std)
    )
    return (views / 255 - mean) / std


def _placed(
    patches: Tensor, size: int, generator: Generator, turns: Tensor, stretch: Tensor
) -> Tensor:
    batch = len(patches)
    angle = (turns % 4) * (math.pi / 2) + _TURN * (2 * _uniform(batch, generator) - 1)
    scale = (1 + _SCALE * (2 * _uniform(batch, generator) - 1)) * STAMP_PIXELS / PATCH
    mirror = torch.where(turns < 4, -1.0, 1.0)
    shift = _SHIFT * 2 / PATCH * (2 * _uniform(2 * batch, generator).view(batch, 2) - 1)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    turn = torch.stack([cos * mirror, -sin, sin * mirror, cos], dim=1).view(batch, 2, 2)
    rows = torch.cat([stretch @ turn, shift[..., None]], dim=2)
    grid = F.affine_grid(rows, [batch, 3, size, size], align_corners=False)
    view = F.grid_sample(
        patches, grid, mode="bicubic", padding_mode="reflection", align_corners=False
    )
    gain = 0.9 + 0.2 * _uniform(batch, generator)
    return (view * gain[:, None, None, None]).clamp(0, 255)


def _uniform(count: int, generator: Generator) -> Tensor:
    return torch.rand(count, generator=generator, device=generator.device)


def _normal(shape: torch.Size, generator: Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)
