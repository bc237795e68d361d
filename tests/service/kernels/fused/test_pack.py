"""The packed weights, read as the kernels read them, against the reference mixer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from support.fixtures_vim import relative_l2
from vim_embed.kernels.fused.device_code import Limits
from vim_embed.kernels.fused.program import Program, Shape
from vim_embed.kernels.fused.split_mm import split_rows
from vim_embed.models.vim import Block, Vim, VimConfig, init_random
from vim_embed.models.vim_packed import PackedLayer, pack_layer

CPU = torch.device("cpu")


def block_of(dim: int, dtype: torch.dtype = torch.float16) -> tuple[Block, Shape]:
    config = VimConfig(dim=dim, depth=1, image_size=32)
    model = Vim(config)
    init_random(model, seed=dim)
    block = model.layers[0].requires_grad_(False)
    assert isinstance(block, Block)
    return block, Shape(dim, config.inner, config.rank, dtype)


def read_x_proj(packed: PackedLayer, shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (2, ROW, E), taps (2, E, 4) and bias (2, E) from the bytes that `xproj` copies."""
    row, chunks = shape.row, shape.inner // 32
    half = shape.dtype == torch.float16
    wide = torch.float16 if half else torch.float32
    terms = 2 if shape.split else 1
    begin = row * 64 * terms
    end = begin + 128 * wide.itemsize
    weight = torch.zeros(2, row, shape.inner)
    taps, bias = torch.zeros(2, shape.inner, 4), torch.zeros(2, shape.inner)
    for d in range(2):
        for chunk in range(chunks):
            data = packed.x_proj[d, chunk]
            numbers = data[:begin].view(torch.float16 if shape.split else shape.dtype).float()
            fragments = numbers.view(row // 8, 2, 8, 4, terms, 4).sum(4)
            places = data[begin:end].view(wide).float()
            if half:  # pairs of channels
                places = places.view(4, 4, 4, 2).permute(0, 3, 1, 2)
            places = places.reshape(8, 4, 4)
            for q in range(4):
                first = chunk * 32 + 8 * q
                for s in range(2):
                    at = slice(first + 4 * s, first + 4 * s + 4)
                    weight[d, :, at] = fragments[:, s, :, q].reshape(row, 4)
                taps[d, first : first + 8] = places[:, q]
            bias[d, chunk * 32 : chunk * 32 + 32] = data[end:].view(wide)
    return weight * packed.x_scale, taps, bias


def read_dt_proj(packed: PackedLayer, shape: Shape) -> Tensor:
    """(2, E, ranks) from B operands: of lane (g, q), product n of four, halves of two ranks."""
    tiles = shape.rank_tiles
    weight = torch.zeros(2, shape.inner, 16 * tiles)
    terms, kept = (2, torch.float16) if shape.split else (1, shape.dtype)
    data = packed.dt_proj[:, :, : terms * tiles * 1024].contiguous().view(kept).float()
    operands = data.view(2, shape.inner // 32, terms, tiles, 2, 8, 4, 2, 2, 2).sum(2)
    for k in range(tiles):
        for pair in range(2):
            for g in range(8):
                for q in range(4):
                    for odd in range(2):
                        channel = 8 * (g // 2) + 2 * (2 * pair + odd) + g % 2
                        for half in range(2):
                            rank = 16 * k + 8 * half + 2 * q
                            own = operands[:, :, k, pair, g, q, odd, half]
                            weight[:, channel::32, rank : rank + 2] = own
    return weight * packed.dt_scale


def read_dt_bias(packed: PackedLayer, shape: Shape) -> Tensor:
    """(2, E) from accumulators: of lane (g, q), product n of four, rows g and g + 8."""
    bias = torch.zeros(2, shape.inner)
    data = (
        packed.dt_proj[:, :, shape.rank_tiles * 1024 * (2 if shape.split else 1) :]
        .contiguous()
        .view(torch.float32)
    )
    accumulators = data.view(2, shape.inner // 32, 4, 4, 4)
    for q in range(4):
        for n in range(4):
            for odd in range(2):
                own = accumulators[:, :, q, n]
                assert torch.equal(own[..., odd], own[..., 2 + odd])
                bias[:, 8 * q + 2 * n + odd :: 32] = own[..., odd]
    return bias


def mix_as_the_kernels_do(hidden: Tensor, packed: PackedLayer, shape: Shape) -> Tensor:
    """One mixer (L, D) -> (L, D): tiles of 8 steps, halves meeting in the middle, scaled units."""
    length, inner, rank = len(hidden), shape.inner, shape.padded_rank
    if shape.split:
        w_in = whole(packed.w_in).t() * packed.norm[:, None] * packed.in_scale
        w_out = whole(packed.w_out).t() * packed.out_scale
    else:
        w_in, w_out = packed.w_in.float(), packed.w_out.float()
    silu = silu_whole if shape.split else silu_of_half
    xz = hidden @ w_in
    x, z = xz[:, :inner], xz[:, inner:]
    weight, taps, bias = read_x_proj(packed, shape)
    dt_weight, dt_bias = read_dt_proj(packed, shape), read_dt_bias(packed, shape)
    assert torch.equal(packed.vectors[..., 0].half(), bias.half())
    assert torch.equal(packed.taps.half(), taps.half())
    out = torch.full((length, inner), float("nan"))
    partial = torch.full((length, inner), float("nan"))
    tiles = -(-length // 8)
    for d in range(2):
        first = tiles // 2 if d else tiles - tiles // 2
        walk = torch.zeros(8 * tiles + 3, inner)  # x in walking order after three zero rows
        order = [8 * tiles - 1 - t if d else t for t in range(8 * tiles)]
        for step, token in enumerate(order):
            if token < length:
                walk[step + 3] = x[token]
        state = torch.zeros(inner, 16)
        for step, token in enumerate(order):
            half_u = (walk[step : step + 4] * taps[d].t()).sum(0) + bias[d]
            u = silu(half_u)
            if token >= length:
                continue  # zero rows: step size and input are zero there
            row = weight[d] @ u
            padded = torch.zeros(16 * shape.rank_tiles)
            padded[:rank] = row[:rank]
            size = torch.log2(1 + torch.exp2(dt_weight[d] @ padded + dt_bias[d]))
            b, c = row[rank : rank + 16], row[rank + 16 : rank + 32]
            state = torch.exp2(size[:, None] * packed.decay[d]) * state
            state = state + (size * u)[:, None] * b
            y = state @ c + packed.vectors[d, :, 1] * u
            if step // 8 < first:
                partial[token] = y
            else:
                out[token] = y
    mixed: Tensor = ((out + partial) * silu(z)) @ w_out
    return mixed


def silu_whole(x: Tensor) -> Tensor:
    return F.silu(x)


def silu_of_half(half: Tensor) -> Tensor:
    return half * torch.tanh(half) + half


def whole(rows: Tensor) -> Tensor:
    """Split rows as the numbers that they stand for."""
    return rows.float().view(len(rows), -1, 2, 32).sum(2).flatten(1)


@pytest.mark.parametrize("dim", [64, 96, 192, 768])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_packing_undoes(dim: int, dtype: torch.dtype) -> None:
    block, shape = block_of(dim, dtype)
    rounding = torch.finfo(dtype).eps
    packed = pack_layer(block, shape, CPU)
    weight, taps, _ = read_x_proj(packed, shape)
    mixer = block.mixer
    for d, suffix in enumerate(("", "_b")):
        own = dict(mixer.named_parameters())
        expected = own[f"x_proj{suffix}.weight"]
        got = torch.cat([weight[d, : shape.rank], weight[d, shape.padded_rank :]])
        scale = torch.ones(len(expected), 1)
        scale[shape.rank : shape.rank + 16] = 0.69314718
        assert relative_l2(got, expected * scale) < rounding
        assert not weight[d, shape.rank : shape.padded_rank].any()
        conv = own[f"conv1d{suffix}.weight"].squeeze(1) * 0.5
        assert torch.equal(taps[d], conv.half().float() if dtype == torch.float16 else conv)
        dt = read_dt_proj(packed, shape)[d]
        assert (
            relative_l2(dt[:, : shape.rank], own[f"dt_proj{suffix}.weight"] * 1.442695) < rounding
        )
        assert not dt[:, shape.rank :].any()


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("length", [1, 2, 8, 9, 21])
def test_the_algorithm_equals_the_reference(length: int, split: bool) -> None:
    block, shape = block_of(64)
    if split:
        shape = replace(shape, dtype=torch.float32, split=True)
        with torch.no_grad():
            block.norm.weight.copy_(torch.linspace(0.5, 3, 64))
    packed = pack_layer(block, shape, CPU)
    hidden = torch.randn(length, 64, generator=torch.Generator().manual_seed(length))
    expected = block.mixer((hidden * block.norm.weight if split else hidden)[None])[0]
    found = mix_as_the_kernels_do(hidden, packed, shape)
    assert relative_l2(found, expected) < (2e-6 if split else 2e-3)
    if length > 1:  # and the order of time matters
        flipped = mix_as_the_kernels_do(hidden.flip(0), packed, shape).flip(0)
        assert relative_l2(flipped, expected) > 0.05


H200 = Limits((9, 0), 132, 227 * 1024)


@pytest.mark.parametrize("rows", [1, 2049, 8449, 12673, 100_000])
def test_images_of_one_or_two_tokens_go_by_few_rows(rows: int) -> None:
    """A lane's adjacent rows belong to two images at most."""
    program = Program(Shape(192, 384, 12, torch.float16), H200.capability)
    for length in (1, 2, 3, 197):
        tiles = program.xproj_variant(rows, length, H200)[0]
        assert 2 * tiles <= length + 1
        assert tiles == 2 or length < 3 or rows <= 8448


def test_split_rows_are_the_numbers() -> None:
    numbers = torch.randn(5, 96, generator=torch.Generator().manual_seed(1))
    groups = split_rows(numbers).view(5, 3, 2, 32).double()
    assert relative_l2((groups[:, :, 0] + groups[:, :, 1]).view(5, 96), numbers) < 2e-7
    assert torch.equal(groups[:, :, 0].half(), numbers.half().view(5, 3, 32))


@pytest.mark.parametrize("size", [1e-6, 1.0, 3e4])
def test_scales_keep_within_float16(size: float) -> None:
    block, shape = block_of(64, torch.float32)
    with torch.no_grad():
        block.norm.weight.mul_(size)
        block.mixer.in_proj.weight.mul_(size)
    packed = pack_layer(block, replace(shape, split=True), CPU)
    assert packed.w_in.abs().max() < 2**15
    assert packed.norm.abs().max() * 8 <= 2**15  # times the root of the width
    scaled = packed.w_in.view(256, 2, 2, 32).double().sum(2).view(256, 64)
    found = scaled * packed.norm.double() * packed.in_scale
    assert relative_l2(found, block.mixer.in_proj.weight * block.norm.weight) < 2e-7
