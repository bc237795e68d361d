"""Small random encoders of transformers, saved as their repositories hold them."""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from vim_embed.models.encoder import ENCODERS

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
    if kind in WHOLE:
        text = {k: v for k, v in VIT.items() if k not in ("image_size", "patch_size")}
        config = getattr(transformers, f"{WHOLE[kind]}Config")(
            vision_config=settings, text_config=text | {"vocab_size": 20}
        )
        model = getattr(transformers, f"{WHOLE[kind]}Model")(config)
    else:
        config = getattr(transformers, config_name)(**settings)
        model = getattr(transformers, ENCODERS[kind].model)(config)
    return _saved(model, folder, processor or {"size": size}), size


def _saved(model: Any, folder: Path, processor: dict[str, Any]) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model.eval()


def random_member(kind: str, seed: int, folder: Path) -> tuple[Any, int]:
    """A model of that kind with sizes and switches at random, saved; its image size."""
    rng = random.Random(f"{kind} {seed}")
    settings, size = _SETTINGS.get(kind, _vit)(rng)
    settings |= {key: rng.choice(values) for key, values in SWITCHES.get(kind, {}).items()}
    settings["num_channels"] = channels = rng.choice([3, 3, 1, 4])
    torch.manual_seed(seed)
    config = getattr(transformers, SMALL[kind][0])(**settings)
    model = getattr(transformers, ENCODERS[kind].model)(config)
    processor = {"size": size, "image_mean": [0.4] * channels, "image_std": [0.3] * channels}
    return _saved(model, folder, processor), size


def _vit(rng: random.Random) -> tuple[dict[str, Any], int]:
    heads, patch = rng.randint(1, 5), rng.choice([4, 8, 14])
    width = heads * rng.choice([8, 12, 16])
    size = patch * rng.randint(2, 5)
    return {
        "hidden_size": width, "num_attention_heads": heads, "num_hidden_layers": rng.randint(1, 4),
        "intermediate_size": 8 * rng.randint(2, 24), "patch_size": patch, "image_size": size,
        "layer_norm_eps": rng.choice([1e-6, 1e-5]),
    }, size  # fmt: skip


def _map(rng: random.Random) -> tuple[dict[str, Any], int]:
    stages = 4
    depths = [rng.randint(1, 2) for _ in range(stages)]
    sizes = {"hidden_sizes": [4 * rng.randint(1, 8) for _ in range(stages)], "depths": depths}
    return sizes, 32 * rng.randint(1, 3)


def _swin(rng: random.Random) -> tuple[dict[str, Any], int]:
    stages, heads = rng.randint(1, 3), rng.randint(1, 3)
    patch, window = rng.choice([2, 4]), rng.choice([2, 3, 4])
    size = patch * 2 ** (stages - 1) * rng.randint(window, 5)  # at least a window in each stage
    return {
        "image_size": size, "patch_size": patch, "embed_dim": 8 * heads,
        "depths": [rng.randint(1, 3) for _ in range(stages)], "num_heads": [heads] * stages,
        "window_size": window,
    }, size  # fmt: skip


def _hiera(rng: random.Random) -> tuple[dict[str, Any], int]:
    heads = rng.randint(1, 2)
    size = rng.choice([64, 96])
    return {
        "image_size": [size, size], "embed_dim": 8 * heads, "num_heads": [heads, heads, 2, 2],
        "depths": [rng.randint(1, 2) for _ in range(4)], "embed_dim_multiplier": 2.0,
    }, size  # fmt: skip


