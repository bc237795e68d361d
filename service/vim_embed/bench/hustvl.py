"""The comparison: Vim as the original repository runs it on the public kernels.

Channels-first layout, one convolution and one scan call a direction, flips in memory, weights cast
to half once (what autocast computes, without its casts). Needs selective_scan_cuda (mamba-ssm) and
causal-conv1d; the residual add + norm is this project's kernel, in the reference's favour.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vim_embed.kernels.fused.launch import Kernels
from vim_embed.models.vim import Vim


class Side:
    """Weights of one direction in the dtype that autocast would use."""

    def __init__(self, mixer: Any, suffix: str, dtype: torch.dtype) -> None:
        conv = getattr(mixer, f"conv1d{suffix}")
        self.taps = conv.weight.squeeze(1).to(dtype).contiguous()
        self.bias = conv.bias.to(dtype)
        self.x_proj = getattr(mixer, f"x_proj{suffix}").weight.to(dtype)
        projection = getattr(mixer, f"dt_proj{suffix}")
        self.dt, self.dt_bias = projection.weight.to(dtype), projection.bias.float()
        self.A = -torch.exp(getattr(mixer, "A_b_log" if suffix else "A_log").float())
        self.D = getattr(mixer, f"D{suffix}").float()
        self.rank = projection.weight.shape[1]

    def __call__(self, xz: Tensor) -> Tensor:
        """xz (B, 2E, L) -> gated y (B, E, L)."""
        import selective_scan_cuda
        from causal_conv1d import causal_conv1d_fn

        x, z = xz.chunk(2, dim=1)
        batch, inner, length = x.shape
        u = causal_conv1d_fn(x, self.taps, self.bias, activation="silu")
        flat = u.transpose(1, 2).reshape(batch * length, inner)
        projected = F.linear(flat, self.x_proj)
        delta = (self.dt @ projected[:, : self.rank].t()).view(inner, batch, length)
        states = projected[:, self.rank :].view(batch, length, 2, 16).permute(2, 0, 3, 1)
        b, c = (part.unsqueeze(1).contiguous() for part in states)
        delta = delta.transpose(0, 1)
        arguments = (u, delta, self.A, b, c, self.D, z, self.dt_bias, True)
        return selective_scan_cuda.fwd(*arguments)[2]  # type: ignore[no-any-return]


class Reference:
    """(B, 3, H, W) -> final tokens (B, L, D)."""

    def __init__(self, model: Vim, dtype: torch.dtype, kernels: Kernels) -> None:
        self.model, self.dtype, self.kernels = model, dtype, kernels
        self.blocks: list[tuple[Tensor, ...]] = []
        self.sides = []
        for layer in model.layers:
            block: Any = layer
            mixer = block.mixer
            weights = (mixer.in_proj.weight.to(dtype), mixer.out_proj.weight.to(dtype))
            self.blocks.append((block.norm.weight.float(), *weights))
            self.sides.append((Side(mixer, "", dtype), Side(mixer, "_b", dtype)))
        self.norm_f = model.norm_f.weight.float()
        projection = model.patch_embed.proj
        assert projection.bias is not None
        self.patch = (projection.weight.to(dtype), projection.bias.to(dtype))

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        hidden = self._embed(pixels)
        residual = torch.zeros_like(hidden, dtype=torch.float32)
        for (norm, w_in, w_out), (forward, backward) in zip(self.blocks, self.sides, strict=True):
            normed = self._norm(hidden, residual, norm)
            batch, length, dim = normed.shape
            xz = (w_in @ normed.reshape(-1, dim).t()).view(-1, batch, length).transpose(0, 1)
            y = forward(xz)
            y_back = backward(xz.flip([-1])).flip([-1])
            hidden = F.linear(((y + y_back) / 2).transpose(1, 2), w_out)
        return self._norm(hidden, residual, self.norm_f)

    def _norm(self, hidden: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
        out = torch.empty_like(hidden)
        self.kernels.add_norm(hidden=hidden, residual=residual, weight=weight, out=out, eps=1e-5)
        return out

    def _embed(self, pixels: Tensor) -> Tensor:
        config = self.model.config
        patches = F.conv2d(pixels.to(self.dtype), *self.patch, stride=config.stride)
        patches = patches.flatten(2).transpose(1, 2)
        middle = patches.shape[1] // 2
        cls = self.model.cls_token.to(self.dtype).expand(len(pixels), -1, -1)
        tokens = torch.cat([patches[:, :middle], cls, patches[:, middle:]], dim=1)
        position = self.model.position_embedding(*config.grid(*pixels.shape[-2:]))
        return (tokens + position.to(self.dtype)).contiguous()
