"""Native Vim against the original code's numbers, for every backend that runs here."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from support.fixtures_vim import NAMES, load_fixture, relative_l2
from vim_embed import load_model
from vim_embed.models.vim import Vim
from vim_embed.types.preprocessing import IMAGENET_MEAN, IMAGENET_STD

BACKENDS = ["reference", "torch", "auto"]
FLOAT32 = 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_tokens_and_poolings(name: str, backend: str) -> None:
    fixture = load_fixture(name)
    model = load_model("micro", fixture.path, device="cpu", backend=backend)
    module = model.module
    assert isinstance(module, Vim)
    with torch.inference_mode():
        tokens = module(torch.from_numpy(fixture.pixel_values)).numpy()
    assert relative_l2(tokens, fixture.tokens) < FLOAT32
    assert relative_l2(model.embed(fixture.pixel_values), fixture.mean) < FLOAT32
    assert relative_l2(model.embed(fixture.pixel_values, "cls"), fixture.cls) < FLOAT32
    middle = module.cls_index(tokens.shape[1])
    patches = np.delete(fixture.tokens, middle, axis=1).mean(axis=1)
    assert relative_l2(model.embed(fixture.pixel_values, "patch-mean"), patches) < FLOAT32


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_blocks(name: str, backend: str) -> None:
    fixture = load_fixture(name)
    model = load_model("micro", fixture.path, device="cpu", backend=backend)
    layers = model.embed_layers(fixture.pixel_values)
    assert list(layers)[-1] == "last_hidden_state"
    assert relative_l2(layers["last_hidden_state"], fixture.mean) < FLOAT32
    for index, expected in enumerate(fixture.block_mean):
        assert relative_l2(layers[f"layers.{index}"], expected) < FLOAT32


def test_uint8_equals_the_float_path() -> None:
    fixture = load_fixture("vim_micro")
    model = load_model("micro", fixture.path, device="cpu")
    pixels = np.random.default_rng(5).integers(0, 256, (9, 3, 64, 64), dtype=np.uint8)
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    floats = (pixels.astype(np.float32) / 255 - mean) / std
    assert relative_l2(model.embed(pixels), model.embed(floats)) < 1e-6


def test_rows_do_not_depend_on_their_batch() -> None:
    model = load_model("micro", load_fixture("vim_micro").path, device="cpu")
    pixels = np.random.default_rng(6).integers(0, 256, (40, 3, 64, 64), dtype=np.uint8)
    together = model.embed(pixels)
    for row in (0, 1, 31, 32, 39):
        assert relative_l2(together[row], model.embed(pixels[row])[0]) < FLOAT32


def test_positions_follow_the_image_size() -> None:
    model = load_model("micro", load_fixture("vim_micro").path, device="cpu")
    module = model.module
    assert isinstance(module, Vim)
    native = module.position_embedding(4, 4)
    assert native is module.pos_embed
    larger = module.position_embedding(8, 6)
    assert larger.shape == (1, 49, 64)
    torch.testing.assert_close(larger[:, 24], native[:, 8])  # the class row, at the new middle
    grid = torch.cat([larger[0, :24], larger[0, 25:]]).reshape(8, 6, 64)
    coarse = torch.cat([native[0, :8], native[0, 9:]]).reshape(4, 4, 64)
    assert relative_l2(grid.mean(dim=(0, 1)), coarse.mean(dim=(0, 1))) < 0.2
    assert model.embed(np.zeros((1, 3, 128, 96), np.uint8)).shape == (1, 64)


def test_direction_and_token_order_matter() -> None:
    """The parity above would miss nothing: mirrored images give other tokens."""
    fixture = load_fixture("vim_micro")
    model = load_model("micro", fixture.path, device="cpu")
    mirrored = model.embed(np.ascontiguousarray(fixture.pixel_values[..., ::-1]))
    assert relative_l2(mirrored, fixture.mean) > 1e-2
