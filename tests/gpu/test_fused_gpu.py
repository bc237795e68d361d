"""The fused kernels and the public ones against the reference, on a real CUDA device."""

from __future__ import annotations

import secrets
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from support.fixtures_vim import DATA, NAMES, RELATIVES, load_arrays, load_fixture
from vim_embed.bench.cuda_meter import graph_of
from vim_embed.kernels import mamba_ssm
from vim_embed.kernels.fused import split_mm
from vim_embed.kernels.fused.device_code import Limits
from vim_embed.kernels.fused.program import OUT_IN_BLOCKS, SCANS, SEGMENT_SCANS, XPROJ_CLUSTERS
from vim_embed.kernels.fused.split_mm import SPLIT_MM, MmTile, split_rows
from vim_embed.kernels.reference import ReferenceOps
from vim_embed.models import vim_fused
from vim_embed.models.mamba_reg import MambaReg
from vim_embed.models.vim import VIM_CONFIGS, BiMamba, Block, Vim, VimConfig, init_random
from vim_embed.models.vim_fused import FusedVim, _Buffers
from vim_embed.models.vim_fused_support import supports
from vim_embed.types.preprocessing import Scaling
from vim_embed.weights.checkpoint import build_vim, read_checkpoint
from vim_embed.weights.families import FAMILIES, Word

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
torch.backends.cudnn.allow_tf32 = False
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
HALVES = [torch.float16, torch.bfloat16]
# Older devices: their kernels run here as PTX that the driver translates.
OLDER = {
    "8.0": Limits((8, 0), 108, 163 * 1024),
    "8.6": Limits((8, 6), 84, 99 * 1024),
    "8.9": Limits((8, 9), 142, 99 * 1024),
}
# name -> (dtype, what FusedVim is told besides)
KINDS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float32": (torch.float32, {}),
    "float32-ieee": (torch.float32, {"ieee": True}),
    "float16": (torch.float16, {}),
    "bfloat16": (torch.bfloat16, {}),
}
KINDS |= {
    f"{name} on {old}": (dtype, {**more, "limits": limits})
    for old, limits in OLDER.items()
    for name, (dtype, more) in list(KINDS.items())
    if not (old == "8.9" and "16" not in name)
}
BY_KIND = pytest.mark.parametrize("kind", KINDS)


def made(model: Vim, kind: str) -> tuple[FusedVim, float]:
    """The fused forward of a kind, and what its tokens may differ from the reference's."""
    dtype, more = KINDS[kind]
    return FusedVim(model, dtype, CUDA, **more), TOLERANCE[dtype]


def error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.double(), expected.double()
    return float((found - expected).norm() / expected.norm())


def fresh(*shape: int) -> Tensor:
    """Another random tensor every run; a failure names no seed because any seed must pass."""
    generator = torch.Generator(CUDA).manual_seed(secrets.randbits(32))
    return torch.randn(*shape, device=CUDA, generator=generator)


def seeded(config: VimConfig) -> Vim:
    model = Vim(config, ReferenceOps())
    init_random(model, seed=3)
    return model.requires_grad_(False).eval().to(CUDA)


@BY_KIND
@pytest.mark.parametrize("name", NAMES)
def test_fixtures(name: str, kind: str) -> None:
    path, fixture = DATA / f"{name}.pth", load_fixture(name)
    fused, tolerance = made(build_vim(read_checkpoint(path), path).module, kind)
    blocks: list[Tensor] = []
    pixels = torch.from_numpy(fixture.pixel_values)
    tokens = fused(pixels, on_block=lambda i, stream: blocks.append(stream.mean(dim=1)))
    assert tokens.dtype == fused.dtype
    assert error(tokens.cpu(), torch.from_numpy(fixture.tokens)) < tolerance
    assert len(blocks) == len(fixture.block_mean)
    for found, expected in zip(blocks, np.asarray(fixture.block_mean), strict=True):
        assert error(found.cpu(), torch.from_numpy(expected)) < tolerance


@BY_KIND
@pytest.mark.parametrize("name", RELATIVES)
def test_fixtures_of_relatives(name: str, kind: str) -> None:
    """Against what the original code computed; two kinds are not for these kernels, and say so."""
    path = DATA / f"{name}.pth"
    word = Word("the fixture", FAMILIES[RELATIVES[name]])
    model = build_vim(read_checkpoint(path), path, [word]).module
    dtype, _ = KINDS[kind]
    works, reason = supports(model.config, dtype, CUDA)
    if model.config.rope or model.config.mixer_norm:
        assert not works
        pytest.skip(reason)
    fused, tolerance = made(model, kind)
    arrays = load_arrays(name)
    blocks: list[Tensor] = []
    pixels = torch.from_numpy(arrays["pixel_values"])
    tokens = fused(pixels, on_block=lambda i, stream: blocks.append(stream.mean(dim=1)))
    assert error(tokens.cpu(), torch.from_numpy(arrays["tokens"])) < tolerance
    for found, expected in zip(blocks, arrays["block_mean"], strict=True):
        assert error(found.cpu(), torch.from_numpy(expected)) < tolerance


