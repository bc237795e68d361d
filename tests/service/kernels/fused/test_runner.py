"""The float32 route of the runner on a CPU, its kernels replaced by plain torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from support.fixtures_vim import relative_l2
from vim_embed.kernels.fused.device_code import Limits
from vim_embed.kernels.fused.program import Shape
from vim_embed.models import vim_fused
from vim_embed.models.mamba_reg import MambaReg
from vim_embed.models.vim import Vim, VimConfig, init_random
from vim_embed.models.vim_fused import FusedVim, _Buffers
from vim_embed.types.preprocessing import Scaling

CONFIG = VimConfig(dim=64, depth=3, image_size=64)


class TorchKernels:
    """What each float32 kernel computes, from the same packed weights."""

    fuses_out = False

    def __init__(self, shape: Shape, device: torch.device, limits: object) -> None:
        self.shape = shape
        self.limits = Limits((9, 0), 132, 227 * 1024)

    def patchify(
        self,
        *,
        pixels: Tensor,
        out: Tensor,
        grid: tuple[int, int],
        patch: int,
        stride: int,
        scale: Sequence[float],
        offset: Sequence[float],
    ) -> None:
        factor, shift = torch.tensor(scale).view(3, 1, 1), torch.tensor(offset).view(3, 1, 1)
        images = pixels.float() * factor + shift
        out.copy_(F.unfold(images, patch, stride=stride).transpose(1, 2).reshape(out.shape))

    def first_norm(
        self,
        *,
        patches: Tensor,
        start: Tensor,
        sources: Tensor,
        residual: Tensor,
        weight: Tensor,
        out: Tensor,
        eps: float,
    ) -> None:
        length, dim = start.shape
        images = len(residual) // length
        own = patches.view(images, -1, dim)
        stream = start.repeat(images, 1, 1)
        for token, patch in enumerate(sources.tolist()):
            if patch >= 0:
                stream[:, token] += own[:, patch]
        residual.copy_(stream.view(-1, dim))
        out.copy_(F.rms_norm(residual, (dim,), weight, eps))

    def add_norm(
        self,
        *,
        hidden: Tensor | None,
        residual: Tensor,
        weight: Tensor,
        out: Tensor,
        eps: float,
        permuted: bool = False,
        split: bool = False,
    ) -> None:
        assert not permuted
        assert not split
        if hidden is not None:
            residual += hidden
        out.copy_(F.rms_norm(residual, (residual.shape[1],), weight, eps))

    def conv_silu(
        self, *, xz: Tensor, taps: Tensor, vectors: Tensor, u: Tensor, length: int
    ) -> None:
        x = xz[:, : self.shape.inner].view(-1, length, self.shape.inner).transpose(1, 2)
        for side in range(2):
            own = x.flip(-1) if side else x
            weight, bias = taps[side][:, None], vectors[side, :, 0]
            done = F.silu(F.conv1d(F.pad(own, (3, 0)), weight, bias, groups=own.shape[1]))
            u[side] = (done.flip(-1) if side else done).transpose(1, 2).reshape(u[side].shape)

    def scan_float(
        self,
        *,
        xz: Tensor,
        u: Tensor,
        delta: Tensor,
        projected: Tensor,
        decay: Tensor,
        vectors: Tensor,
        out: Tensor,
        length: int,
    ) -> None:
        inner, rank = self.shape.inner, self.shape.padded_rank
        total = torch.zeros_like(out).view(-1, length, inner)
        for side in range(2):
            own_u, size = u[side].view(total.shape), F.softplus(delta[side]).view(total.shape)
            states = projected[side].view(-1, length, self.shape.row)[..., rank:]
            h = torch.zeros(len(total), inner, 16)
            for t in range(length - 1, -1, -1) if side else range(length):
                step, b, c = size[:, t, :, None], states[:, t, None, :16], states[:, t, None, 16:]
                h = torch.exp(step * decay[side]) * h + step * own_u[:, t, :, None] * b
                total[:, t] += (h * c).sum(-1) + vectors[side, :, 1] * own_u[:, t]
        out.copy_(total.view(out.shape) * F.silu(xz[:, inner:]))


@pytest.fixture
def model() -> Vim:
    return made(CONFIG)


def made(config: VimConfig, kind: type[Vim] = Vim) -> Vim:
    model = kind(config)
    init_random(model)
    return model.requires_grad_(False)


@pytest.fixture
def fuse(monkeypatch: pytest.MonkeyPatch) -> Callable[[Vim], FusedVim]:
    monkeypatch.setattr(vim_fused, "supports", lambda *_: (True, ""))
    monkeypatch.setattr(vim_fused, "Kernels", TorchKernels)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(vim_fused, "own_stream", lambda _: None)
    return lambda model: FusedVim(model, torch.float32, "cpu", ieee=True)


def test_clusters_are_given_up_once(fuse: Callable[[Vim], FusedVim], model: Vim) -> None:
    fused = fuse(model)
    assert fused.give_up_clusters()
    assert not fused.kernels.limits.clusters
    assert not fused.give_up_clusters()


@pytest.fixture
def fused(model: Vim, fuse: Callable[[Vim], FusedVim]) -> FusedVim:
    return fuse(model)


@pytest.mark.parametrize("size", [(64, 64), (16, 16), (48, 80)])
def test_tokens_equal_the_readable_model(
    model: Vim, fused: FusedVim, size: tuple[int, int]
) -> None:
    pixels = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(0))
    assert relative_l2(fused(pixels), model(pixels)) < 1e-5


RELATIVES: dict[str, tuple[type[Vim], dict[str, Any]]] = {
    "class token in front": (Vim, {"cls": "first"}),
    "no class token": (Vim, {"cls": "none"}),
    "directions added": (Vim, {"averaged": False}),
    "VideoMamba": (Vim, {"cls": "first", "averaged": False}),
    "registers": (MambaReg, {"cls": "none", "registers": 3}),
    "one register": (MambaReg, {"cls": "none", "registers": 1}),
}


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
@pytest.mark.parametrize("name", RELATIVES)
def test_relatives_equal_their_readable_models(
    fuse: Callable[[Vim], FusedVim], name: str, size: tuple[int, int]
) -> None:
    kind, change = RELATIVES[name]
    model = made(replace(CONFIG, **change), kind)
    pixels = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(4))
    expected, fused = model(pixels), fuse(model)
    assert relative_l2(fused(pixels), expected) < 1e-5
    if model.config.cls == "first":
        assert relative_l2(fused.cls(pixels), expected[:, 0]) < 1e-5


def test_bytes_are_normalised_on_the_way(model: Vim, fused: FusedVim) -> None:
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (3, 3, 64, 64), generator=generator, dtype=torch.uint8)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    images = (pixels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    scaling = Scaling.of_bytes(mean, std)
    expected = model(images)
    assert relative_l2(fused(pixels, scaling=scaling), expected) < 1e-5
    assert relative_l2(fused.cls(pixels, scaling=scaling), expected[:, 8]) < 1e-5


def test_blocks_are_observed(model: Vim, fused: FusedVim) -> None:
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    seen: list[Tensor] = []
    tokens = fused(pixels, on_block=lambda i, stream: seen.append(stream.clone()))
    hidden, residual = model.embed_patches(pixels), None
    for layer, stream in zip(model.layers, seen, strict=True):
        hidden, residual = layer(hidden, residual)
        assert relative_l2(stream, hidden + residual) < 1e-5
    assert relative_l2(tokens, model(pixels)) < 1e-5


def test_a_batch_in_parts_is_the_batch(
    model: Vim, fused: FusedVim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vim_fused, "_PLAIN_TOKENS", 40)  # two images of 17 tokens
    pixels = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    assert relative_l2(fused(pixels), model(pixels)) < 1e-5


def test_the_class_token_alone(model: Vim, fused: FusedVim) -> None:
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    assert relative_l2(fused.cls(pixels), model(pixels)[:, 8]) < 1e-5


def test_large_batches_of_wide_models_go_in_parts(fused: FusedVim) -> None:
    fused.shape = Shape(192, 384, 12, torch.float16)
    fused.config = VimConfig(dim=192, depth=24)
    assert fused._rows_at_once(256, 197) == 256
    fused.config = VimConfig(dim=384, depth=24)
    assert fused._rows_at_once(256, 197) == 256
    assert fused._rows_at_once(512, 197) == 256
    fused.config = VimConfig(dim=768, depth=24)
    assert fused._rows_at_once(256, 197) == 128
    assert fused._rows_at_once(96, 197) == 96


class Line:
    """A stream, and which work of others it waits for."""

    def __init__(self, cuda_stream: int) -> None:
        self.cuda_stream = cuda_stream
        self.waits_for: list[Line] = []

    def wait_stream(self, other: Line) -> None:
        self.waits_for.append(other)


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_half_that_fails_is_waited_for(
    fused: FusedVim, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    """The other half's kernels still write into buffers that are free from then on."""
    here, side, calls = Line(1), Line(2), [0]

    def forward(*_: object, **__: object) -> None:
        calls[0] += 1
        if calls[0] == fails_at:
            raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: here)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(fused, "_wide", lambda *_: True)
    monkeypatch.setattr(fused, "_beside", lambda _: side)
    monkeypatch.setattr(fused, "_forward", forward)
    monkeypatch.setattr(_Buffers, "part", lambda self, *_: self)
    with pytest.raises(torch.OutOfMemoryError):
        fused(torch.zeros(2, 3, 64, 64))
    assert side.waits_for == [here]
    assert here.waits_for == [side]