_YES_OR_NO = [True, False]
# By model_type: the settings of its own that change what is computed.
SWITCHES: dict[str, dict[str, list[Any]]] = {
    "vit": {"qkv_bias": _YES_OR_NO, "hidden_act": ["gelu", "gelu_new", "relu"]},
    "deit": {"qkv_bias": _YES_OR_NO, "hidden_act": ["gelu", "relu"]},
    "dinov2": {
        "qkv_bias": _YES_OR_NO, "use_swiglu_ffn": _YES_OR_NO, "layerscale_value": [1.0, 0.3],
    },
    "dinov2_with_registers": {
        "qkv_bias": _YES_OR_NO, "use_swiglu_ffn": _YES_OR_NO, "num_register_tokens": [1, 2, 5],
    },
    "dinov3_vit": {
        "num_register_tokens": [0, 1, 4], "use_gated_mlp": _YES_OR_NO, "key_bias": _YES_OR_NO,
        "query_bias": _YES_OR_NO, "rope_theta": [100.0, 10.0],
    },
    "ijepa": {"qkv_bias": _YES_OR_NO},
    "vit_mae": {"qkv_bias": _YES_OR_NO},
    "beit": {
        "use_mean_pooling": _YES_OR_NO, "use_relative_position_bias": _YES_OR_NO,
        "use_absolute_position_embeddings": _YES_OR_NO, "layer_scale_init_value": [0.1, 0.5],
    },
    "clip_vision_model": {"hidden_act": ["quick_gelu", "gelu"]},
    "siglip_vision_model": {"hidden_act": ["gelu_pytorch_tanh", "gelu"]},
    "convnext": {"layer_scale_init_value": [1e-6, 0.5], "patch_size": [2, 4]},
    "convnextv2": {"patch_size": [2, 4]},
    "swin": {"qkv_bias": _YES_OR_NO, "use_absolute_embeddings": _YES_OR_NO},
}  # fmt: skip
_SETTINGS = {
    "dinov3_convnext": _map, "convnext": _map, "convnextv2": _map, "swin": _swin, "hiera": _hiera,
}  # fmt: skip


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
    extra = {}
    if kind == "vit_mae":
        patches = (original.config.image_size // original.config.patch_size) ** 2
        extra["noise"] = torch.arange(float(patches)).expand(len(pixels), -1)
    with torch.inference_mode():
        out = original(torch.from_numpy(pixels), **extra)
    tokens: Tensor = out.last_hidden_state
    if tokens.ndim == 4:
        tokens = tokens.flatten(2).transpose(1, 2)
    return tokens, getattr(out, "image_embeds", getattr(out, "pooler_output", None))


# How many class tokens, and which poolings are what the classifier reads, by transformers' code.
NO_CLASS_TOKEN = {
    "ijepa", "siglip", "siglip_vision_model", "convnext", "convnextv2", "swin", "hiera",
}  # fmt: skip
READS_THE_CLASS_TOKEN = {"vit", "deit", "dinov3_vit", "dinov3_convnext"}
READS_THE_MEAN = {"ijepa", "swin"}


def poolings_of(kind: str, folder: Path, pixels: Any) -> dict[str, Tensor]:
    """By pooling, what transformers' own forward gives for pixels (B, C, S, S)."""
    tokens, pooled = right(kind, folder, pixels)
    config = json.loads((folder / "config.json").read_text())
    cls = 0 if kind in NO_CLASS_TOKEN else 1
    registers = config.get("num_register_tokens", 0)
    patches = tokens[:, cls + registers + (kind == "deit") :]
    found = {
        "mean": tokens.mean(1), "max": tokens.amax(1), "patch-mean": patches.mean(1),
        "tokens": tokens,
    }  # fmt: skip
    if cls:
        found["cls"] = tokens[:, 0]
    if registers:
        found["registers"] = tokens[:, 1 : 1 + registers].mean(1)
    if kind in READS_THE_CLASS_TOKEN:
        found["features"] = tokens[:, 0]
    elif kind in READS_THE_MEAN:
        found["features"] = tokens.mean(1)
    elif kind.startswith("dinov2"):
        found["features"] = torch.cat([tokens[:, 0], patches.mean(1)], 1)
    elif kind != "vit_mae":
        assert pooled is not None
        found["features"] = pooled
    return found
