"""FastVim's plain Vim: a LayerNorm between the scan and the gate, trained with labels or as a MAE.

y = (forward + backward) / 2 without a gate; then LayerNorm, times silu(z), out_proj. Source:
insitro/FastVim, and "FastVim", Kapse et al. 2025 (arXiv:2502.01844). Its models that pool tokens
inside the scan compute something else and are not here.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from vim_embed.kernels.ops import MixerOps
from vim_embed.models.vim import BiMamba, Block, Vim, VimConfig


class NormedBiMamba(BiMamba):
    """The mixer with its norm of E channels ahead of the gate."""

    def __init__(self, config: VimConfig, ops: MixerOps) -> None:
        super().__init__(config, ops)
        self.layernorm = nn.LayerNorm(config.inner, config.eps)

    def forward(self, hidden: Tensor) -> Tensor:
        x, z = self.in_proj(hidden).split(self.inner, dim=-1)
        forward, backward = self.directions(x)
        normed = self.layernorm(self.ops.scan(forward, backward, None))
        out: Tensor = self.out_proj(normed * F.silu(z))
        return out


class FastVim(Vim):
    """`Vim` on normed mixers."""

    def __init__(self, config: VimConfig, ops: MixerOps | None = None) -> None:
        super().__init__(config, ops)
        for layer in self.layers:
            block = cast(Block, layer)
            block.mixer = NormedBiMamba(config, block.norm.ops)
