"""Vim's hidden attention for one token, and the norms of its tokens, for a batch at once.

A selective scan is linear in its input u once decays, B and C are given:
y[t] = sum over s of alpha[t, s] u[s] (and D u[t]), with

    alpha[t, s] = C[t] · exp((delta[s+1] + … + delta[t]) A) delta[s] B[s]     for s <= t

in a channel, the *hidden attention* of Ali, Zimerman and Wolf 2024 ("The Hidden Attention of Mamba
Models", arXiv:2403.01590, eq. 8-11). One row t for all s costs what the scan itself costs: it is
walked backwards from t, with g[s] = C[t] exp((delta[s+1] + … + delta[t]) A). A Vim's row has the
tokens before t from the forward scan, those after it from the backward scan, and t from both. The
skip D and the gate see one token each and are left out. Channels are averaged by magnitude, since
their signs would cancel.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vim_embed.inference.precision import own_precision
from vim_embed.kernels.ops import Direction, MixerOps
from vim_embed.models.vim import BiMamba, RMSNorm, Vim


@dataclass(frozen=True, kw_only=True)
class Explained:
    """attention (B, blocks, L): of the token to every token. norms (B, blocks, L): of the residual
    stream after each block, which the final norm hides. float32, on the device.
    """

    attention: Tensor
    norms: Tensor


@torch.inference_mode()
def explain(vim: Vim, images: Tensor, token: int) -> Explained:
    """Of normalised images (B, C, H, W) in the model's dtype, for the token of that index."""
    rows: list[Tensor] = []
    streams: list[Tensor] = []
    with own_precision(images.device), _watching(vim, token, rows), _streams(vim, streams):
        vim(images)
    norms = torch.stack([stream.norm(dim=-1) for stream in streams[1:]], dim=1)
    return Explained(attention=torch.stack(rows, dim=1), norms=norms)


def attention_row(forward: Direction, backward: Direction, token: int) -> Tensor:
    """(B, L): mean over channels of |alpha[token, s]|, the two directions averaged as in a mixer.

    The token itself has the sum of both before magnitudes are taken.
    """
    alpha = 0.5 * (
        _one_way(forward, token, reverse=False) + _one_way(backward, token, reverse=True)
    )
    return alpha.abs().mean(dim=-1)


def _one_way(inputs: Direction, token: int, *, reverse: bool) -> Tensor:
    """alpha (B, L, E) of one direction; zero where it does not look."""
    delta = F.softplus(inputs.delta.float() + inputs.delta_bias.float())
    b, rates = inputs.B.float(), inputs.A.float()
    alpha = torch.zeros_like(delta)
    g = inputs.C[:, token].float()[:, None, :].expand(-1, delta.shape[2], -1)  # (B, E, N)
    steps = range(token, delta.shape[1]) if reverse else range(token, -1, -1)
    for s in steps:
        alpha[:, s] = (g * b[:, s, None]).sum(dim=-1) * delta[:, s]
        g = g * torch.exp(delta[:, s, :, None] * rates)
    return alpha


class _WatchedOps:
    """A mixer's operations; before each scan, the row of attention is taken down."""

    def __init__(self, ops: MixerOps, token: int, rows: list[Tensor]) -> None:
        self._ops, self._token, self._rows = ops, token, rows
        self.name = ops.name

    def add_norm(
        self, hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        return self._ops.add_norm(hidden, residual, weight, eps)

    def conv_silu(self, x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool) -> Tensor:
        return self._ops.conv_silu(x, weight, bias, reverse=reverse)

    def scan(self, forward: Direction, backward: Direction, z: Tensor | None) -> Tensor:
        self._rows.append(attention_row(forward, backward, self._token))
        return self._ops.scan(forward, backward, z)


@contextmanager
def _watching(vim: Vim, token: int, rows: list[Tensor]) -> Iterator[None]:
    mixers = [module for module in vim.modules() if isinstance(module, BiMamba)]
    before = [mixer.ops for mixer in mixers]
    for mixer in mixers:
        mixer.ops = _WatchedOps(mixer.ops, token, rows)
    try:
        yield
    finally:
        for mixer, ops in zip(mixers, before, strict=True):
            mixer.ops = ops


@contextmanager
def _streams(vim: Vim, streams: list[Tensor]) -> Iterator[None]:
    """The residual stream ahead of every block, and of the final norm."""

    def hook(module: object, inputs: object, output: tuple[Tensor, Tensor]) -> None:
        streams.append(output[1])

    norms = [layer.norm for layer in vim.layers] + [vim.norm_f]
    hooks = [norm.register_forward_hook(hook) for norm in norms if isinstance(norm, RMSNorm)]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()