@BY_KIND
@pytest.mark.parametrize("registers", [0, 1, 12])
@pytest.mark.parametrize("size", [(16, 16), (208, 224), (125, 131)])
def test_relatives_at_other_sizes(size: tuple[int, int], registers: int, kind: str) -> None:
    if registers and size == (16, 16):
        pytest.skip("one patch has no room for registers")
    if registers:
        own: Vim = MambaReg(
            VimConfig(dim=192, depth=3, cls="none", registers=registers), ReferenceOps()
        )
    else:
        own = Vim(VimConfig(dim=192, depth=3, cls="first", averaged=False), ReferenceOps())
    init_random(own, seed=secrets.randbits(32))
    model = own.requires_grad_(False).eval().to(CUDA)
    pixels = fresh(2, 3, *size)
    fused, tolerance = made(model, kind)
    expected = model(pixels)
    assert error(fused(pixels), expected) < tolerance
    if not registers:
        assert error(fused.cls(pixels), expected[:, 0]) < tolerance


def unpermuted(fused: FusedVim, rows: Tensor) -> Tensor:
    """What out_proj makes, its columns in the model's order."""
    return rows[:, fused._order] if fused._permuted else rows


def poison(fused: FusedVim, tokens: int, *, in_place: bool = False) -> _Buffers:
    buffers = fused._buffers(tokens, in_place=in_place)
    for buffer in vars(buffers).values():
        if buffer is not None:
            buffer.fill_(float("nan"))
    return buffers


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 15, 16, 17, 63, 64, 65, 197, 785])
@pytest.mark.parametrize("channels", SCANS)
@BY_KIND
def test_one_mixer(length: int, channels: int, kind: str) -> None:
    if "ieee" in kind and channels != 32:
        pytest.skip("plain float32 has one scan kernel")
    if "on" in kind.split() and length not in (1, 9, 65, 197):
        pytest.skip("the same sources; some lengths are enough")
    config = VimConfig(dim=192, depth=1, image_size=32)
    model = seeded(config)
    fused, tolerance = made(model, kind)
    fused.scan_channels = channels
    block = model.layers[0]
    assert isinstance(block, Block)
    hidden = fresh(3, length, config.dim)
    expected = block.mixer(hidden)
    out = mixed_by(fused, block, hidden)
    assert error(out, expected) < tolerance
    assert length == 1 or error(out.flip(1), expected) > 0.1
    if fused.shape.split and channels == 32:
        assert torch.equal(mixed_by(fused, block, hidden, in_place=True), out)


@pytest.mark.parametrize(
    ("length", "segments"),
    [(1, 1), (9, 1), (39, 3), (64, 8), (65, 5), (121, 4), (197, 5), (300, 8)],
)
@pytest.mark.parametrize("channels", SEGMENT_SCANS)
@BY_KIND
def test_one_mixer_in_segments(length: int, segments: int, channels: int, kind: str) -> None:
    if "ieee" in kind:
        pytest.skip("plain float32 has one scan kernel")
    model = seeded(VimConfig(dim=192, depth=1, image_size=32))
    fused, tolerance = made(model, kind)
    fused.scan_segments = channels, segments
    block = model.layers[0]
    assert isinstance(block, Block)
    hidden = fresh(3, length, 192)
    expected = block.mixer(hidden)
    out = mixed_by(fused, block, hidden)
    assert error(out, expected) < tolerance
    assert length == 1 or error(out.flip(1), expected) > 0.1
    fused.scan_segments, fused.scan_channels = None, 8
    assert error(out, mixed_by(fused, block, hidden)) < tolerance / 2


