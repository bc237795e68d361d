"""From a model's final tokens to one embedding an image. Knows no model, only token layouts."""

from __future__ import annotations

import torch
from torch import Tensor

from vim_embed.types.token_layout import TokenLayout


def pool(tokens: Tensor, pooling: str, layout: TokenLayout) -> Tensor:
    """(B, L, D) in any dtype to (B, D) float32; `tokens` keeps them, (B, L, D).

    mean, max: over all tokens. cls: the class token. registers: the mean over the registers.
    patch-mean: over the patches alone. Raises ValueError for a token that the layout has not.
    """
    tokens = tokens.float()
    if pooling == "tokens":
        return tokens.clone()
    if pooling == "mean":
        return tokens.mean(dim=1)
    if pooling == "max":
        return tokens.amax(dim=1)
    if pooling == "cls" and layout.cls is not None:
        return tokens[:, layout.cls].clone()
    if pooling == "registers" and layout.registers:
        return _chosen(tokens, layout.registers).mean(dim=1)
    if pooling == "patch-mean":
        return _patches(tokens, layout).mean(dim=1)
    raise ValueError(f"these tokens cannot be pooled as {pooling!r}")


def pool_layer(output: Tensor, pooling: str, layout: TokenLayout) -> Tensor:
    """One layer's output to (B, D): spatial mean of (B, C, h, w), `pooling` of (B, L, D).

    Layers ahead of the class token have patches alone; these are averaged (or their maximum taken).
    """
    if output.ndim == 4:
        output = output.flatten(2).transpose(1, 2)
    if output.ndim != 3:
        return output.float().flatten(1)
    whole = output.shape[1] == layout.count
    return pool(output, pooling if whole or pooling == "max" else "mean", layout)


def _chosen(tokens: Tensor, indices: tuple[int, ...]) -> Tensor:
    """Some of the tokens, by slices: an index list would be sent to the device in every forward."""
    return torch.cat([tokens[:, index : index + 1] for index in indices], dim=1)


def _patches(tokens: Tensor, layout: TokenLayout) -> Tensor:
    parts, start = [], 0
    for index in layout.special:
        parts.append(tokens[:, start:index])
        start = index + 1
    return torch.cat([*parts, tokens[:, start:]], dim=1)
