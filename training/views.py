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

SEEING = (0.5, 0.85)  # arcsec, full width at half maximum
_SHIFT = 3.0  # pixels of the picture
_SCALE = 0.15
_TURN = math.radians(10)  # beside quarter turns
_KERNEL = 13  # pixels to either side
_FWHM_PER_SIGMA = math.sqrt(8 * math.log(2))


def space_view(patches: Tensor, size: int, generator: Generator) -> Tensor:
    """(B, 3, P, P) uint8 to (B, 3, S, S): turned, mirrored, moved, scaled, with a little noise."""
    view = _placed(patches, size, generator)
    return (view + _normal(view.shape, generator)).clamp(0, 255)


def ground_view(patches: Tensor, size: int, generator: Generator) -> Tensor:
    """The same by a telescope on the ground: its seeing, coarser pixels, photon and sky noise."""
    view = _placed(patches, size, generator)
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
    batch, channels, height, width = images.shape
    at = torch.arange(-_KERNEL, _KERNEL + 1, device=images.device)
    kernel = torch.exp(-0.5 * (at / sigma[:, None]).square())
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, dim=0)
    flat = F.pad(images, (_KERNEL,) * 4, mode="reflect").reshape(1, batch * channels, -1)
    flat = flat.reshape(1, batch * channels, height + 2 * _KERNEL, width + 2 * _KERNEL)
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=batch * channels)
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=batch * channels)
    return flat.reshape(batch, channels, height, width)


def normalised(views: Tensor) -> Tensor:
    """Grey levels as the model wants them."""
    mean, std = (
        torch.tensor(values, device=views.device).view(1, 3, 1, 1)
        for values in (VIM_PREPROCESSING.mean, VIM_PREPROCESSING.std)
    )
    return (views / 255 - mean) / std


def _placed(patches: Tensor, size: int, generator: Generator) -> Tensor:
    batch = len(patches)
    quarters = (4 * _uniform(batch, generator)).floor()
    angle = quarters * (math.pi / 2) + _TURN * (2 * _uniform(batch, generator) - 1)
    scale = (1 + _SCALE * (2 * _uniform(batch, generator) - 1)) * STAMP_PIXELS / PATCH
    mirror = torch.where(_uniform(batch, generator) < 0.5, -1.0, 1.0)
    shift = _SHIFT * 2 / PATCH * (2 * _uniform(2 * batch, generator).view(batch, 2) - 1)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = torch.stack([cos * mirror, -sin, shift[:, 0], sin * mirror, cos, shift[:, 1]], dim=1)
    grid = F.affine_grid(rows.view(batch, 2, 3), [batch, 3, size, size], align_corners=False)
    view = F.grid_sample(patches.float(), grid, mode="bicubic", align_corners=False)
    gain = 0.9 + 0.2 * _uniform(batch, generator)
    return (view * gain[:, None, None, None]).clamp(0, 255)


def _uniform(count: int, generator: Generator) -> Tensor:
    return torch.rand(count, generator=generator, device=generator.device)


def _normal(shape: torch.Size, generator: Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)
