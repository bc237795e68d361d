"""Encoders of transformers against transformers' own forward, a small random one of every kind."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from support.fixtures_vim import relative_l2
from vim_embed import Embedder, load_model
from vim_embed.errors import WeightsError
from vim_embed.http.formats.images import fit_of
from vim_embed.inference.self_check import self_check
from vim_embed.models.encoder import ENCODERS, Encoder
from vim_embed.types.preprocessing import Preprocessing
from vim_embed_pixels.images import fit

DOCS = (Path(__file__).parents[3] / "docs" / "models.md").read_text()
VIT: dict[str, Any] = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
MAP: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
SWIN: dict[str, Any] = {
    "image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2],
    "window_size": 4,
}  # fmt: skip
HIERA: dict[str, Any] = {
    "image_size": [64, 64], "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2],
    "embed_dim_multiplier": 2.0,
}  # fmt: skip
# By model_type: transformers' configuration, its own settings, and the image size.
SMALL: dict[str, tuple[str, dict[str, Any], int]] = {
    "vit": ("ViTConfig", VIT, 32),
    "deit": ("DeiTConfig", VIT, 32),
    "dinov2": ("Dinov2Config", VIT, 32),
    "dinov2_with_registers": ("Dinov2WithRegistersConfig", VIT | {"num_register_tokens": 3}, 32),
    "dinov3_vit": ("DINOv3ViTConfig", VIT | {"num_register_tokens": 4}, 32),
    "dinov3_convnext": ("DINOv3ConvNextConfig", MAP, 64),
    "ijepa": ("IJepaConfig", VIT, 32),
    "vit_mae": ("ViTMAEConfig", VIT, 32),
    "beit": ("BeitConfig", VIT | {"use_relative_position_bias": True}, 32),
    "clip_vision_model": ("CLIPVisionConfig", VIT, 32),
    "siglip_vision_model": ("SiglipVisionConfig", VIT, 32),
    "convnext": ("ConvNextConfig", MAP, 64),
    "convnextv2": ("ConvNextV2Config", MAP, 64),
    "swin": ("SwinConfig", SWIN, 32),
    "hiera": ("HieraConfig", HIERA, 64),
}  # fmt: skip
WHOLE = {"clip": "CLIP", "siglip": "Siglip"}  # a text tower beside it


def saved(kind: str, folder: Path, **processor: Any) -> tuple[Any, int]:
    """A seeded model of that kind, its weights spread out, saved in the folder; its image size."""
    config_name, settings, size = SMALL.get(kind) or SMALL[f"{kind}_vision_model"]
    torch.manual_seed(0)
    config: Any
    if kind in WHOLE:
        text = {k: v for k, v in VIT.items() if k not in ("image_size", "patch_size")}
        config = getattr(transformers, f"{WHOLE[kind]}Config")(
            vision_config=settings, text_config=text | {"vocab_size": 20}
        )
        model = getattr(transformers, f"{WHOLE[kind]}Model")(config)
    else:
        config = getattr(transformers, config_name)(**settings)
        model = getattr(transformers, ENCODERS[kind].model)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    model.save_pretrained(folder)
    if processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    else:
        (folder / "preprocessor_config.json").write_text(json.dumps({"size": size}))
    return model.eval(), size


def eager(kind: str, folder: Path) -> Any:
    """transformers' own forward, with nothing of ours."""
    family = ENCODERS[kind]
    options: dict[str, Any] = {"attn_implementation": "eager"} if family.attention else {}
    if kind == "vit_mae":
        options["mask_ratio"] = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return family.model_class.from_pretrained(folder, **options).eval()


def right(kind: str, folder: Path, pixels: Any) -> tuple[Tensor, Tensor | None]:
    """Final tokens in row-major order, and what transformers makes of them: CLIP's projected
    embedding, else what it calls the pooler's output."""
    original = eager(kind, folder)
    extra = {"noise": torch.arange(16.0).expand(len(pixels), -1)} if kind == "vit_mae" else {}
    with torch.inference_mode():
        out = original(torch.from_numpy(pixels), **extra)
    tokens: Tensor = out.last_hidden_state
    if tokens.ndim == 4:
        tokens = tokens.flatten(2).transpose(1, 2)
    return tokens, getattr(out, "image_embeds", getattr(out, "pooler_output", None))


def test_every_row_has_a_small_model_and_a_row_in_the_docs() -> None:
    assert set(ENCODERS) == {*SMALL, *WHOLE}
    assert all(f"`{kind}`" in DOCS for kind in ENCODERS)


@pytest.mark.parametrize("kind", ENCODERS)
def test_against_transformers(kind: str, tmp_path: Path) -> None:
    _, size = saved(kind, tmp_path)
    pixels = np.random.default_rng(0).normal(size=(3, 3, size, size)).astype(np.float32)
    tokens, pooled = right(kind, tmp_path, pixels)
    model = load_model("mine", f"hf:{tmp_path}", device="cpu")
    encoder = model.module
    assert isinstance(encoder, Encoder)
    layout = encoder.layout(size, size)
    assert layout.count == tokens.shape[1]
    assert model.info.dim == tokens.shape[2]
    assert model.info.family == kind
    expected = {
        "mean": tokens.mean(1),
        "max": tokens.amax(1),
        "patch-mean": tokens[:, list(layout.patches)].mean(1),
        "cls": tokens[:, 0] if layout.cls is not None else None,
        "registers": tokens[:, list(layout.registers)].mean(1) if layout.registers else None,
    }
    for pooling, value in expected.items():
        assert (pooling in model.info.poolings) is (value is not None)
        if value is not None:
            assert relative_l2(model.embed(pixels, pooling), value) < 1e-5, pooling
    if model.info.classifier is not None:
        found = model.embed(pixels, "features")
        assert found.shape[1] == model.info.features_dim
        if model.info.classifier != "features":
            assert relative_l2(found, model.embed(pixels, model.info.classifier)) < 1e-6
        elif kind.startswith("dinov2"):
            own = torch.cat([tokens[:, 0], tokens[:, list(layout.patches)].mean(1)], 1)
            assert relative_l2(found, own) < 1e-5
        else:
            assert pooled is not None
            assert relative_l2(found, pooled) < 1e-5
    assert relative_l2(model.embed_layers(pixels)["last_hidden_state"], tokens.mean(1)) < 1e-5
    assert self_check(model).error < 1e-5


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
