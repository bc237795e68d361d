"""The forwards that `gpu` compares for a ViT proxy: as it is served, transformers', and timm's.

Each gives the mean of the final tokens (B, D) in float32. Ours and transformers' have the same
seeded weights.
"""

from __future__ import annotations

from copy import deepcopy
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vim_embed.bench.kinds import Forward, Kind, timm_model

_TIMM = {
    "vim-tiny-proxy": "vit_base_patch16_224",
    "vim-small-proxy": "vit_large_patch16_224",
    "vim-base-proxy": "vit_huge_patch14_224",
}


@lru_cache(maxsize=1)
def seeded(name: str) -> Any:
    """A proxy of the catalogue with seeded random weights, in float32 on the CPU."""
    from vim_embed.models.vit import random_vit

    return random_vit(name, seed=0)


def reference(name: str, device: torch.device) -> Forward:
    """float32, by transformers' own code."""
    return transformers_eager(name, torch.float32, device, 224)


def served(
    name: str, dtype: torch.dtype, device: torch.device, size: int, *, ieee: bool = False
) -> Forward:
    """As the service computes it in a graph."""
    model = deepcopy(seeded(name)).to(device, dtype)
    if dtype == torch.float32 and not ieee:
        from vim_embed.kernels.fused.linear import split_products

        model.use_products(split_products(device))
    model.prepare_for_graphs()
    return _mean(model, dtype)


def transformers_eager(name: str, dtype: torch.dtype, device: torch.device, size: int) -> Forward:
    """transformers with scaled dot-product attention, without a graph."""
    model = deepcopy(seeded(name)).to(device, dtype)
    model.model.set_attn_implementation("sdpa")
    return _mean(model, dtype)


def timm_vit(name: str, dtype: torch.dtype, device: torch.device, size: int) -> Forward:
    """timm's ViT of the same shape, random weights of its own."""
    return _mean(timm_model(_TIMM[name], size).to(device, dtype).forward_features, dtype)


def _mean(model: Any, dtype: torch.dtype) -> Forward:
    @torch.no_grad()
    def forward(pixels: Tensor) -> Tensor:
        out: Tensor = model(pixels.to(dtype)).float().mean(dim=1)
        return out

    return forward


PROXIES = Kind(
    models=tuple(_TIMM),
    reference=reference,
    ours=served,
    rivals={"transformers": transformers_eager, "timm": timm_vit},
    eager=frozenset({"transformers"}),
    apart=frozenset({"timm"}),
)
