"""The specification: plain torch, one time step after the other. Slow on purpose.

In float32, whatever the inputs are; in float64 where these are that.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vim_embed.kernels.ops import Direction, wide


class ReferenceOps:
    """Plain-torch `MixerOps`; every other backend is compared with this one."""

    name = "reference"

    def add_norm(
        self, hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        stream = wide(hidden) if residual is None else residual + wide(hidden)
        scale = torch.rsqrt(stream.square().mean(dim=-1, keepdim=True) + eps)
        return (stream * scale * wide(weight)).to(hidden.dtype), stream

    def conv_silu(self, x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool) -> Tensor:
        taps = weight.shape[1]
        channels_first = wide(x.transpose(1, 2))
        if reverse:
            padded, kernel = F.pad(channels_first, (0, taps - 1)), weight.flip(-1)
        else:
            padded, kernel = F.pad(channels_first, (taps - 1, 0)), weight
        out = F.conv1d(padded, wide(kernel).unsqueeze(1), wide(bias), groups=x.shape[2])
        return F.silu(out).transpose(1, 2).contiguous().to(x.dtype)

    def scan(self, forward: Direction, backward: Direction, z: Tensor | None) -> Tensor:
        y = scan_direction(forward, reverse=False) + scan_direction(backward, reverse=True)
        gate = 1.0 if z is None else F.silu(wide(z))
        return (0.5 * y * gate).to(forward.u.dtype)


def scan_direction(inputs: Direction, *, reverse: bool) -> Tensor:
    """y (B, L, E) of one direction, at least float32: the recurrence of `MixerOps.scan`."""
    u = wide(inputs.u)
    delta = F.softplus(wide(inputs.delta) + wide(inputs.delta_bias))
    b, c = wide(inputs.B), wide(inputs.C)
    batch, length, channels = u.shape
    state = u.new_zeros(batch, channels, inputs.A.shape[1])
    y = torch.empty_like(u)
    steps = range(length - 1, -1, -1) if reverse else range(length)
    for t in steps:
        decay = torch.exp(delta[:, t, :, None] * inputs.A)
        state = decay * state + (delta[:, t] * u[:, t])[:, :, None] * b[:, t, None, :]
        y[:, t] = (state * c[:, t, None, :]).sum(dim=-1)
    return y + u * wide(inputs.D)
