"""Weights of a Vim in the order and scale that the CUDA kernels read.

Folded in: 1/2 of an average into out_proj, log2(e) into the step sizes and its inverse into B; in
half precision 1/2 of SiLU's tanh form into the convolution and z. Plain float32 keeps the plain
scales but out_proj's. Split float32 (kernels/fused/split.cuh) scales each matrix by a power of two,
so that its low parts stay normal numbers, and keeps what undoes it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vim_embed.kernels.fused.program import Shape
from vim_embed.kernels.fused.split_mm import power_near, split_parts, split_rows, weight_scale
from vim_embed.models.vim import BiMamba, Block


@dataclass(frozen=True)
class PackedLayer:
    """One block. D model width, E inner width, R padded rank, ROW = R + 32.

    norm (D,) float32. w_in (D, 2E), w_out (E, D): for `rows @ weight`. decay (2, E, 16) float32:
    A. taps (2, E, 4) float32. vectors (2, E, 2) float32: conv bias, D. dt_bias (2, E) float32.
    x_proj: (2, E / 32, bytes), for each 32 channels the weights in fragment order, taps and conv
    bias; float32 (2, E, ROW). dt_proj: (2, E / 32, bytes), for each 32 channels the weights in
    fragment order and dt_bias as accumulators; float32 (2, R, E).
    Split float32: norm scaled too, w_in (2E, 2D) and w_out (D, 2E) split rows, x_proj and dt_proj
    as in half precision, their weights as high and low parts. The scales undo those of the
    products' operands.
    """

    norm: Tensor
    w_in: Tensor
    w_out: Tensor
    decay: Tensor
    taps: Tensor
    vectors: Tensor
    x_proj: Tensor
    dt_proj: Tensor
    dt_bias: Tensor
    in_scale: float = 1.0
    out_scale: float = 1.0
    x_scale: float = 1.0
    dt_scale: float = 1.0


def permuted_rows(dim: int) -> Tensor:
    """(D,): row 8 j + 2 q + r of 16 of what `out_norm` takes is the model's row 4 q + 2 j + r."""
    return torch.arange(dim).view(-1, 4, 2, 2).transpose(1, 2).reshape(dim)


def hidden_scale(norm: Tensor) -> float:
    """Of a norm's result before it is split: |x| <= sqrt(D) · |weight| keeps within float16."""
    return power_near(float(norm.abs().max()) * math.sqrt(len(norm)), 2.0**15)


def pack_layer(
    block: Block, shape: Shape, device: torch.device, *, permuted: bool = False
) -> PackedLayer:
    """Convert and reorder one block's weights, onto `device`.

    permuted: the columns of w_out are in the order of `permuted_rows`.
    """
    mixer = block.mixer
    steps = 1.0 if _plain(shape) else math.log2(math.e)
    conv = 0.5 if shape.half else 1.0
    sides = (_side(mixer, ""), _side(mixer, "_b"))
    taps = torch.stack([side["conv"] for side in sides]) * conv
    bias, size, skip = (
        torch.stack([side[name] for side in sides]) for name in ("conv_bias", "dt_bias", "skip")
    )
    w_in = _gated(mixer.in_proj.weight.detach().float(), conv, shape)
    w_out = mixer.out_proj.weight.detach().float() * (0.5 if mixer.averaged else 1.0)
    if permuted:
        w_out = w_out[permuted_rows(shape.dim)]
    x_proj = torch.stack([_padded_rows(side["x_proj"], shape, 1 / steps) for side in sides])
    dt_proj = torch.stack([side["dt_proj"] * steps for side in sides])
    norm = block.norm.weight.detach().float().contiguous()
    common = {
        "norm": norm,
        "decay": torch.stack([-torch.exp(side["A_log"]) for side in sides]).contiguous(),
        "taps": taps.contiguous(),
        "vectors": torch.stack([bias * conv, skip], dim=-1),
        "dt_bias": size,
    }
    scales: dict[str, Any] = {}
    if shape.split:
        of_in, of_out, of_x, of_dt = (weight_scale(w) for w in (w_in, w_out, x_proj, dt_proj))
        of_norm = hidden_scale(norm)
        own = {
            "norm": norm * of_norm,
            "w_in": split_rows(w_in * of_in),
            "w_out": split_rows(w_out * of_out),
            "x_proj": _x_chunks(x_proj * of_x, taps, bias, shape),
            "dt_proj": _dt_chunks(dt_proj * of_dt, size * steps, shape),
        }
        scales = {
            "in_scale": 1 / (of_norm * of_in),
            "out_scale": 1 / of_out,
            "x_scale": 1 / of_x,
            "dt_scale": 1 / of_dt,
        }
    else:
        own = {
            "w_in": _matrix(w_in, shape),
            "w_out": _cast(w_out, shape).t(),
            "x_proj": _x_chunks(x_proj, taps, bias * conv, shape)
            if shape.half
            else _cast(x_proj.mT, shape),
            "dt_proj": _dt_chunks(dt_proj, size * steps, shape)
            if shape.half
            else _dt_plain(dt_proj, shape),
        }
    fields: dict[str, Any] = {name: value.to(device) for name, value in (common | own).items()}
    return PackedLayer(**fields, **scales)


def _plain(shape: Shape) -> bool:
    return not (shape.half or shape.split)


