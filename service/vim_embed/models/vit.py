"""ViT proxies: Hugging Face's `ViTModel` without its pooler, on scaled dot-product attention.

The forward never waits for the host, so it can be captured in a CUDA graph in every dtype.
"""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, ViTConfig, ViTModel
from transformers.utils import logging as transformers_logging

from vim_embed.errors import WeightsError
from vim_embed.models.attention import ATTENTION
from vim_embed.types.preprocessing import VIT_PREPROCESSING, Preprocessing, Triple
from vim_embed.types.token_layout import TokenLayout

# Pillow's resampling codes as image-processor files store them
_INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}

# width, layers, heads, patch: Dosovitskiy et al. 2021 (arXiv:2010.11929), table 1
_SHAPES = {
    "vim-tiny-proxy": (768, 12, 12, 16),
    "vim-small-proxy": (1024, 24, 16, 16),
    "vim-base-proxy": (1280, 32, 16, 14),
}


class Vit(nn.Module):
    """Normalised images (B, 3, S, S) to final tokens (B, 1 + M, D), class token first."""

    def __init__(self, model: ViTModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        tokens: Tensor = self.model(pixel_values).last_hidden_state
        return tokens

    @property
    def dim(self) -> int:
        width: int = self.model.config.hidden_size
        return width

    @property
    def image_size(self) -> int:
        side: int = self.model.config.image_size
        return side

    @property
    def min_size(self) -> int:
        """The one side that images may have, in pixels."""
        return self.image_size

    def layout(self, height: int, width: int) -> TokenLayout:
        """The final tokens of an image of that many pixels."""
        patch: int = self.model.config.patch_size
        return TokenLayout(grid=(height // patch, width // patch), cls=0)

    def features(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        """What the model's own classifier reads: the class token (B, D)."""
        return tokens[:, 0]

    @property
    def features_dim(self) -> int:
        return self.dim

    def in_reference(self) -> Vit:
        """The same weights in float32 with attention written out; float32 weights are shared."""
        return Vit(written_out(self.model))


def written_out(model: PreTrainedModel) -> PreTrainedModel:
    """A twin in float32 whose attention is matrix products and a softmax, not a fused kernel."""
    shared = next(model.parameters()).dtype == torch.float32
    weights = [*model.parameters(), *model.buffers()] if shared else []
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in weights})
    twin = twin if shared else twin.float()
    twin.set_attn_implementation("eager")
    return twin


def load_vit(folder: Path) -> Vit:
    """Load a local folder with transformers' own loader. Raises WeightsError."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        model, report = ViTModel.from_pretrained(
            folder,
            add_pooling_layer=False,
            attn_implementation=ATTENTION,
            local_files_only=True,
            output_loading_info=True,
            weights_only=True,
            dtype=torch.float32,
        )
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{folder} is not a loadable ViT: {error}") from error
    bad = {key: sorted(map(str, report[key])) for key in ("missing_keys", "mismatched_keys")}
    problems = [
        f"{key.removesuffix('_keys')}: {', '.join(names)}" for key, names in bad.items() if names
    ]
    if problems:
        raise WeightsError(f"{folder} does not fit ViTModel. " + "; ".join(problems))
    return Vit(model.requires_grad_(False).eval())


def random_vit(name: str, seed: int) -> Vit:
    """A proxy of the catalogue with transformers' own seeded initialisation."""
    dim, layers, heads, patch = _SHAPES[name]
    config = ViTConfig(
        hidden_size=dim,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * dim,
        patch_size=patch,
        attn_implementation=ATTENTION,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ViTModel(config, add_pooling_layer=False)
    return Vit(model.requires_grad_(False).eval())


def read_preprocessing(folder: Path, image_size: int) -> Preprocessing:
    """The spec in the folder's `preprocessor_config.json`, or 0.5/0.5 bilinear without one."""
    path = folder / "preprocessor_config.json"
    stored = json.loads(path.read_text()) if path.exists() else {}
    return Preprocessing(
        image_size=image_size,
        interpolation=_INTERPOLATIONS.get(
            stored.get("resample", 2), VIT_PREPROCESSING.interpolation
        ),
        mean=_triple(stored.get("image_mean"), VIT_PREPROCESSING.mean),
        std=_triple(stored.get("image_std"), VIT_PREPROCESSING.std),
    )


def _triple(values: object, default: Triple) -> Triple:
    if not isinstance(values, list) or len(values) != 3:
        return default
    r, g, b = (float(v) for v in values)
    return r, g, b
