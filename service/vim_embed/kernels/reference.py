"""The specification: plain torch, float32, one time step after the other. Slow on purpose."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vim_embed.kernels.ops import Direction


class ReferenceOps:
    """Plain-torch `MixerOps`; every other backend is compared with this one."""

    name = "reference"

    def add_norm(
        self, hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        stream = hidden.float() if residual is None else residual + hidden.float()
        scale = torch.rsqrt(stream.square().mean(dim=-1, keepdim=True) + eps)
        return (stream * scale * weight.float()).to(hidden.dtype), stream

    def conv_silu(self, x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool) -> Tensor:
        taps = weight.shape[1]
        channels_first = x.transpose(1, 2).float()
        if reverse:
            padded, kernel = F.pad(channels_first, (0, taps - 1)), weight.flip(-1)
        else:
            padded, kernel = F.pad(channels_first, (taps - 1, 0)), weight
        out = F.conv1d(padded, kernel.float().unsqueeze(1), bias.float(), groups=x.shape[2])
        return F.silu(out).transpose(1, 2).contiguous().to(x.dtype)

    def scan(self, forward: Direction, backward: Direction, z: Tensor | None) -> Tensor:
        y = scan_direction(forward, reverse=False) + scan_direction(backward, reverse=True)
        gate = 1.0 if z is None else F.silu(z.float())
        return (0.5 * y * gate).to(forward.u.dtype)


def scan_direction(inputs: Direction, *, reverse: bool) -> Tensor:
    """y (B, L, E) float32 of one direction: the recurrence of `MixerOps.scan`, skip included."""
    u = inputs.u.float()
    delta = F.softplus(inputs.delta.float() + inputs.delta_bias.float())
    b, c = inputs.B.float(), inputs.C.float()
    batch, length, channels = u.shape
    state = u.new_zeros(batch, channels, inputs.A.shape[1])
    y = torch.empty_like(u)
    steps = range(length - 1, -1, -1) if reverse else range(length)
    for t in steps:
        decay = torch.exp(delta[:, t, :, None] * inputs.A)
        state = decay * state + (delta[:, t] * u[:, t])[:, :, None] * b[:, t, None, :]
        y[:, t] = (state * c[:, t, None, :]).sum(dim=-1)
    return y + u * inputs.D.float()