@pytest.mark.parametrize("blocks", XPROJ_CLUSTERS)
@pytest.mark.parametrize("length", [1, 3, 17, 197])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "on" not in kind.split()])
def test_blocks_that_share_rows(length: int, blocks: int, kind: str) -> None:
    """Clusters of `xproj`: each block has other channels, and adds the others' sums."""
    if "ieee" in kind:
        pytest.skip("plain float32 has no such kernel")
    model = seeded(VimConfig(dim=384, depth=1, image_size=32))
    fused, tolerance = made(model, kind)
    block = model.layers[0]
    assert isinstance(block, Block)
    hidden = fresh(3, length, 384)
    expected = block.mixer(hidden)
    fused.kernels.xproj_blocks = blocks
    out = mixed_by(fused, block, hidden)
    assert error(out, expected) < tolerance
    assert length == 1 or error(out.flip(1), expected) > 0.1
    for _ in range(5):
        assert torch.equal(mixed_by(fused, block, hidden), out), "the order of the sums is fixed"


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 197, 500])
@pytest.mark.parametrize("dim", OUT_IN_BLOCKS)
@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32"])
def test_out_proj_and_the_next_in_proj_in_one_kernel(kind: str, dim: int, rows: int) -> None:
    model = seeded(VimConfig(dim=dim, depth=2, image_size=32))
    fused, tolerance = made(model, kind)
    first, second = (cast(Block, block) for block in model.layers)
    mixed, residual = fresh(rows, 2 * dim).to(fused.dtype), fresh(rows, dim)
    stream = (residual + F.linear(mixed.float(), first.mixer.out_proj.weight) / 2).double()
    normed = F.rms_norm(stream, (dim,), second.norm.weight.double(), model.config.eps)
    expected = F.linear(normed, second.mixer.in_proj.weight.double())
    if fused.shape.half:
        expected[:, 2 * dim :] /= 2  # gates
    buffers = poison(fused, rows + 20)
    buffers.mixed[:rows] = split_rows(mixed) if fused.shape.split else mixed
    found = []
    for _ in range(4):
        buffers.residual[:rows] = residual
        buffers.xz.fill_(float("nan"))
        fused._add_and_project(buffers, fused._layers[0], fused._layers[1], rows)
        assert error(buffers.residual[:rows], stream) < tolerance / 2
        found.append(buffers.xz[:rows].clone())
        assert buffers.xz[rows:].isnan().all()
        assert buffers.residual[rows:].isnan().all()
    assert error(found[0], expected) < tolerance
    assert rows == 1 or error(found[0].flip(0), expected) > 0.1
    assert all(torch.equal(found[0], again) for again in found[1:])


@pytest.mark.parametrize("name", ["vim-tiny", "vim-small"])
@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "on" not in kind.split()])
def test_few_images_by_their_own_ways(name: str, batch: int, kind: str) -> None:
    """As chosen by shape: whole forwards, the class token's as well, which leaves rows out."""
    model = seeded(VIM_CONFIGS[name])
    fused, tolerance = made(model, kind)
    pixels = fresh(batch, 3, 224, 224)
    streams: list[Tensor] = []
    expected = model(pixels)
    assert error(fused(pixels), expected) < tolerance
    assert error(fused.cls(pixels), expected[:, fused.cls_index(197)]) < 2 * tolerance
    fused(pixels, on_block=lambda i, stream: streams.append(stream.clone()))
    fused.joined = False
    fused(pixels, on_block=lambda i, stream: streams.append(stream.clone()))
    for ours, apart in zip(streams[:24], streams[24:], strict=True):
        assert error(ours, apart) < tolerance


def mixed_by(fused: FusedVim, block: Block, hidden: Tensor, *, in_place: bool = False) -> Tensor:
    """One mixer of (B, L, D) in poisoned memory, by the kernels of a block between its norms."""
    batch, length, dim = hidden.shape
    tokens, layer = batch * length, fused._layers[0]
    buffers = poison(fused, tokens, in_place=in_place)
    rows = hidden.to(fused.dtype).view(-1, dim)
    if fused.shape.split:  # a norm would have scaled them, by its weights' scale
        scale = float((layer.norm / block.norm.weight)[0])
        rows = split_rows(rows * scale).view(torch.float32)
    fused._project(rows, layer, buffers.xz, length, -1)
    if fused.shape.half or fused.shape.split:
        fused._mix(0, buffers, length, tokens, -1)
    else:
        fused._mix_plain(0, buffers, length, tokens)
    if fused.shape.split:
        out = torch.full((tokens, dim), float("nan"), device=CUDA)
        fused.kernels.split_mm(a=buffers.mixed, b=layer.w_out, c=out, scale=layer.out_scale)
    else:
        out = unpermuted(fused, torch.mm(buffers.mixed, layer.w_out))
    return out.view(hidden.shape)


