"""Vim's relatives against their original code's numbers, for every backend that runs here."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from support.fixtures_vim import DATA, RELATIVES, load_arrays, relative_l2
from vim_embed import Embedder, load_model
from vim_embed.inference.self_check import self_check
from vim_embed.models.mamba_reg import MambaReg
from vim_embed.models.vim import Vim, VimConfig, init_random
from vim_embed.models.vim_rope import RopeVim, rope_tables

FLOAT32 = 1e-5
BACKENDS = ["reference", "torch", "cpu"]


def load(name: str, backend: str = "auto", dtype: str = "float32", words: str = "") -> Embedder:
    weights = f"{words or RELATIVES[name]}:{DATA / name}.pth"
    return load_model("micro", weights, device="cpu", backend=backend, dtype=dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", RELATIVES)
def test_tokens_poolings_and_blocks(name: str, backend: str) -> None:
    expected = load_arrays(name)
    model, pixels = load(name, backend), expected["pixel_values"]
    assert isinstance(model.module, Vim)
    with torch.inference_mode():
        tokens = model.module(torch.from_numpy(pixels)).numpy()
    assert relative_l2(tokens, expected["tokens"]) < FLOAT32
    layout = model.module.layout(*pixels.shape[-2:])
    assert layout.special == tuple(expected["cls_index"])
    assert layout.patches == tuple(expected["patch_index"])
    poolings = {
        "mean": expected["mean"],
        "patch-mean": expected["mean_patch"],
        "max": expected["tokens"].max(axis=1),
        "cls": expected.get("cls"),
        "registers": expected["registers"].mean(axis=1) if "registers" in expected else None,
        "features": expected.get("features"),
        "tokens": expected["tokens"],
    }
    for pooling, right in poolings.items():
        assert (pooling in model.info.poolings) is (right is not None)
        if right is None:
            with pytest.raises(ValueError, match=f"unknown pooling '{pooling}' for micro"):
                model.embed(pixels, pooling)
        else:
            assert relative_l2(model.embed(pixels, pooling), right) < FLOAT32, pooling
    layers = model.embed_layers(pixels)
    for index, block in enumerate(expected["block_mean"]):
        assert relative_l2(layers[f"layers.{index}"], block) < FLOAT32
    assert relative_l2(layers["last_hidden_state"], expected["mean"]) < FLOAT32


@pytest.mark.parametrize(("dtype", "bar"), [("float16", 3e-3), ("bfloat16", 3e-2)])
@pytest.mark.parametrize("name", RELATIVES)
def test_other_dtypes(name: str, dtype: str, bar: float) -> None:
    expected = load_arrays(name)
    model = load(name, dtype=dtype)
    for pooling, right in (("mean", expected["mean"]), ("features", expected.get("features"))):
        if right is not None:
            assert relative_l2(model.embed(expected["pixel_values"], pooling), right) < bar


@pytest.mark.parametrize("name", RELATIVES)
def test_exact_mode_and_the_self_check(name: str) -> None:
    model = load(name)
    pixels = load_arrays(name)["pixel_values"]
    whole = model.embed(pixels, exact=True)
    alone = [model.embed(row, exact=True) for row in pixels]
    assert np.concatenate(alone).tobytes() == whole.tobytes()
    report = self_check(model)
    assert report.ok
    assert report.error < FLOAT32


@pytest.mark.parametrize("words", ["plain", "fastvim+plain"])
def test_the_plain_weights_beside_averaged_ones(words: str) -> None:
    expected = load_arrays("fastvim_vim_micro")
    averaged, plain = load("fastvim_vim_micro"), load("fastvim_vim_micro", words=words)
    pixels = expected["pixel_values"]
    assert relative_l2(plain.embed(pixels), expected["tokens_plain"].mean(axis=1)) < FLOAT32
    assert relative_l2(plain.embed(pixels, "features"), expected["features_plain"]) < FLOAT32
    assert relative_l2(plain.embed(pixels), averaged.embed(pixels)) > 1e-3
    assert "ema" in averaged.info.weights.tensors
    assert "backbone" in plain.info.weights.tensors


@pytest.mark.parametrize("name", RELATIVES)
def test_other_sizes_of_image(name: str) -> None:
    """Special tokens keep their own position, and patches theirs on the resampled grid."""
    model = load(name)
    vim = model.module
    assert isinstance(vim, Vim)
    layout = vim.layout(96, 48)
    assert layout.grid == (6, 3)
    special = vim.position_embedding(6, 3)[0, list(layout.special)]
    native = vim.position_embedding(4, 4)[0, list(vim.layout(64, 64).special)]
    torch.testing.assert_close(special, native, rtol=0, atol=0)
    assert model.embed(np.zeros((1, 3, 96, 48), np.uint8)).shape == (1, model.info.dim)


def test_registers_of_the_released_sizes() -> None:
    """Positions that the authors' order gives for 196 patches."""
    config = VimConfig(dim=32, depth=1, cls="none", registers=12, reduction=2)
    assert MambaReg(config).places(196) == tuple(range(15, 192, 16))
    config = VimConfig(dim=32, depth=1, cls="none", registers=16, reduction=8)
    assert MambaReg(config).places(196) == tuple(range(11, 192, 12))


def test_rotation_by_hand() -> None:
    """Patch (2, 1) of a 4 × 4 grid, width 8: two frequencies a half, two channels each."""
    cos, sin = rope_tables(8, (4, 4))
    down, right = 2 / 4 * 14, 1 / 4 * 14
    angles = np.repeat([down, down * 0.01, right, right * 0.01], 2)
    assert relative_l2(cos[9], np.cos(angles)) < 1e-6
    assert relative_l2(sin[9], np.sin(angles)) < 1e-6


def test_the_class_token_is_not_rotated() -> None:
    config = VimConfig(dim=32, depth=2, image_size=32, cls="first", averaged=False, rope=True)
    model = RopeVim(config)
    init_random(model)
    seen: list[torch.Tensor] = []
    model.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.randn(1, 3, 48, 48)  # nine patches: ten tokens, an even number
    model(images)
    before = model.embed_patches(images)
    torch.testing.assert_close(seen[0][:, 0], before[:, 0])
    assert not torch.allclose(seen[0][:, 5], before[:, 5])
