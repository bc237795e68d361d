"""The forwards that `gpu` compares for a Vim: ours, the public kernels, and timm's DeiT.

Each takes float32 images (B, 3, H, W) on the device and gives the class tokens (B, D), in the
dtype of its computation. All Vims have the same seeded weights.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from vim_embed.bench.hustvl import Reference
from vim_embed.bench.kinds import Forward, Kind, RivalMissing, timm_model
from vim_embed.kernels import mamba_ssm
from vim_embed.kernels.fused.launch import Kernels
from vim_embed.kernels.fused.program import Shape
from vim_embed.kernels.reference import ReferenceOps
from vim_embed.models.vim import VIM_CONFIGS, Vim, init_random
from vim_embed.models.vim_fused import FusedVim


@lru_cache(maxsize=1)
def seeded(name: str) -> Vim:
    """A Vim of the catalogue with seeded random weights, in float32 on the CPU."""
    model = Vim(VIM_CONFIGS[name], ReferenceOps())
    init_random(model, seed=1)
    return model.requires_grad_(False).eval()


def reference(name: str, device: torch.device) -> Forward:
    """The specification: float32, plain torch."""
    return _class_token(_copy(name, torch.float32, device))


def fused(
    name: str, dtype: torch.dtype, device: torch.device, size: int, *, ieee: bool = False
) -> Forward:
    return FusedVim(seeded(name), dtype, device, ieee=ieee).cls


def public_backend(name: str, dtype: torch.dtype, device: torch.device, size: int) -> Forward:
    """This project's backend `mamba_ssm`."""
    works, reason = mamba_ssm.supports(dtype, device)
    if not works:
        raise RivalMissing(reason)
    model = _copy(name, dtype, device)
    model.use_ops(mamba_ssm.MambaSsmOps())
    return _class_token(model)


def original(name: str, dtype: torch.dtype, device: torch.device, size: int) -> Forward:
    """hustvl's layout and calls on the public kernels."""
    works, reason = mamba_ssm.supports(dtype, device)
    if not works:
        raise RivalMissing(reason)
    config = VIM_CONFIGS[name]
    kernels = Kernels(Shape(config.dim, config.inner, config.rank, dtype), device)
    model = Reference(_copy(name, torch.float32, device), dtype, kernels)
    # its own float32 weights are cast already
    model.model.layers = torch.nn.ModuleList()

    def forward(pixels: Tensor) -> Tensor:
        tokens = model(pixels)
        return tokens[:, (tokens.shape[1] - 1) // 2]

    return forward


def deit(name: str, dtype: torch.dtype, device: torch.device, size: int) -> Forward:
    """timm's DeiT of the same width with scaled dot-product attention, random weights."""
    kind = name.removeprefix("vim-")
    if kind not in ("tiny", "small", "base"):
        raise RivalMissing(f"there is no DeiT like {name}")
    model = timm_model(f"deit_{kind}_patch16_224", size)
    if not model.blocks[0].attn.fused_attn:
        raise RivalMissing("timm's attention is not fused here: unset TIMM_FUSED_ATTN")
    model.to(device, dtype)

    @torch.inference_mode()
    def forward(pixels: Tensor) -> Tensor:
        out: Tensor = model(pixels.to(dtype))
        return out

    return forward


def _copy(name: str, dtype: torch.dtype, device: torch.device) -> Vim:
    model = Vim(VIM_CONFIGS[name], ReferenceOps())
    model.load_state_dict(seeded(name).state_dict())
    return model.requires_grad_(False).eval().to(device, dtype)


def _class_token(model: Vim) -> Forward:
    dtype = next(model.parameters()).dtype

    @torch.inference_mode()
    def forward(pixels: Tensor) -> Tensor:
        tokens = model(pixels.to(dtype))
        out: Tensor = tokens[:, model.cls_index(tokens.shape[1])]
        return out

    return forward


VIMS = Kind(
    models=tuple(VIM_CONFIGS),
    reference=reference,
    ours=fused,
    rivals={"mamba_ssm": public_backend, "hustvl": original, "DeiT": deit},
    apart=frozenset({"DeiT"}),
)
