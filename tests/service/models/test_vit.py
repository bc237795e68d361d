"""ViT proxies: transformers' own numbers, from a local folder and a cached Hub id."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTModel

from support.fixtures_vim import relative_l2
from vim_embed import load_model
from vim_embed.errors import WeightsError

MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=32,
        patch_size=8,
    )
    ViTModel(config).save_pretrained(path)
    spec = {"image_mean": MEAN, "image_std": STD, "resample": 3}
    (path / "preprocessor_config.json").write_text(json.dumps(spec))
    return path


def test_poolings_and_layers_against_transformers(folder: Path) -> None:
    pixels = np.random.default_rng(0).normal(size=(5, 3, 32, 32)).astype(np.float32)
    original = ViTModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.inference_mode():
        out = original(torch.from_numpy(pixels), output_hidden_states=True)
    tokens = out.last_hidden_state
    model = load_model("proxy", folder, device="cpu")
    assert relative_l2(model.embed(pixels), tokens.mean(1)) < 1e-5
    assert relative_l2(model.embed(pixels, "cls"), tokens[:, 0]) < 1e-5
    assert relative_l2(model.embed(pixels, "patch-mean"), tokens[:, 1:].mean(1)) < 1e-5
    layers = model.embed_layers(pixels)
    for index in range(3):
        expected = out.hidden_states[index + 1].mean(1)
        assert relative_l2(layers[f"model.layers.{index}"], expected) < 1e-5
    assert list(layers)[-1] == "last_hidden_state"


def test_the_folder_s_own_preprocessing(folder: Path) -> None:
    model = load_model("proxy", folder, device="cpu")
    spec = model.info.preprocessing
    assert (spec.image_size, spec.interpolation) == (32, "bicubic")
    pixels = np.random.default_rng(1).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (MEAN, STD))
    floats = (pixels.astype(np.float32) / 255 - mean) / std
    assert relative_l2(model.embed(pixels), model.embed(floats)) < 1e-6
    with pytest.raises(ValueError, match="32×32"):
        model.embed(np.zeros((1, 3, 64, 64), np.uint8))


def test_missing_weights_are_listed(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    gone = next(key for key in state if "layernorm" in key)
    del state[gone]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(WeightsError, match="missing"):
        load_model("proxy", tmp_path)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="safetensors"):
        load_model("proxy", tmp_path)
    with pytest.raises(WeightsError, match="is a file"):
        load_model("vim-tiny-proxy", tmp_path / "config.json")


@pytest.mark.parametrize(("name", "dim"), [("vim-tiny-proxy", 768)])
def test_random_proxy(name: str, dim: int) -> None:
    model = load_model(name, random_weights=True, device="cpu")
    assert model.embed(np.zeros((1, 3, 224, 224), np.uint8)).shape == (1, dim)
    assert model.info.weights.random
