"""ViT proxies on a real CUDA device: which kernels their graphs hold, and their numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from vim_embed import Embedder, load_model
from vim_embed.inference.self_check import SELF_CHECK_TOLERANCE
from vim_embed.types.model_info import EMBEDDING, EmbedOptions

pytestmark = pytest.mark.gpu
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FUSED = ("flash", "fmha", "cudnn_generated", "attention")
PLAIN = ("softmax", "gemm_f32f32", "sgemm")


def proxy(dtype: str) -> Embedder:
    return load_model("vim-tiny-proxy", device="cuda", dtype=dtype, random_weights=True)


def kernels_of_a_replay(model: Embedder, rows: int) -> list[str]:
    pixels = torch.zeros(rows, 3, 224, 224, dtype=torch.uint8, device="cuda")
    model.run(pixels, EmbedOptions())
    both = [ProfilerActivity.CUDA, ProfilerActivity.CPU]
    with profile(activities=both, acc_events=True) as seen:
        model.run(pixels, EmbedOptions())
        torch.cuda.synchronize()
    return [event.name for event in seen.events() if "CUDA" in str(event.device_type)]


@pytest.mark.parametrize("rows", [1, 16, 64])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_graphs_hold_fused_attention(dtype: str, rows: int) -> None:
    names = kernels_of_a_replay(proxy(dtype), rows)
    assert any(word in name for name in names for word in FUSED), names
    assert not [name for name in names if any(word in name.lower() for word in PLAIN)]


def test_float32_takes_split_products_and_ieee_plain_ones() -> None:
    """Both within 1e-5 of a float64 CPU run; only the one named so has torch's own products."""
    pixels = np.random.default_rng().integers(0, 256, (5, 3, 224, 224), dtype=np.uint8)
    cpu = load_model("vim-tiny-proxy", device="cpu", random_weights=True)
    module: Any = cpu.module
    exact = module.in_reference(torch.float64)
    images = cpu.normalised(torch.from_numpy(pixels)).double()
    with torch.inference_mode():
        expected = exact(images).mean(dim=1).numpy()
    for dtype, split in (("float32", True), ("float32-ieee", False)):
        model = proxy(dtype)
        assert ("as three half-precision ones" in model.info.backend_reason) == split
        names = kernels_of_a_replay(model, 16)
        assert any("split_mm" in name for name in names) == split
        found = model.embed(pixels)
        errors = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
        assert errors.max() < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
def test_graphs_give_the_numbers_of_the_cpu(dtype: str) -> None:
    pixels = np.random.default_rng().integers(0, 256, (19, 3, 224, 224), dtype=np.uint8)
    expected = load_model("vim-tiny-proxy", device="cpu", random_weights=True).embed(pixels)
    found = proxy(dtype).embed(pixels)
    errors = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert errors.max() < SELF_CHECK_TOLERANCE[DTYPES[dtype]]


@pytest.mark.parametrize("name", ["vim-tiny", "vim-tiny-proxy"])
@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_chunks_that_overlap_keep_their_rows(name: str, kind: str) -> None:
    model = load_model(name, device="cuda", random_weights=True)
    pixels = np.random.default_rng().integers(0, 256, (211, 3, 224, 224)).astype(kind)
    if kind == "float32":
        pixels = pixels / np.float32(127.5) - 1
    found = model.embed(pixels)
    for row in (0, 1, 63, 64, 127, 128, 210):
        one = torch.from_numpy(pixels[row : row + 1]).cuda()
        alone = model.compute(one, EmbedOptions())[EMBEDDING].cpu().numpy()[0]
        assert np.linalg.norm(found[row] - alone) < 1e-4 * np.linalg.norm(alone), row
