"""The fused kernels and the public ones against the reference, on a real CUDA device."""

from __future__ import annotations

import secrets

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from support.fixtures_vim import DATA, NAMES, load_fixture
from vim_embed.kernels import mamba_ssm
from vim_embed.kernels.fused.launch import SCANS
from vim_embed.kernels.reference import ReferenceOps
from vim_embed.models import vim_fused
from vim_embed.models.vim import VIM_CONFIGS, BiMamba, Block, Vim, VimConfig, init_random
from vim_embed.models.vim_fused import FusedVim, _Buffers
from vim_embed.types.preprocessing import Scaling
from vim_embed.weights.checkpoint import build_vim, read_checkpoint

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
torch.backends.cudnn.allow_tf32 = False
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
HALVES = [torch.float16, torch.bfloat16]


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


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", NAMES)
def test_fixtures(name: str, dtype: torch.dtype) -> None:
    path, fixture = DATA / f"{name}.pth", load_fixture(name)
    fused = FusedVim(build_vim(read_checkpoint(path), path), dtype, CUDA)
    blocks: list[Tensor] = []
    pixels = torch.from_numpy(fixture.pixel_values)
    tokens = fused(pixels, on_block=lambda i, stream: blocks.append(stream.mean(dim=1)))
    assert tokens.dtype == dtype
    assert error(tokens.cpu(), torch.from_numpy(fixture.tokens)) < TOLERANCE[dtype]
    assert len(blocks) == len(fixture.block_mean)
    for found, expected in zip(blocks, np.asarray(fixture.block_mean), strict=True):
        assert error(found.cpu(), torch.from_numpy(expected)) < TOLERANCE[dtype]


def unpermuted(fused: FusedVim, rows: Tensor) -> Tensor:
    """What out_proj makes, its columns in the model's order."""
    return rows[:, fused._order] if fused._permuted else rows


def poison(fused: FusedVim, tokens: int) -> _Buffers:
    buffers = fused._buffers(tokens)
    for buffer in vars(buffers).values():
        if buffer is not None:
            buffer.fill_(float("nan"))
    return buffers


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 15, 16, 17, 63, 64, 65, 197, 785])
@pytest.mark.parametrize("channels", SCANS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_one_mixer(length: int, channels: int, dtype: torch.dtype) -> None:
    if dtype == torch.float32 and channels != 32:
        pytest.skip("float32 has one scan kernel")
    config = VimConfig(dim=192, depth=1, image_size=32)
    model = seeded(config)
    fused = FusedVim(model, dtype, CUDA)
    fused.scan_channels = channels
    batch = 3
    hidden = fresh(batch, length, config.dim)
    buffers = poison(fused, batch * length)
    layer = fused._layers[0]
    torch.mm(hidden.to(dtype).view(-1, config.dim), layer.w_in, out=buffers.xz)
    if dtype == torch.float32:
        fused._mix_float(0, buffers, length, batch * length)
    else:
        fused._mix(0, buffers, length, batch * length, -1)
    out = unpermuted(fused, torch.mm(buffers.mixed, layer.w_out)).view(batch, length, -1)
    block = model.layers[0]
    assert isinstance(block, Block)
    expected = block.mixer(hidden)
    assert error(out, expected) < TOLERANCE[dtype]
    assert length == 1 or error(out.flip(1), expected) > 0.1


@pytest.mark.parametrize("batch", [1, 40, 100, 200])
@pytest.mark.parametrize("dim", [64, 96, 192, 384, 768])
def test_every_variant_of_the_projection(dim: int, batch: int) -> None:
    """Few, some and many rows take other blocks; 96 has no inner width of a multiple of 128."""
    config = VimConfig(dim=dim, depth=1, image_size=32)
    model = seeded(config)
    fused = FusedVim(model, torch.float16, CUDA)
    length = 101
    hidden = fresh(batch, length, dim)
    buffers = poison(fused, batch * length)
    torch.mm(hidden.half().view(-1, dim), fused._layers[0].w_in, out=buffers.xz)
    fused._mix(0, buffers, length, batch * length, -1)
    out = torch.mm(buffers.mixed, fused._layers[0].w_out)
    out = unpermuted(fused, out).view(batch, length, -1)
    block = model.layers[0]
    assert isinstance(block, Block)
    assert error(out, block.mixer(hidden)) < TOLERANCE[torch.float16]


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


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [(16, 16), (16, 32), (64, 64), (224, 224)])
def test_the_class_token_alone(dtype: torch.dtype, size: tuple[int, int]) -> None:
    model = seeded(VimConfig(dim=192, depth=2))
    fused = FusedVim(model, dtype, CUDA)
    pixels = fresh(3, 3, *size)
    middle = fused.cls_index(fused.token_count(*size))
    assert error(fused.cls(pixels), model(pixels)[:, middle]) < TOLERANCE[dtype]


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


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [(16, 16), (208, 224), (125, 131)])
def test_a_small_model_at_other_sizes(dtype: torch.dtype, size: tuple[int, int]) -> None:
    model = seeded(VimConfig(dim=192, depth=3))
    pixels = fresh(2, 3, *size)
    fused = FusedVim(model, dtype, CUDA)
    assert error(fused(pixels), model(pixels)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [(16, 16), (224, 224), (125, 131)])
def test_bytes_are_normalised_on_the_way(dtype: torch.dtype, size: tuple[int, int]) -> None:
    model = seeded(VimConfig(dim=192, depth=2))
    fused = FusedVim(model, dtype, CUDA)
    pixels = (fresh(5, 3, *size) * 60 + 110).clamp(0, 255).to(torch.uint8)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    shift, factor = (torch.tensor(x, device=CUDA).view(3, 1, 1) for x in (mean, std))
    expected = model((pixels / 255 - shift) / factor)
    scaling = Scaling.of_bytes(mean, std)
    assert error(fused(pixels, scaling=scaling), expected) < TOLERANCE[dtype]
    middle = fused.cls_index(fused.token_count(*size))
    assert error(fused.cls(pixels, scaling=scaling), expected[:, middle]) < TOLERANCE[dtype]


@pytest.mark.parametrize("name", ["vim-tiny", "vim-small", "vim-base"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_full_size(name: str, dtype: torch.dtype) -> None:
    model = seeded(VIM_CONFIGS[name])
    pixels = fresh(2, 3, 224, 224)
    assert error(FusedVim(model, dtype, CUDA)(pixels), model(pixels)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rows_do_not_depend_on_their_batch(dtype: torch.dtype) -> None:
    fused = FusedVim(seeded(VimConfig(dim=192, depth=4)), dtype, CUDA)
    pixels, others = fresh(33, 3, 224, 224), fresh(33, 3, 224, 224)
    tokens = fused(pixels)
    assert torch.equal(tokens, fused(pixels))
    assert torch.equal(tokens, fused(pixels.roll(5, 0)).roll(-5, 0))
    others[7] = pixels[7]
    assert torch.equal(tokens[7], fused(others)[7])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_graph_replays_the_same_bytes(dtype: torch.dtype) -> None:
    fused = FusedVim(seeded(VimConfig(dim=192, depth=2)), dtype, CUDA)
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
