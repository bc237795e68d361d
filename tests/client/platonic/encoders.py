"""Small random encoders as the host finds them: folders by the names of the host's own tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from support.encoders import HIERA, MAP, VIT

_TEXT = {**{k: v for k, v in VIT.items() if "size" in k and k[0] == "h"}, "vocab_size": 20}
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_HALVES = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def _squared(side: int) -> dict[str, Any]:
    """Processor settings of most: resized to a square."""
    return {
        "image_processor_type": "ViTImageProcessor", "resample": 2, **_HALVES,
        "size": {"height": side, "width": side}, "do_resize": True,
    }  # fmt: skip


def _cut(kind: str, first: int, side: int) -> dict[str, Any]:
    """Processor settings of those that cut the centre out."""
    return {
        "image_processor_type": kind, "resample": 3, "do_resize": True, "do_center_crop": True,
        "size": {"shortest_edge": first}, "crop_size": {"height": side, "width": side}, **_IMAGENET,
    }  # fmt: skip


class Small(NamedTuple):
    """A size of one of the host's models: its name there, and a configuration to stand for it."""

    alias: str
    size: str
    name: str
    model: str
    config: str
    settings: dict[str, Any]
    processor: dict[str, Any]


SMALL = (
    Small("vit", "base", "google/vit-base-patch16-224-in21k", "ViTModel", "ViTConfig",
          VIT, _squared(32)),
    Small("dino", "small", "facebook/dinov2-with-registers-small", "Dinov2WithRegistersModel",
          "Dinov2WithRegistersConfig", VIT | {"num_register_tokens": 3},
          _cut("BitImageProcessor", 36, 32)),
    Small("dinov3", "vits16", "facebook/dinov3-vits16-pretrain-lvd1689m", "DINOv3ViTModel",
          "DINOv3ViTConfig", VIT | {"num_register_tokens": 4}, _squared(32) | _IMAGENET),
    Small("dinov3", "convnext-tiny", "facebook/dinov3-convnext-tiny-pretrain-lvd1689m",
          "DINOv3ConvNextModel", "DINOv3ConvNextConfig", MAP, _squared(64) | _IMAGENET),
    Small("convnext", "tiny", "facebook/convnextv2-tiny-22k-224", "ConvNextV2Model",
          "ConvNextV2Config", MAP,
          {"image_processor_type": "ConvNextImageProcessor", "resample": 3, "do_resize": True,
           "size": {"shortest_edge": 64}, "crop_pct": 0.875, **_IMAGENET}),
    Small("ijepa", "huge", "facebook/ijepa_vith14_22k", "IJepaModel", "IJepaConfig",
          VIT, _squared(32) | _IMAGENET),
    Small("clip", "base", "openai/clip-vit-base-patch16", "CLIPModel", "CLIPConfig",
          {"vision_config": VIT | {"projection_dim": 24}, "text_config": _TEXT,
           "projection_dim": 24},
          _cut("CLIPImageProcessor", 32, 32)),
    Small("vit-mae", "base", "facebook/vit-mae-base", "ViTMAEModel", "ViTMAEConfig",
          VIT | {"mask_ratio": 0.0}, _squared(32) | _IMAGENET),
    Small("hiera", "tiny", "facebook/hiera-tiny-224-hf", "HieraModel", "HieraConfig",
          HIERA, _squared(64) | _IMAGENET),
)  # fmt: skip


def save(small: Small, hub: Path) -> Path:
    """Save one, seeded, under its name in `hub`; gives its folder."""
    torch.manual_seed(0)
    config = getattr(transformers, small.config)(**small.settings)
    model = getattr(transformers, small.model)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    folder = hub / small.name
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(small.processor))
    return folder


def served(small: Small, folder: Path) -> str:
    """The `--model` argument that serves it."""
    return f"{small.name.rpartition('/')[2]}=hf:{folder}"
