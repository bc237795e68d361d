"""Which models and devices the fused forward takes."""

from __future__ import annotations

import torch

from vim_embed.kernels.fused.compile import CompileError, compiler_version
from vim_embed.kernels.fused.device_code import too_old
from vim_embed.kernels.fused.program import DTYPES
from vim_embed.models.vim import VimConfig


def supports(config: VimConfig, dtype: torch.dtype, device: torch.device | str) -> tuple[bool, str]:
    """Whether `FusedVim` can run such a model here, and why (not)."""
    reason = _unsupported_shape(config) or _unsupported_device(dtype, torch.device(device))
    return (False, reason) if reason else (True, "CUDA kernels for the whole block")


def _unsupported_shape(config: VimConfig) -> str:
    wanted = {
        f"d_state is {config.d_state}, not 16": config.d_state == 16,
        f"d_conv is {config.d_conv}, not 4": config.d_conv == 4,
        f"the inner width {config.inner} is no multiple of 64": config.inner % 64 == 0,
        f"the width {config.dim} is no multiple of 32": config.dim % 32 == 0,
        f"the width {config.dim} is above 2048": config.dim <= 2048,
        f"the step-size rank {config.rank} is above 64": config.rank <= 64,
        f"the patch size {config.patch_size} is no multiple of 8": config.patch_size % 8 == 0,
        f"images have {config.channels} channels, not 3": config.channels == 3,
        "the mixer has a norm of its own": not config.mixer_norm,
        "the streams are rotated between the blocks": not config.rope,
    }
    return next((reason for reason, met in wanted.items() if not met), "")


def _unsupported_device(dtype: torch.dtype, device: torch.device) -> str:
    if dtype not in DTYPES:
        return f"no kernels for {dtype}"
    if device.type != "cuda":
        return f"the fused kernels need a CUDA device, not {device.type}"
    if not torch.cuda.is_available():
        return "no CUDA device is available"
    if reason := too_old(torch.cuda.get_device_capability(device)):
        return reason
    try:
        compiler_version()
    except CompileError as error:
        return str(error)
    return ""
