"""Mamba-Reg: Vim with registers spread through the sequence in place of one class token.

Its classifier reads all registers: each through a narrow projection (the neck), joined, and
normalised once. Source: wangf3014/Mamba-Reg, and "Mamba-Reg: Vision Mamba Also Needs Registers",
Wang et al. 2024 (arXiv:2405.14858). Shapes: n registers, r the neck's reduction.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vim_embed.kernels.ops import MixerOps
from vim_embed.models.vim import RMSNorm, Vim, VimConfig, interleave, resample
from vim_embed.types.token_layout import TokenLayout


class MambaReg(Vim):
    """`Vim` with n registers: L = M + n tokens."""

    def __init__(self, config: VimConfig, ops: MixerOps | None = None) -> None:
        super().__init__(config, ops)
        rows, columns = config.native_grid
        self.pos_embed = nn.Parameter(torch.zeros(1, rows * columns, config.dim))
        self.pos_embed_cls = nn.Parameter(torch.zeros(1, config.registers, config.dim))
        if config.reduction > 1:
            self.neck = nn.Linear(config.dim, config.dim // config.reduction, bias=False)
            self.norm_neck = RMSNorm(self.features_dim, config.eps, self.norm_f.ops)

    def special_tokens(self) -> Tensor:
        """(1, n, D): the registers."""
        return self.cls_token

    def places(self, patches: int) -> tuple[int, ...]:
        """A register after every M // (n + 1) patches; the last run takes the remainder."""
        run = patches // (self.config.registers + 1)
        return tuple((run + 1) * number + run for number in range(self.config.registers))

    def position_embedding(self, rows: int, columns: int) -> Tensor:
        """(1, M + n, D): of the patches by their grid, of the registers as they are."""
        patches: Tensor = self.pos_embed
        if (rows, columns) != self.config.native_grid:
            patches = resample(patches, self.config.native_grid, (rows, columns))
        return interleave(patches, self.pos_embed_cls, self.places(rows * columns))

    def layout(self, height: int, width: int) -> TokenLayout:
        rows, columns = self.config.grid(height, width)
        return TokenLayout(grid=(rows, columns), registers=self.places(rows * columns))

    def features(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        """What the classifier reads: (B, n · D / r), register by register."""
        registers = torch.cat([tokens[:, at : at + 1] for at in layout.registers], dim=1)
        if self.config.reduction == 1:
            return registers.flatten(1)
        normed: Tensor
        normed, _ = self.norm_neck(self.neck(registers).flatten(1), None)
        return normed

    @property
    def features_dim(self) -> int:
        return self.config.registers * (self.config.dim // self.config.reduction)
