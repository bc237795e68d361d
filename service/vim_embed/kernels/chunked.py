"""`MixerOps` in plain torch for any device: the fallback where no kernels can be had.

The scan goes through time in chunks: what needs no state (decays, inputs, outputs) is computed
for a whole chunk at once, and the recurrence itself is one `addcmul` a step. Decays are never
divided by or multiplied up, so nothing overflows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vim_embed.kernels.ops import Direction
from vim_embed.kernels.reference import ReferenceOps

CHUNK_FLOATS_CPU = 1 << 19  # a chunk's two work tensors stay in the cache
CHUNK_FLOATS_DEVICE = 1 << 24  # few, large launches in bounded memory


class ChunkedOps(ReferenceOps):
    """Chunked scan and channels-last convolution; inference only."""

    name = "torch"

    @torch.no_grad()
    def conv_silu(self, x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool) -> Tensor:
        length, taps = x.shape[1], weight.shape[1]
        source, kernel = x.float(), weight.float()
        out = torch.addcmul(bias.float(), source, kernel[:, -1])
        for back in range(1, min(taps, length)):
            early, late = slice(None, length - back), slice(back, None)
            seen, written = (late, early) if reverse else (early, late)
            out[:, written].addcmul_(source[:, seen], kernel[:, taps - 1 - back])
        return F.silu(out, inplace=True).to(x.dtype)

    @torch.no_grad()
    def scan(self, forward: Direction, backward: Direction, z: Tensor | None) -> Tensor:
        y = scan_direction(forward, reverse=False)
        y += scan_direction(backward, reverse=True)
        if z is not None:
            y *= F.silu(z.float())
        y *= 0.5
        return y.to(forward.u.dtype)


def scan_direction(inputs: Direction, *, reverse: bool) -> Tensor:
    """y (B, L, E) float32 of one direction, skip included; works in (time, B, N, E) layout."""
    delta = F.softplus(inputs.delta.float() + inputs.delta_bias.float())
    u = inputs.u.float()
    batch, length, channels = u.shape
    rates = inputs.A.float().t().contiguous()  # (N, E)
    states = rates.shape[0]
    steps = _chunk_steps(length, batch * states * channels, u.device)
    decay, trace = u.new_empty(2, steps, batch, states, channels)
    state = u.new_zeros(batch, states, channels)
    y = u * inputs.D.float()
    starts = range(0, length, steps)
    for start in reversed(starts) if reverse else starts:
        now = slice(start, min(start + steps, length))
        count = now.stop - now.start
        dt = delta[:, now].transpose(0, 1).unsqueeze(2)  # (T, B, 1, E)
        drive = dt * u[:, now].transpose(0, 1).unsqueeze(2)
        b = inputs.B[:, now].float().transpose(0, 1).unsqueeze(3)  # (T, B, N, 1)
        c = inputs.C[:, now].float().transpose(0, 1).unsqueeze(2)  # (T, B, 1, N)
        decays = torch.mul(dt, rates, out=decay[:count]).exp_()
        chunk = torch.mul(drive, b, out=trace[:count])
        for t in reversed(range(count)) if reverse else range(count):
            state = chunk[t].addcmul_(decays[t], state)
        y[:, now] += (c @ chunk).squeeze(2).transpose(0, 1)
        state = state.clone()
    return y


def _chunk_steps(length: int, floats_per_step: int, device: torch.device) -> int:
    budget = CHUNK_FLOATS_CPU if device.type == "cpu" else CHUNK_FLOATS_DEVICE
    return max(1, min(length, budget // max(floats_per_step, 1)))
