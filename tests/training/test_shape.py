"""The pretext task: the ellipticity that is measured in a view, and the loss of an embedding."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from training.shape import ellipticity, shape_loss
from training.train import CODE, Recipe, Trainer

from vim_embed.models.vim import VimConfig

WINDOW = 2.5  # pixels of a view of 48


def _drawn(along: float, across: float, angle: float, x: float, y: float) -> torch.Tensor:
    """(3, 48, 48) a Gaussian on a sky of 20 grey levels, ten times as bright in red as in blue."""
    at = torch.arange(48) - 23.5
    dx, dy = at[None, :] - x, at[:, None] - y
    one = (dx * math.cos(angle) + dy * math.sin(angle)) / along
    other = (dy * math.cos(angle) - dx * math.sin(angle)) / across
    light = 100 * torch.exp(-(one.square() + other.square()) / 2)
    return torch.stack([light, light, light / 10]) + 20


@pytest.mark.parametrize("angle", [0.0, 0.6, 2.0])
def test_a_drawn_galaxy_is_measured_wherever_it_is(angle: float) -> None:
    views = torch.stack([_drawn(4, 2, angle, x, y) for x, y in ((0, 0), (2.5, -1.5))])
    # A Gaussian under another one: inverse variances add up.
    along, across = (1 / (1 / side**2 + 1 / WINDOW**2) for side in (4, 2))
    assert ellipticity(views).tolist() == pytest.approx([1 - (across / along) ** 0.5] * 2, abs=0.02)


def test_an_empty_view_is_measured_too() -> None:
    assert ellipticity(torch.full((2, 3, 48, 48), 7.0)).tolist() == pytest.approx([0, 0], abs=1e-3)


def test_the_loss_asks_for_a_share_of_the_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    seen = torch.randn(4000, generator=generator)
    rest = torch.randn(4000, 20, generator=generator) * (0.8 / 20) ** 0.5
    right = torch.cat([seen[:, None] * 0.2**0.5, rest], dim=1)
    assert float(shape_loss(right, seen, 0.2)) < 0.001
    assert float(shape_loss(3 * right + 1, seen, 0.2)) < 0.001
    assert float(shape_loss(right, 5 * seen + 2, 0.2)) < 0.001
    assert float(shape_loss(right, seen, 0.1)) > 0.03
    assert float(shape_loss(right, seen.flip(0), 0.2)) > 0.4


def test_a_step_measures_its_views_and_weighs_the_loss() -> None:
    real = torch.randint(0, 256, (8, 3, 96, 96), dtype=torch.uint8)
    recipe = Recipe(pairs=8, simulated=0.0)
    config = VimConfig(dim=32, depth=1, image_size=32, patch_size=8, stride=8)
    plain, whole, twice = (
        Trainer(replace(recipe, shape=weight), real, real[:0], config) for weight in (0.0, 1.0, 2.0)
    )
    views, seen = whole.views(0)
    assert (len(views), seen.shape) == (16, (16,))
    codes = whole.encode(views).detach()
    assert codes.shape == (16, CODE + 32)
    lengths = torch.stack([codes[:, :CODE].norm(dim=1), codes[:, CODE:].norm(dim=1)])
    assert torch.allclose(lengths, torch.ones(2, 16), atol=1e-5)
    space, ground = (
        shape_loss(codes[rows, CODE:], seen[rows], recipe.share)
        for rows in (slice(8), slice(8, 16))
    )
    losses = [float(trainer.loss(codes, seen)) for trainer in (plain, whole, twice)]
    added = float(space + ground) / 2
    assert added > 0.1
    assert losses == pytest.approx([losses[0] + weight * added for weight in (0, 1, 2)], rel=1e-5)
