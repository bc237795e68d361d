"""The selective scan with a backward pass of its own, in plain torch for any device.

Autograd of the plain recurrence keeps every state: B·L·E·N floats of each of several tensors a
layer. Here the forward keeps the state at the start of each chunk of tokens alone, and the backward
computes a chunk's states anew and walks through them from the last to the first. With decay
a[t] = exp(delta[t] A) and drive x[t] = delta[t] u[t] B[t], h[t] = a[t] h[t-1] + x[t] and
y[t] = C[t]·h[t], the gradient of the state is g[t] = C[t] dy[t] + a[t+1] g[t+1]; it is that of
x[t], and g[t] h[t-1] that of a[t].

Both directions of a block go through one loop, as two groups: half the launches on a GPU.

Shapes: G groups, B images, L tokens, E channels, N states, T tokens of a chunk.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vim_embed.kernels.ops import Direction
from vim_embed.kernels.reference import ReferenceOps

CHUNK = 16  # tokens; a chunk's work tensors are G·T·B·N·E floats


class TrainingOps(ReferenceOps):
    """`MixerOps` that can be differentiated: the reference's, and this scan."""

    name = "training"

    def __init__(self, chunk: int = CHUNK) -> None:
        self._chunk = chunk

    def scan(self, forward: Direction, backward: Direction, z: Tensor | None) -> Tensor:
        both = forward, _flipped(backward)
        u = torch.stack([each.u.float() for each in both])
        delta = torch.stack([F.softplus(each.delta.float() + each.delta_bias) for each in both])
        rates = torch.stack([each.A.t() for each in both])
        b = torch.stack([each.B.float() for each in both])
        c = torch.stack([each.C.float() for each in both])
        y = selective_scan(u, delta, rates, b, c, self._chunk)
        y = y + u * torch.stack([each.D for each in both])[:, None, None]
        out = 0.5 * (y[0] + y[1].flip(1))
        return out if z is None else out * F.silu(z.float())


def selective_scan(
    u: Tensor, delta: Tensor, rates: Tensor, b: Tensor, c: Tensor, chunk: int = CHUNK
) -> Tensor:
    """y (G, B, L, E) float32 of u, delta (G, B, L, E), rates (G, N, E), b, c (G, B, L, N).

    delta: after softplus. No skip, no gate. Differentiable in all five tensors.
    """
    y: Tensor = _Scan.apply(u, delta, rates, b, c, chunk)  # type: ignore[no-untyped-call]
    return y


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, u: Tensor, delta: Tensor, rates: Tensor, b: Tensor, c: Tensor, chunk: int
    ) -> Tensor:
        groups, batch, length, channels = u.shape
        state = u.new_zeros(groups, batch, rates.shape[1], channels)
        y, starts = torch.empty_like(u), []
        for now in _chunks(length, chunk):
            starts.append(state)
            _, states = _states(u, delta, rates, b, state, now)
            y[:, :, now] = torch.einsum("gtbne,gbtn->gbte", states, c[:, :, now])
            state = states[:, -1].clone()
        ctx.save_for_backward(u, delta, rates, b, c, *starts)
        ctx.chunk = chunk
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        u, delta, rates, b, c, *starts = ctx.saved_tensors
        du, ddelta = torch.empty_like(u), torch.empty_like(u)
        db, dc = torch.empty_like(b), torch.empty_like(c)
        drates = torch.zeros_like(rates)
        carry = torch.zeros_like(starts[0])  # a[t+1] g[t+1]
        chunks = _chunks(u.shape[2], ctx.chunk)
        for now, start in zip(reversed(chunks), reversed(starts), strict=True):
            decays, states = _states(u, delta, rates, b, start, now)
            g = torch.einsum("gbtn,gbte->gtbne", c[:, :, now], dy[:, :, now])
            for t in reversed(range(g.shape[1])):
                g[:, t] += carry
                carry = decays[:, t] * g[:, t]
            dc[:, :, now] = torch.einsum("gtbne,gbte->gbtn", states, dy[:, :, now])
            now_u, now_delta = u[:, :, now], delta[:, :, now]
            db[:, :, now] = torch.einsum("gtbne,gbte->gbtn", g, now_delta * now_u)
            ddrive = torch.einsum("gtbne,gbtn->gbte", g, b[:, :, now])
            before = torch.cat([start.unsqueeze(1), states[:, :-1]], dim=1)
            inner = g.mul_(before).mul_(decays)  # of delta[t] A
            ddelta[:, :, now] = torch.einsum("gtbne,gne->gbte", inner, rates) + ddrive * now_u
            drates += torch.einsum("gtbne,gbte->gne", inner, now_delta)
            du[:, :, now] = ddrive * now_delta
        return du, ddelta, drates, db, dc, None


def _states(
    u: Tensor, delta: Tensor, rates: Tensor, b: Tensor, state: Tensor, now: slice
) -> tuple[Tensor, Tensor]:
    """Decays and states (G, T, B, N, E) of a chunk that begins after `state` (G, B, N, E)."""
    steps = delta[:, :, now].transpose(1, 2)  # (G, T, B, E)
    decays = torch.exp(steps.unsqueeze(3) * rates[:, None, None])
    drive = steps * u[:, :, now].transpose(1, 2)
    states = drive.unsqueeze(3) * b[:, :, now].transpose(1, 2).unsqueeze(4)
    for t in range(states.shape[1]):
        state = states[:, t].addcmul_(decays[:, t], state)
    return decays, states


def _chunks(length: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, length)) for start in range(0, length, chunk)]


def _flipped(inputs: Direction) -> Direction:
    over_time = {name: getattr(inputs, name).flip(1) for name in ("u", "step", "B", "C")}
    return replace(inputs, **over_time)