def _side(mixer: BiMamba, suffix: str) -> dict[str, Tensor]:
    weights = dict(mixer.named_parameters())
    names = {
        "conv": f"conv1d{suffix}.weight",
        "conv_bias": f"conv1d{suffix}.bias",
        "x_proj": f"x_proj{suffix}.weight",
        "dt_proj": f"dt_proj{suffix}.weight",
        "dt_bias": f"dt_proj{suffix}.bias",
        "A_log": "A_b_log" if suffix else "A_log",
        "skip": f"D{suffix}",
    }
    side = {key: weights[name].detach().float() for key, name in names.items()}
    return {**side, "conv": side["conv"].squeeze(1)}


def _padded_rows(weight: Tensor, shape: Shape, b_scale: float) -> Tensor:
    """x_proj's weight (rank + 32, E) to (ROW, E): zero rows after the rank, B scaled."""
    rank = shape.rank
    step, b, c = weight[:rank], weight[rank : rank + 16], weight[rank + 16 :]
    padding = step.new_zeros(shape.padded_rank - rank, step.shape[1])
    return torch.cat([step, padding, b * b_scale, c])


def _x_chunks(weight: Tensor, taps: Tensor, bias: Tensor, shape: Shape) -> Tensor:
    """(2, ROW, E) and the convolution to (2, E / 32, bytes): what `xproj` copies at once."""
    chunks = shape.inner // 32
    own = _x_fragments(weight)  # a lane's four numbers; split: their high parts, then the low ones
    fragments = torch.stack(split_parts(own), dim=-2) if shape.split else _cast(own, shape)
    places = taps.reshape(2, chunks, 4, 8, 4).transpose(2, 3)  # channel 8q + c: place (c, q)
    if shape.dtype == torch.float16:  # two channels side by side: (c / 2, q, tap, c % 2)
        places = places.reshape(2, chunks, 4, 2, 4, 4).permute(0, 1, 2, 4, 5, 3).half()
        bias = bias.half()
    return _side_by_side(chunks, fragments, places, bias)


def _side_by_side(chunks: int, *parts: Tensor) -> Tensor:
    """Parts (2, chunks, ...) of whatever shape and dtype as bytes (2, chunks, bytes)."""
    flat = (part.reshape(2, chunks, -1).contiguous().view(torch.uint8) for part in parts)
    return torch.cat(list(flat), dim=2)


def _x_fragments(weight: Tensor) -> Tensor:
    """(2, ROW, E) to (2, E / 32, ROW / 8, 2, 32, 4): B operands of a 32-channel chunk.

    Lane (g, q) multiplies row 8n + g with channels 8q + 4s .. 8q + 4s + 3 of the chunk.
    """
    two, row, inner = weight.shape
    split = weight.reshape(two, row // 8, 8, inner // 32, 4, 2, 4)  # n g chunk q s j
    return split.permute(0, 3, 1, 5, 2, 4, 6).reshape(two, inner // 32, row // 8, 2, 32, 4)


def _dt_chunks(weight: Tensor, bias: Tensor, shape: Shape) -> Tensor:
    """(2, E, rank) and (2, E) to (2, E / 32, bytes): what `xproj` takes at once in the end."""
    own = _dt_fragments(weight, shape)
    fragments = torch.cat(split_parts(own), dim=2) if shape.split else _cast(own, shape)
    return _side_by_side(shape.inner // 32, fragments, _dt_bias(bias))


def _dt_fragments(weight: Tensor, shape: Shape) -> Tensor:
    """(2, E, rank) to (2, E / 32, R / 16, 2, 32, 8): B operands of a 32-channel chunk.

    Column g of product n is channel 8 (g / 2) + 2n + g % 2; lane (g, q) multiplies ranks 2q, 2q+1,
    2q + 8, 2q + 9 of each 16. Ranks beyond the real ones are zero.
    """
    two, inner, rank = weight.shape
    tiles = shape.rank_tiles
    padded = F.pad(weight, (0, 16 * tiles - rank))
    split = padded.reshape(
        two, inner // 32, 4, 2, 2, 2, tiles, 2, 4, 2
    )  # c g/2 n/2 n%2 g%2 k h q r
    return split.permute(0, 1, 6, 3, 2, 5, 8, 4, 7, 9).reshape(two, inner // 32, tiles, 2, 32, 8)


def _dt_bias(bias: Tensor) -> Tensor:
    """(2, E) to (2, E / 32, 4, 4, 4): accumulators of `_dt_fragments`' products, by q and n."""
    pairs = bias.reshape(2, -1, 4, 4, 1, 2)
    return pairs.expand(-1, -1, -1, -1, 2, -1).reshape(2, -1, 4, 4, 4)


def _dt_plain(weight: Tensor, shape: Shape) -> Tensor:
    return _cast(F.pad(weight, (0, shape.padded_rank - shape.rank)).transpose(1, 2), shape)


def _gated(weight: Tensor, scale: float, shape: Shape) -> Tensor:
    """in_proj's weight (2E, D), the rows that make z scaled."""
    return torch.cat([weight[: shape.inner], weight[shape.inner :] * scale])


def _matrix(weight: Tensor, shape: Shape) -> Tensor:
    """(out, in) to (in, out) for `rows @ weight`, in the memory order that cuBLAS takes best."""
    if shape.dim <= 384:
        return _cast(weight, shape).t()
    return _cast(weight.t(), shape)


def _cast(weight: Tensor, shape: Shape) -> Tensor:
    return weight.detach().to(shape.dtype).contiguous()
