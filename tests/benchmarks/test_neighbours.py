"""benchmarks/neighbours.py: the stamps, the resize and the agreement, without a GPU."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from vim_embed.models.vim import Vim
from vim_embed_client.scoring.mknn import mknn

PATH = Path(__file__).parents[2] / "benchmarks" / "neighbours.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("neighbours", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_stamps_are_the_picture_s_own_pixels(script: ModuleType) -> None:
    from vim_embed_client.demo.stamps import hubble_picture

    stamps = script.largest_stamps(20)
    assert (stamps.shape, stamps.dtype) == ((20, 48, 48, 3), np.uint8)
    picture = np.lib.stride_tricks.sliding_window_view(hubble_picture(), (48, 48), axis=(0, 1))
    corner = stamps[7, 0, 0]
    places = np.argwhere((picture[..., 0, 0] == corner).all(axis=2))
    cuts = (picture[y, x].transpose(1, 2, 0) for y, x in places)
    assert any(np.array_equal(cut, stamps[7]) for cut in cuts)


def test_too_many_stamps(script: ModuleType) -> None:
    with pytest.raises(SystemExit, match="5000 stamps were asked for"):
        script.largest_stamps(5000)


def test_agreement_is_the_score_s(script: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(80, 16, generator=generator)
    second = first + 0.3 * torch.randn(80, 16, generator=generator)
    found = script.agreement(script.nearest(second), script.nearest(first))
    assert 0.2 < found < 0.95
    one, other = (torch.nn.functional.normalize(z, dim=1).numpy() for z in (first, second))
    assert found == pytest.approx(mknn(one, other, k=10))
    assert script.agreement(script.nearest(first), script.nearest(first)) == 1


def test_pixels_are_resized_and_normalised(script: ModuleType) -> None:
    white = np.full((1, 48, 48, 3), 255, np.uint8)
    pixels = script.prepared(white, torch.device("cpu"))
    assert pixels.shape == (1, 3, 224, 224)
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(pixels[0].mean(dim=(1, 2)), expected, atol=1e-5)


class HalfOnTheCpu:
    """Stands in for FusedVim: rounds as the dtype would."""

    def __init__(
        self, model: Vim, dtype: torch.dtype, device: torch.device, *, ieee: bool = False
    ) -> None:
        self.dtype = dtype

    def cls(self, pixels: Tensor) -> Tensor:
        dtype = torch.float64 if pixels.dtype == torch.float64 else self.dtype
        return pixels.flatten(2).unfold(2, 196, 196).mean(dim=3).flatten(1).to(dtype)


def test_a_table(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "FusedVim", HalfOnTheCpu)
    exact = HalfOnTheCpu(Vim.__new__(Vim), torch.float32, torch.device("cpu"))
    monkeypatch.setattr(script, "reference", lambda *_: exact.cls)
    monkeypatch.setattr(script, "exact", lambda *_: lambda pixels: exact.cls(pixels.double()))
    stamps = script.largest_stamps(60)
    results = {"vim-tiny": script.compare_model("vim-tiny", stamps, torch.device("cpu"), 25)}
    kept, error = results["vim-tiny"]["bfloat16"]
    assert 0.5 < kept < 1
    assert 1e-4 < error < 1e-2
    kept, error = results["vim-tiny"]["reference operations, float32"]
    assert (kept, error < 1e-6) == (1, True)
    assert results["vim-tiny"]["float32"] == results["vim-tiny"]["float32-ieee"]
    assert "| float16 | 0.9" in script.table(results) or "| float16 | 1.0" in script.table(results)


def test_compare_needs_a_device(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["neighbours.py", "compare", str(tmp_path / "x.npy")])
    with pytest.raises(SystemExit, match="no CUDA device"):
        script.main()


@pytest.mark.parametrize("name", ["vim-tiny"])
def test_the_float64_run_is_float64_throughout(script: ModuleType, name: str) -> None:
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    found = script.exact(name, torch.device("cpu"))(pixels)
    plain = script.reference(name, torch.device("cpu"))(pixels)
    assert found.dtype == torch.float64
    assert next(script.seeded(name).parameters()).dtype == torch.float32, "it is shared"
    error = float((found - plain).norm() / found.norm())
    assert 1e-8 < error < 1e-5, "float32 rounds, and float64 is not a cast of it"
