"""A service's model as a torch module, for what walks modules: it has no parts of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vim_embed_client.formats import Array


class ServedModule(nn.Module):
    """(B, 3, S, S) pixels in, (B, D) embeddings out. It has one parameter, of no elements."""

    def __init__(self, embed: Callable[[Array], Array]) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.empty(0), requires_grad=False)
        self._embed = embed

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.from_numpy(self._embed(pixels.detach().cpu().numpy()))