@pytest.mark.parametrize("tile", SPLIT_MM)
@pytest.mark.parametrize(
    ("rows", "columns", "inner"),
    [
        (1, 64, 32),
        (130, 200, 64),
        (197, 192, 384),
        (300, 1536, 96),
        (129, 3072, 768),
        (20000, 384, 768),
        (1, 8, 3072),
    ],
)
def test_split_products(
    rows: int, columns: int, inner: int, tile: MmTile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every variant, rows that lie apart, partial tiles, and adding; within float32's own error."""
    if tile.wgmma and Limits.of(CUDA).capability[0] != 9:
        pytest.skip("not for that device")
    monkeypatch.setattr(MmTile, "suits", lambda *_: True)
    monkeypatch.setattr(split_mm, "SPLIT_MM", (tile,))
    fused, _ = made(seeded(VimConfig(dim=64, depth=1, image_size=32)), "float32")
    a, b = fresh(rows, inner), fresh(columns, inner)
    exact = a.double() @ b.double().t()
    given = torch.full((rows, 4 * inner), float("nan"), device=CUDA, dtype=torch.float16)
    given[:, : 2 * inner] = split_rows(a * 8)
    out = torch.full((rows, columns), float("nan"), device=CUDA)
    own, weights, scale = given[:, : 2 * inner], split_rows(b * 1024), 1 / 8192
    fused.kernels.split_mm(a=own, b=weights, c=out, scale=scale)
    assert error(out, exact) < 1e-6
    before = fresh(rows, columns)
    out = before.clone()
    fused.kernels.split_mm(a=own, b=weights, c=out, scale=scale, add=True)
    assert error(out, before.double() + exact) < 1e-6


@pytest.mark.parametrize("batch", [1, 40, 100, 200])
@pytest.mark.parametrize("dim", [64, 96, 192, 384, 768])
@pytest.mark.parametrize("kind", ["float32", "float16", "float32 on 8.6", "float16 on 8.6"])
def test_every_variant_of_the_projection(dim: int, batch: int, kind: str) -> None:
    """Few, some and many rows take other blocks; 96 has no inner width of a multiple of 128."""
    config = VimConfig(dim=dim, depth=1, image_size=32)
    model = seeded(config)
    fused, tolerance = made(model, kind)
    hidden = fresh(batch, 101, dim)
    block = model.layers[0]
    assert isinstance(block, Block)
    assert error(mixed_by(fused, block, hidden), block.mixer(hidden)) < tolerance


@pytest.mark.parametrize("rows", [1, 127, 128, 129, 5000, 40000])
@pytest.mark.parametrize("dim", [192, 384])
@pytest.mark.parametrize("dtype", HALVES)
def test_out_proj_with_add_and_norm(dtype: torch.dtype, dim: int, rows: int) -> None:
    """The one kernel, and cuBLAS with the norm of permuted columns, against float32."""
    fused = FusedVim(seeded(VimConfig(dim=dim, depth=1, image_size=32)), dtype, CUDA)
    assert fused.kernels.fuses_out
    weight, norm = fused._layers[0].w_out, fresh(dim)
    mixed = fresh(rows, 2, 2 * dim).to(dtype)[:, 0]
    before = fresh(rows, dim)
    added = before + (mixed.float() @ weight.float())[:, fused._order]
    normed = F.rms_norm(added, (dim,), norm, 1e-5)
    stream, out = before.clone(), torch.full_like(before, float("nan"), dtype=dtype)
    fused.kernels.out_norm(
        mixed=mixed, w_out=weight.t(), residual=stream, weight=norm, out=out, eps=1e-5
    )
    assert error(stream, added) < 2e-6
    assert error(out, normed) < TOLERANCE[dtype]
    stream = before.clone()
    torch.mm(mixed, weight, out=out)
    fused.kernels.add_norm(
        hidden=out, residual=stream, weight=norm, out=out, eps=1e-5, permuted=True
    )
    assert error(stream, added) < TOLERANCE[dtype]
    assert error(out, normed) < TOLERANCE[dtype]


@BY_KIND
@pytest.mark.parametrize("size", [(16, 16), (16, 32), (64, 64), (224, 224)])
def test_the_class_token_alone(kind: str, size: tuple[int, int]) -> None:
    model = seeded(VimConfig(dim=192, depth=2))
    fused, tolerance = made(model, kind)
    pixels = fresh(3, 3, *size)
    middle = fused.cls_index(fused.token_count(*size))
    assert error(fused.cls(pixels), model(pixels)[:, middle]) < tolerance


@pytest.mark.parametrize("dtype", HALVES)
def test_two_halves_side_by_side_are_the_whole(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = seeded(VimConfig(dim=192, depth=3))
    fused = FusedVim(model, dtype, CUDA)
    fused.scan_channels = 32
    monkeypatch.setattr(vim_fused, "_OUT_ROWS", 4 * 197)
    assert fused._wide(4, 197)
    pixels = fresh(8, 3, 224, 224)
    parts = torch.cat([fused(pixels[:4]), fused(pixels[4:])])
    assert torch.equal(fused(pixels), parts)
    assert torch.equal(fused.cls(pixels), torch.cat([fused.cls(pixels[:4]), fused.cls(pixels[4:])]))


@pytest.mark.parametrize("warm", [False, True])
def test_whoever_captures_needs_not_warm_up_there(warm: bool) -> None:
    """Two halves on two streams, of which none can be made while one is captured."""
    fused = FusedVim(seeded(VimConfig(dim=192, depth=2)), torch.float16, CUDA)
    assert fused._wide(64, 197)
    pixels = fresh(128, 3, 224, 224)
    expected = fused.cls(pixels)
    if warm:
        graph_of(lambda: fused.cls(pixels))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.Stream()):  # type: ignore[no-untyped-call]
        out = fused.cls(pixels)
    out.fill_(float("nan"))
    graph.replay()
    assert torch.equal(out, expected)


@BY_KIND
@pytest.mark.parametrize("size", [(16, 16), (208, 224), (125, 131)])
def test_a_small_model_at_other_sizes(kind: str, size: tuple[int, int]) -> None:
    model = seeded(VimConfig(dim=192, depth=3))
    pixels = fresh(2, 3, *size)
    fused, tolerance = made(model, kind)
    assert error(fused(pixels), model(pixels)) < tolerance


@BY_KIND
@pytest.mark.parametrize("size", [(16, 16), (224, 224), (125, 131)])
def test_bytes_are_normalised_on_the_way(kind: str, size: tuple[int, int]) -> None:
    model = seeded(VimConfig(dim=192, depth=2))
    fused, tolerance = made(model, kind)
    pixels = (fresh(5, 3, *size) * 60 + 110).clamp(0, 255).to(torch.uint8)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    shift, factor = (torch.tensor(x, device=CUDA).view(3, 1, 1) for x in (mean, std))
    expected = model((pixels / 255 - shift) / factor)
    scaling = Scaling.of_bytes(mean, std)
    assert error(fused(pixels, scaling=scaling), expected) < tolerance
    middle = fused.cls_index(fused.token_count(*size))
    assert error(fused.cls(pixels, scaling=scaling), expected[:, middle]) < tolerance


@pytest.mark.parametrize("name", ["vim-tiny", "vim-small", "vim-base"])
@BY_KIND
def test_full_size(name: str, kind: str) -> None:
    model = seeded(VIM_CONFIGS[name])
    pixels = fresh(2, 3, 224, 224)
    fused, tolerance = made(model, kind)
    assert error(fused(pixels), model(pixels)) < tolerance


@BY_KIND
def test_rows_do_not_depend_on_their_batch(kind: str) -> None:
    fused, _ = made(seeded(VimConfig(dim=192, depth=4)), kind)
    pixels, others = fresh(33, 3, 224, 224), fresh(33, 3, 224, 224)
    tokens = fused(pixels)
    assert torch.equal(tokens, fused(pixels))
    assert torch.equal(tokens, fused(pixels.roll(5, 0)).roll(-5, 0))
    others[7] = pixels[7]
    assert torch.equal(tokens[7], fused(others)[7])


@BY_KIND
def test_a_graph_replays_the_same_bytes(kind: str) -> None:
    fused, _ = made(seeded(VimConfig(dim=192, depth=2)), kind)
    pixels = fresh(4, 3, 224, 224)
    fused(pixels)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens = fused(pixels)
    pixels.copy_(fresh(4, 3, 224, 224))
    graph.replay()
    assert torch.equal(tokens, fused(pixels))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("length", [1, 63, 197])
def test_public_kernels(dtype: torch.dtype, length: int) -> None:
    works, reason = mamba_ssm.supports(dtype, CUDA)
    if not works:
        pytest.skip(reason)
    config = VimConfig(dim=192, depth=1, image_size=32)
    mixer = seeded(config).layers[0].mixer
    assert isinstance(mixer, BiMamba)
    hidden = fresh(3, length, config.dim)
    expected = mixer(hidden)
    mixer.to(dtype).ops = mamba_ssm.MambaSsmOps()
    assert error(mixer(hidden.to(dtype)), expected) < 1.5 * TOLERANCE[dtype]
