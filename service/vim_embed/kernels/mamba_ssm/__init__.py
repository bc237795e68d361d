"""`MixerOps` on the public CUDA kernels: mamba-ssm's selective scan and causal-conv1d.

Both kernels are channels-first and walk forward only, so this backend transposes, and flips for
the backward direction. Only the compiled `selective_scan_cuda` of mamba-ssm is imported: the
package itself pulls in much that a scan does not need.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vim_embed.kernels.ops import Direction

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@cache
def available() -> tuple[bool, str]:
    """Whether the kernels load here, and why (not)."""
    if not torch.cuda.is_available():
        return False, "no CUDA device is available"
    try:
        import selective_scan_cuda
    except ImportError as error:
        return False, (
            f"mamba-ssm's compiled scan is missing ({error}): build it with "
            "MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation 'vim-embed[cuda]'"
        )
    try:
        from causal_conv1d import causal_conv1d_fn
    except ImportError as error:
        return False, f"causal-conv1d is missing ({error}): pip install 'vim-embed[cuda]'"
    if not hasattr(selective_scan_cuda, "fwd") or causal_conv1d_fn is None:
        return False, "mamba-ssm or causal-conv1d has no forward kernel"
    return True, "selective_scan_cuda and causal_conv1d"


def supports(dtype: torch.dtype, device: torch.device | str) -> tuple[bool, str]:
    """Whether this backend can run with a dtype on a device, and why (not)."""
    if torch.device(device).type != "cuda":
        return False, f"mamba-ssm needs a CUDA device, not {torch.device(device).type}"
    if dtype not in _DTYPES:
        return False, f"mamba-ssm has no kernels for {dtype}"
    return available()


class MambaSsmOps:
    """The operations of a Vim block on public kernels."""

    name = "mamba_ssm"

    def add_norm(
        self, hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        stream = hidden.float() if residual is None else residual + hidden
        normed = F.rms_norm(stream, (stream.shape[-1],), weight.float(), eps)
        return normed.to(hidden.dtype), stream

    def conv_silu(self, x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool) -> Tensor:
        from causal_conv1d import causal_conv1d_fn

        channels_first = _flip(x.transpose(1, 2), reverse).contiguous()
        out: Tensor = causal_conv1d_fn(channels_first, weight, bias, activation="silu")
        return _flip(out, reverse).transpose(1, 2).contiguous()

    def scan(self, forward: Direction, backward: Direction, z: Tensor | None) -> Tensor:
        gate = None if z is None else z.transpose(1, 2).contiguous()
        y = _scan(forward, gate, reverse=False) + _scan(backward, gate, reverse=True)
        return (0.5 * y).transpose(1, 2).contiguous()


def _scan(inputs: Direction, z: Tensor | None, *, reverse: bool) -> Tensor:
    """y (B, E, L) of one direction, gated by z (B, E, L) where there is one."""
    import selective_scan_cuda

    def turned(tensor: Tensor) -> Tensor:
        return _flip(tensor.transpose(1, 2), reverse).contiguous()

    b, c = (turned(states).unsqueeze(1) for states in (inputs.B, inputs.C))
    bias, skip = inputs.delta_bias.float(), inputs.D.float()
    arguments: tuple[Any, ...] = (turned(inputs.u), turned(inputs.delta), inputs.A.float(), b, c)
    gate = None if z is None else _flip(z, reverse)
    outputs = selective_scan_cuda.fwd(*arguments, skip, gate, bias, True)  # out, states, gated
    out: Tensor = outputs[0 if gate is None else 2]
    return _flip(out, reverse)


def _flip(channels_first: Tensor, reverse: bool) -> Tensor:
    """(B, C, L) with time reversed where asked."""
    return channels_first.flip(-1) if reverse else channels_first
