"""The ViT proxies of the catalogue with random weights."""

from __future__ import annotations

import torch
from transformers import ViTConfig, ViTModel

from vim_embed.models.attention import ATTENTION
from vim_embed.models.encoder import ENCODERS, Encoder

# width, layers, heads, patch: Dosovitskiy et al. 2021 (arXiv:2010.11929), table 1
_SHAPES = {
    "vim-tiny-proxy": (768, 12, 12, 16),
    "vim-small-proxy": (1024, 24, 16, 16),
    "vim-base-proxy": (1280, 32, 16, 14),
}


def random_vit(name: str, seed: int) -> Encoder:
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
    return Encoder(model.requires_grad_(False).eval(), ENCODERS["vit"])
