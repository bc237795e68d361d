"""Vim with rotary positions: hustvl's first release (January 2024, `hustvl/Vim-tiny`).

Before every block the patches of both streams are rotated, again and again, so that the angle
grows with depth; a class token in front is left alone. Source: hustvl/Vim at that date,
vim/models_mamba.py and vim/rope.py, after EVA-02, Fang et al. 2023 (arXiv:2303.11331).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vim_embed.kernels.ops import MixerOps
from vim_embed.models.vim import Vim, VimConfig

TRAINED_SIDE = 14  # positions run from 0 to this, whatever the grid


class Rope(nn.Module):
    """The tables of the native grid, (M, D) each, as the checkpoints hold them."""

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, config: VimConfig) -> None:
        super().__init__()
        cos, sin = rope_tables(config.dim, config.native_grid)
        self.register_buffer("freqs_cos", cos)
        self.register_buffer("freqs_sin", sin)


class RopeVim(Vim):
    """`Vim` whose streams are rotated before every block."""

    def __init__(self, config: VimConfig, ops: MixerOps | None = None) -> None:
        super().__init__(config, ops)
        self.rope = Rope(config)
        self._other_grids: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) to the final tokens (B, L, D)."""
        hidden = self.embed_patches(pixel_values)
        cos, sin = self._tables(self.config.grid(*pixel_values.shape[-2:]), hidden.device)
        residual: Tensor | None = None
        for layer in self.layers:
            hidden = rotate(hidden, cos, sin)
            residual = None if residual is None else rotate(residual, cos, sin)
            hidden, residual = layer(hidden, residual)
        tokens: Tensor
        tokens, _ = self.norm_f(hidden, residual)
        return tokens

    def _tables(self, grid: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
        if grid == self.config.native_grid:
            return self.rope.freqs_cos.float(), self.rope.freqs_sin.float()
        if grid not in self._other_grids:  # a captured graph finds what its warm-up left here
            cos, sin = rope_tables(self.config.dim, grid)
            self._other_grids[grid] = cos.to(device), sin.to(device)
        return self._other_grids[grid]


def rope_tables(dim: int, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Cosines and sines (rows · columns, D): the first half of D by row, the second by column.

    Frequency k of D / 4 is 10000^(-2k / (D / 2)), for two neighbouring channels each.
    """
    half = dim // 2
    frequencies = 10000.0 ** (-torch.arange(0, half, 2, device="cpu").float() / half)

    def angles(count: int) -> Tensor:
        positions = torch.arange(count, device="cpu").float() / count * TRAINED_SIDE
        return (positions[:, None] * frequencies).repeat_interleave(2, dim=1)  # (count, D / 2)

    rows, columns = grid
    by_row = angles(rows)[:, None].expand(-1, columns, -1)
    by_column = angles(columns)[None].expand(rows, -1, -1)
    table = torch.cat([by_row, by_column], dim=-1).reshape(rows * columns, dim)
    return table.cos(), table.sin()


def rotate(stream: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The patches of (B, L, D), the last M tokens, turned pair by pair: v cos + (-v1, v0) sin."""
    first = stream.shape[1] - cos.shape[0]
    patches = stream[:, first:].float()
    turned = torch.stack([-patches[..., 1::2], patches[..., ::2]], dim=-1).flatten(-2)
    rotated = (patches * cos + turned * sin).to(stream.dtype)
    return torch.cat([stream[:, :first], rotated], dim=1) if first else rotated
