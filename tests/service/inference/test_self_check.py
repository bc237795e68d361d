"""The check at load: sound kernels pass in every dtype, those that err twice as much do not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from support.fixtures_vim import DATA, RELATIVES
from vim_embed.engines.torch_engine import _advice
from vim_embed.inference.embedder import Embedder
from vim_embed.inference.self_check import check_images, outlier_image, self_check
from vim_embed.kernels.cpu.ops import CpuOps
from vim_embed.kernels.ops import Direction
from vim_embed.models.vim import Vim
from vim_embed.weights.load import load_model

FAMILIES = {"vim_micro": "vim", "vim_micro_stride8": "vim"} | RELATIVES
IMAGES = ("noise", "a dark sky with a source", "a saturated star", "a picture", "outlier channels")


def load(name: str, dtype: str, backend: str = "auto") -> Embedder:
    path = f"{FAMILIES[name]}:{DATA / f'{name}.pth'}"
    return load_model("m", path, device="cpu", dtype=dtype, backend=backend)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_sound_models_pass_with_room(name: str, dtype: str) -> None:
    report = self_check(load(name, dtype))
    assert report.images == IMAGES
    assert {"tokens", "worst token", "mean"} <= {one.what for one in report.outputs}
    assert all(0 < one.error < 0.85 * one.tolerance for one in report.outputs), report


class TwiceTheError(CpuOps):
    """A scan whose result is as far again from the exact one as rounding puts it."""

    def __init__(self, rounding: float) -> None:
        super().__init__()
        self._noise = torch.Generator().manual_seed(1)
        self._rounding = rounding

    def scan(self, forward: Direction, backward: Direction, z: Tensor | None) -> Tensor:
        out = super().scan(forward, backward, z)
        noise = torch.randn(out.shape, generator=self._noise)
        return (out.float() * (1 + self._rounding * noise)).to(out.dtype)


@pytest.mark.parametrize("name", ["vim_micro", "vim_micro_stride8"])
@pytest.mark.parametrize(("dtype", "rounding"), [("float16", 2.9e-3), ("bfloat16", 2.3e-2)])
def test_twice_the_error_is_refused(name: str, dtype: str, rounding: float) -> None:
    model = load(name, dtype)
    sound = {one.what: one.error for one in self_check(model).outputs}
    assert isinstance(model.module, Vim)
    model.module.use_ops(TwiceTheError(rounding))
    report = self_check(model)
    tokens = next(one for one in report.outputs if one.what == "tokens")
    assert 1.6 < tokens.error / sound["tokens"] < 2.8  # about doubled
    assert not report.ok
    assert not tokens.ok


class WrongLastToken(CpuOps):
    """What a mean over tokens hides."""

    def scan(self, forward: Direction, backward: Direction, z: Tensor | None) -> Tensor:
        out = super().scan(forward, backward, z)
        out[:, -1] *= 1.02
        return out


def test_one_wrong_token_is_refused() -> None:
    model = load("vim_micro", "float16")
    assert isinstance(model.module, Vim)
    model.module.use_ops(WrongLastToken())
    report = self_check(model)
    assert report.worst.what == "worst token"
    assert not report.ok
    assert "worst token of" in _advice(report)


class ClampedStream(CpuOps):
    """A residual stream that is wrong where a channel is larger than natural images make it."""

    def __init__(self, most: float) -> None:
        super().__init__()
        self._most = most

    def add_norm(
        self, hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        most = self._most
        return super().add_norm(hidden.clamp(-most, most), residual, weight, eps)


def test_outlier_channels_are_provoked() -> None:
    model = load("vim_micro", "float32")
    assert isinstance(model.module, Vim)
    pictures = check_images(model.info)
    vectors = model.module.patch_embed(outlier_image(model, pictures))[0]  # (patches, D)
    rms = vectors.square().mean(dim=0).sqrt()
    assert int((rms > 10 * rms.median()).sum()) == 6
    natural = float(model.module.embed_patches(model.normalised(pictures)).abs().max())
    assert float(vectors.abs().max()) > 1.5 * natural
    model.module.use_ops(ClampedStream(1.2 * natural))
    wrong = {one.image for one in self_check(model).outputs if not one.ok}
    assert wrong == {"outlier channels"}


def test_a_forward_that_is_not_finite_is_named() -> None:
    model = load("vim_micro", "float16")
    with torch.no_grad():
        model.module.get_parameter("patch_embed.proj.weight")[5] = 60000.0
    report = self_check(model)
    assert not report.ok
    assert math.isnan(report.error)
    assert "NaN or infinite values" in _advice(report)
    assert "try --dtype float32" in _advice(report)


def test_the_images_are_the_same_every_time() -> None:
    info = load("vim_micro", "float32").info
    first, again = check_images(info), check_images(info)
    assert torch.equal(first, again)
    assert first.shape == (4, 3, 64, 64)
    dark, star = first[1].float(), first[2]
    assert float(dark.median()) < 8
    assert float(dark.max()) > 100
    assert float((star == 255).float().mean()) > 0.03
