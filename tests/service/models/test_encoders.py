"""Encoders of transformers against transformers' own forward, a small random one of every kind."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from support.encoders import SMALL, WHOLE, poolings_of, random_member, right, saved
from support.fixtures_vim import relative_l2
from support.server_process import server_process
from vim_embed import Embedder, load_model
from vim_embed.errors import WeightsError
from vim_embed.http.formats.images import fit_of
from vim_embed.inference.self_check import self_check
from vim_embed.models.encoder import ENCODERS
from vim_embed.types.preprocessing import Preprocessing
from vim_embed_client import Client
from vim_embed_pixels.images import fit

DOCS = (Path(__file__).parents[3] / "docs" / "models.md").read_text()


def test_every_row_has_a_small_model_and_a_row_in_the_docs() -> None:
    assert set(ENCODERS) == {*SMALL, *WHOLE}
    assert all(f"`{kind}`" in DOCS for kind in ENCODERS)


@pytest.mark.parametrize("kind", ENCODERS)
def test_against_transformers(kind: str, tmp_path: Path) -> None:
    model, size = saved(kind, tmp_path)
    check(kind, model.config, size, tmp_path)


def check(kind: str, config: Any, size: int, folder: Path) -> None:
    """Every pooling and the last layer of a saved encoder beside transformers' own."""
    channels = getattr(config, "num_channels", 3)
    pixels = np.random.default_rng(0).normal(size=(3, channels, size, size)).astype(np.float32)
    model = load_model("mine", f"hf:{folder}", device="cpu")
    expected = poolings_of(kind, folder, pixels)
    assert model.info.dim == expected["mean"].shape[1]
    assert model.info.family == kind
    assert set(expected) == set(model.info.poolings)
    for pooling, value in expected.items():
        assert relative_l2(model.embed(pixels, pooling), value) < 1e-5, (pooling, config)
    assert (model.info.classifier is None) is ("features" not in expected)
    if model.info.classifier is not None:
        assert model.embed(pixels, "features").shape[1] == model.info.features_dim
    last = model.embed_layers(pixels)["last_hidden_state"]
    assert relative_l2(last, expected["mean"]) < 1e-5, config
    assert self_check(model).ok


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("seed", range(2))
def test_a_random_member(kind: str, seed: int, tmp_path: Path) -> None:
    model, size = random_member(kind, seed, tmp_path)
    check(kind, model.config, size, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("kind", SMALL)
def test_many_random_members(kind: str, tmp_path: Path) -> None:
    for seed in range(2, 22):
        model, size = random_member(kind, seed, tmp_path / str(seed))
        check(kind, model.config, size, tmp_path / str(seed))


@pytest.mark.soak
def test_over_http(tmp_path: Path) -> None:
    """Every kind behind one real server: each pooling, and all tokens, as transformers has them."""
    members = {kind: random_member(kind, 1, tmp_path / kind) for kind in SMALL}
    flags = [f"--model={kind}=hf:{tmp_path / kind}" for kind in SMALL]
    with server_process(*flags, "--log-level", "error") as started:
        for kind, (original, size) in members.items():
            shape = (5, original.config.num_channels, size, size)
            pixels = np.random.default_rng(5).normal(size=shape).astype(np.float32)
            expected = poolings_of(kind, tmp_path / kind, pixels)
            with Client(started.url, rows_per_request=2) as client:
                while client.model(kind)["state"] == "loading":
                    time.sleep(0.1)
                assert set(expected) == set(client.model(kind)["poolings"])
                for pooling, value in expected.items():
                    found = client.embed(pixels, model=kind, pooling=pooling).embeddings
                    assert relative_l2(found, value) < 1e-5, (kind, pooling, original.config)


@pytest.mark.parametrize("kind", ["dinov2", "dinov3_vit", "convnext"])
def test_other_sizes(kind: str, tmp_path: Path) -> None:
    saved(kind, tmp_path)
    pixels = np.random.default_rng(1).normal(size=(2, 3, 64, 96)).astype(np.float32)
    tokens, _ = right(kind, tmp_path, pixels)
    model = load_model("mine", f"hf:{tmp_path}", device="cpu")
    assert relative_l2(model.embed(pixels, "patch-mean"), model.embed(pixels, "patch-mean")) == 0
    assert relative_l2(model.embed(pixels), tokens.mean(1)) < 1e-5


def test_one_size_alone(tmp_path: Path) -> None:
    saved("ijepa", tmp_path)
    model = load_model("mine", f"hf:{tmp_path}", device="cpu")
    with pytest.raises(ValueError, match="32×32"):
        model.embed(np.zeros((1, 3, 64, 64), np.uint8))


def test_the_self_check_is_a_second_computation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention that is wrong only in the fused form is found."""
    saved("dinov2", tmp_path)
    model = load_model("mine", f"hf:{tmp_path}", device="cpu")
    assert self_check(model).ok
    real = torch.nn.functional.scaled_dot_product_attention

    def wrong(*args: Any, **kwargs: Any) -> Tensor:
        return real(*args, **kwargs) * 1.5

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", wrong)
    assert not self_check(model).ok


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_self_check_in_half_precision_with_joined_projections(
    dtype: str, tmp_path: Path
) -> None:
    from vim_embed.models.attention import share_projections

    saved("vit", tmp_path)
    model = load_model("mine", f"hf:{tmp_path}", device="cpu", dtype=dtype)
    assert share_projections(model.module) == 2
    assert self_check(model).ok


def _loaded(folder: Path) -> Embedder:
    return load_model("mine", f"hf:{folder}", device="cpu")


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({"size": {"height": 32, "width": 32}, "resample": 3},
         {"image_size": 32, "interpolation": "bicubic"}),
        ({"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32},
          "do_center_crop": True},
         {"image_size": 32, "resize_to": 40, "keep_aspect": True}),
        ({"size": {"shortest_edge": 32}, "crop_size": 32, "do_center_crop": True},
         {"image_size": 32, "resize_to": 32, "keep_aspect": True}),
        ({"size": {"height": 36, "width": 36}, "crop_size": {"height": 32, "width": 32},
          "do_center_crop": True},
         {"image_size": 32, "resize_to": 36, "keep_aspect": False}),
        ({"size": {"shortest_edge": 28}, "crop_pct": 0.875},
         {"image_size": 28, "resize_to": 32, "keep_aspect": True}),
        ({"size": 32, "do_normalize": False}, {"mean": (0, 0, 0), "std": (1, 1, 1)}),
        ({"size": 32, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]},
         {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}),
        ({"size": 32, "image_mean": 0.25}, {"mean": (0.25, 0.25, 0.25)}),
        ({"size": [32, 32], "resample": 1}, {"image_size": 32, "interpolation": "lanczos"}),
        # As first published: CLIP, DeiT, ConvNeXt below and from 384 pixels
        ({"feature_extractor_type": "CLIPFeatureExtractor", "size": 40, "crop_size": 32,
          "do_center_crop": True},
         {"image_size": 32, "resize_to": 40, "keep_aspect": True}),
        ({"feature_extractor_type": "DeiTFeatureExtractor", "size": 40, "crop_size": 32,
          "do_center_crop": True},
         {"image_size": 32, "resize_to": 40, "keep_aspect": False}),
        ({"feature_extractor_type": "ConvNextFeatureExtractor", "size": 28, "crop_pct": 0.875},
         {"image_size": 28, "resize_to": 32, "keep_aspect": True}),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 28}},
         {"image_size": 28, "resize_to": 32, "keep_aspect": True}),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}},
         {"image_size": 384, "resize_to": 0, "keep_aspect": False}),
        ({"image_processor": {"size": 32, "image_mean": [0.5, 0.4, 0.3]}},
         {"mean": (0.5, 0.4, 0.3)}),
    ],
)  # fmt: skip
def test_the_processor_s_settings(
    processor: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    saved("dinov2", tmp_path, **processor)
    spec = _loaded(tmp_path).info.preprocessing
    assert {key: getattr(spec, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("processor", "says"),
    [
        ({"size": 48}, "images of 48 pixels, its model takes 32"),
        ({"size": 32, "rescale_factor": 0.5}, r"scales pixels by 0\.5"),
        ({"size": 28, "crop_size": 32, "do_center_crop": True}, "crops 32 pixels of 28"),
        ({"size": {"height": 32, "width": 24}}, "the size .*24.*, which are no squares"),
        ({"size": {"longest_edge": 32}}, "longest_edge.*, which are no squares"),
        ({"size": {"shortest_edge": 32, "longest_edge": 64}}, "which are no squares"),
        ({"size": 32, "do_center_crop": True}, "the size None, which are no squares"),
        ({"size": 32, "resample": 9}, "resizes by 9, which is no code of Pillow"),
        ({"size": 32, "image_mean": [0.5]}, r"has \[0\.5\] for 3 channels"),
        ({"size": 32, "image_std": ["1", 1, 1]}, "for 3 channels"),
        ({"size": 32, "rescale_offset": True}, "has rescale_offset, which is not done here"),
        ({"size": 32, "do_flip_channel_order": True}, "has do_flip_channel_order"),
    ],
)
def test_processors_that_cannot_be_followed(
    processor: dict[str, Any], says: str, tmp_path: Path
) -> None:
    saved("vit", tmp_path, **processor)
    with pytest.raises(WeightsError, match=says):
        _loaded(tmp_path)


def test_pixels_are_those_of_the_processor() -> None:
    """A wide picture, its shorter side resized, cut in the centre: transformers' own pixels."""
    picture = np.random.default_rng(2).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    spec = Preprocessing(
        image_size=32, interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1),
        resize_to=40, keep_aspect=True,
    )  # fmt: skip
    found = np.asarray(fit(Image.fromarray(picture), fit_of(spec)))
    resized = Image.fromarray(picture).resize((60, 40), Image.Resampling.BICUBIC)
    assert np.array_equal(found, np.asarray(resized)[4:36, 14:46])


def test_other_kinds_and_remote_code_are_refused(tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "auto_map": {"AutoModel": "modeling.Evil"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    (tmp_path / "modeling.py").write_text("raise SystemExit('ran')")
    with pytest.raises(WeightsError, match="'gpt2', which is not served here: use one of vit"):
        _loaded(tmp_path)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    saved("dinov2", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["layernorm.weight"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        WeightsError, match=r"does not fit Dinov2Model\. missing: layernorm\.weight"
    ):
        _loaded(tmp_path)


def test_nan_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    saved("ijepa", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["layernorm.weight"][0] = float("nan")
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"NaN or infinite values in model\.layernorm\.weight"):
        _loaded(tmp_path)
