"""Encoders of transformers as they are there, and the table of the kinds that are served.

A row says how an encoder's final tokens are laid out and what its own classifier reads of them.
Models with a feature map give one token for each of its places, in row-major order. The forward
never waits for the host, so it can be captured in a CUDA graph in every dtype.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from vim_embed.models.attention import (
    MakeProduct,
    plain_product,
    replace_products,
    share_projections,
)
from vim_embed.types.token_layout import TokenLayout

Features = Callable[[Any, Tensor, TokenLayout], Tensor]


@dataclass(frozen=True, kw_only=True)
class EncoderFamily:
    """Encoders of one `model_type` in a repository's config.json.

    model: transformers' class. special: how many class tokens and, behind them, registers and
    other tokens stand in front of the patches. stride: pixels for each step of the grid. features:
    what the model's own classifier reads; classifier: the pooling that this is, `features` where
    no other gives it, or None. widths: of features, in units of the tokens' width. any_size:
    whether other image sizes than the trained one are taken. attention: whether transformers lets
    its attention be chosen. options: for the class. extra: further arguments of the forward.
    """

    model_type: str
    title: str
    model: str
    special: Callable[[Any], tuple[int, int, int]]
    stride: Callable[[Any], int]
    features: Features
    classifier: str | None
    widths: int = 1
    any_size: bool = False
    attention: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    extra: Callable[[Any, Tensor], dict[str, Tensor]] = lambda config, pixels: {}

    @property
    def model_class(self) -> Any:
        return getattr(transformers, self.model)


class Encoder(nn.Module):
    """Normalised images (B, C, H, W) to final tokens (B, L, D)."""

    def __init__(self, model: PreTrainedModel, family: EncoderFamily) -> None:
        super().__init__()
        self.model = model
        self.family = family
        self.kind: Literal["vit", "encoder"] = "vit" if family.model_type == "vit" else "encoder"
        self._make_product: MakeProduct = plain_product

    def forward(self, pixel_values: Tensor) -> Tensor:
        extra = self.family.extra(self.model.config, pixel_values)
        tokens: Tensor = self.model(pixel_values, **extra).last_hidden_state
        return tokens.flatten(2).transpose(1, 2) if tokens.ndim == 4 else tokens

    def layout(self, height: int, width: int) -> TokenLayout:
        """The final tokens of an image of that many pixels."""
        step = self.family.stride(self.model.config)
        cls, registers, others = self.family.special(self.model.config)
        return TokenLayout(
            grid=(height // step, width // step),
            cls=0 if cls else None,
            registers=tuple(range(cls, cls + registers)),
            others=tuple(range(cls + registers, cls + registers + others)),
        )

    def features(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        """What the model's own classifier reads of the final tokens (B, L, D): (B, F)."""
        return self.family.features(self.model, tokens, layout)

    @property
    def dim(self) -> int:
        config: Any = self.model.config
        sizes = getattr(config, "hidden_sizes", None)
        width: int = sizes[-1] if sizes else config.hidden_size
        return width

    @property
    def features_dim(self) -> int:
        """Width of `features`."""
        projection = getattr(self.model, "visual_projection", None)
        return self.family.widths * self.dim if projection is None else projection.out_features

    @property
    def image_size(self) -> int | None:
        """The trained size in pixels; None where the configuration tells none."""
        size = getattr(self.model.config, "image_size", None)
        return size[0] if isinstance(size, list | tuple) else size

    @property
    def patch(self) -> tuple[int, int]:
        """Side of a patch (or place of the feature map), and pixels from one to the next."""
        step = self.family.stride(self.model.config)
        return step, step

    @property
    def channels(self) -> int:
        count: int = getattr(self.model.config, "num_channels", 3)
        return count

    @property
    def min_size(self) -> int:
        """Shortest side of an image, in pixels."""
        if self.family.any_size or self.image_size is None:
            return self.family.stride(self.model.config)
        return self.image_size

    def use_products(self, make: MakeProduct) -> None:
        """Compute linear layers otherwise from `prepare_for_graphs` on."""
        self._make_product = make

    def prepare_for_graphs(self) -> None:
        """Compute the projections of each attention as one product."""
        share_projections(self, self._make_product)
        if self._make_product is not plain_product:
            replace_products(self, self._make_product)

    def in_reference(self, dtype: torch.dtype = torch.float32) -> Encoder:
        """The same weights in `dtype` with attention written out; shared where they are so."""
        return Encoder(_written_out(self.model, self.family, dtype), self.family)


def _written_out(
    model: PreTrainedModel, family: EncoderFamily, dtype: torch.dtype
) -> PreTrainedModel:
    """A twin in `dtype` that uses no fused attention and no joined projections."""
    shared = next(model.parameters()).dtype == dtype
    kept = [*model.parameters(), *model.buffers()] if shared else []
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in kept})
    for module in twin.modules():
        module.__dict__.pop("forward", None)  # what share_projections put there
    twin = twin if shared else twin.to(dtype)
    if family.attention:
        twin.set_attn_implementation("eager")
    return twin


def _cls(model: Any, tokens: Tensor, layout: TokenLayout) -> Tensor:
    return tokens[:, 0]


def _mean(model: Any, tokens: Tensor, layout: TokenLayout) -> Tensor:
    return tokens.mean(dim=1)


def _cls_and_patches(model: Any, tokens: Tensor, layout: TokenLayout) -> Tensor:
    """DINOv2's linear classifier: the class token beside the mean of the patches."""
    patches = tokens[:, len(layout.special) :]
    return torch.cat([tokens[:, 0], patches.mean(dim=1)], dim=1)


def _normed_mean(model: Any, tokens: Tensor, layout: TokenLayout) -> Tensor:
    normed: Tensor = model.layernorm(tokens.mean(dim=1))
    return normed


def _normed_cls(model: Any, tokens: Tensor, layout: TokenLayout) -> Tensor:
    normed: Tensor = model.post_layernorm(tokens[:, 0])
    return normed


def _projected(model: Any, tokens: Tensor, layout: TokenLayout) -> Tensor:
    """CLIP's image embedding, which it compares with those of texts."""
    projected: Tensor = model.visual_projection(_normed_cls(model.vision_model, tokens, layout))
    return projected


def _attention_head(model: Any, tokens: Tensor, layout: TokenLayout) -> Tensor:
    pooled: Tensor = model.head(tokens)
    return pooled


def _pooler(model: Any, tokens: Tensor, layout: TokenLayout) -> Tensor:
    pooled: Tensor = model.pooler(tokens)
    return pooled


def _fixed_order(config: Any, pixels: Tensor) -> dict[str, Tensor]:
    """Noise by which ViT-MAE, that masks nothing here, leaves the patches in their order."""
    count = (pixels.shape[-2] // _patch(config)) * (pixels.shape[-1] // _patch(config))
    noise = torch.arange(count, dtype=torch.float32, device=pixels.device)
    return {"noise": noise.expand(len(pixels), -1)}


def _patch(config: Any) -> int:
    size = config.patch_size
    side: int = size[0] if isinstance(size, list | tuple) else size
    return side


def _hiera_stride(config: Any) -> int:
    if config.num_query_pool != len(config.depths) - 1:
        raise ValueError("a Hiera that does not pool between all stages has another token order")
    stride: int = config.patch_stride[0] * config.query_stride[0] ** config.num_query_pool
    return stride


def _of(cls: int, registers: int = 0, others: int = 0) -> Callable[[Any], tuple[int, int, int]]:
    return lambda config: (cls, registers, others)


def _with_registers(config: Any) -> tuple[int, int, int]:
    return 1, config.num_register_tokens, 0


_PLAIN: dict[str, Any] = {"special": _of(1), "stride": _patch, "features": _cls}
_MAP: dict[str, Any] = {"special": _of(0), "attention": False}
_NO_POOLER = {"add_pooling_layer": False}

ENCODERS: dict[str, EncoderFamily] = {
    family.model_type: family
    for family in (
        EncoderFamily(
            model_type="vit", title="ViT", model="ViTModel", classifier="cls",
            options=_NO_POOLER, **_PLAIN,
        ),
        EncoderFamily(
            model_type="deit", title="DeiT", model="DeiTModel", classifier="cls",
            options=_NO_POOLER, **{**_PLAIN, "special": _of(1, 0, 1)},
        ),
        EncoderFamily(
            model_type="dinov2", title="DINOv2", model="Dinov2Model", classifier="features",
            any_size=True, widths=2, **{**_PLAIN, "features": _cls_and_patches},
        ),
        EncoderFamily(
            model_type="dinov2_with_registers", title="DINOv2 with registers",
            model="Dinov2WithRegistersModel", classifier="features", any_size=True, widths=2,
            special=_with_registers, stride=_patch, features=_cls_and_patches,
        ),
        EncoderFamily(
            model_type="dinov3_vit", title="DINOv3, ViT", model="DINOv3ViTModel",
            classifier="cls", any_size=True, special=_with_registers, stride=_patch,
            features=_cls,
        ),
        EncoderFamily(
            model_type="dinov3_convnext", title="DINOv3, ConvNeXt", model="DINOv3ConvNextModel",
            classifier="cls", any_size=True, attention=False, special=_of(1),
            stride=lambda config: 32, features=_cls,
        ),
        EncoderFamily(
            model_type="ijepa", title="I-JEPA", model="IJepaModel", classifier="mean",
            options=_NO_POOLER, **{**_PLAIN, "special": _of(0), "features": _mean},
        ),
        EncoderFamily(
            model_type="vit_mae", title="ViT-MAE", model="ViTMAEModel", classifier=None,
            options={"mask_ratio": 0.0}, extra=_fixed_order, **_PLAIN,
        ),
        EncoderFamily(
            model_type="beit", title="BEiT", model="BeitModel", classifier="features",
            **{**_PLAIN, "features": _pooler},
        ),
        EncoderFamily(
            model_type="clip", title="CLIP", model="CLIPVisionModelWithProjection",
            classifier="features", **{**_PLAIN, "features": _projected},
        ),
        EncoderFamily(
            model_type="clip_vision_model", title="CLIP's vision tower", model="CLIPVisionModel",
            classifier="features", **{**_PLAIN, "features": _normed_cls},
        ),
        *(
            EncoderFamily(
                model_type=name, title="SigLIP's vision tower", model="SiglipVisionModel",
                classifier="features", special=_of(0), stride=_patch, features=_attention_head,
            )
            for name in ("siglip", "siglip_vision_model")
        ),
        *(
            EncoderFamily(
                model_type=name, title=title, model=model, classifier="features", any_size=True,
                stride=lambda config: config.patch_size * 2 ** (len(config.depths) - 1),
                features=_normed_mean, **_MAP,
            )
            for name, title, model in (
                ("convnext", "ConvNeXt", "ConvNextModel"),
                ("convnextv2", "ConvNeXt V2", "ConvNextV2Model"),
            )
        ),
        EncoderFamily(
            model_type="swin", title="Swin", model="SwinModel", classifier="mean",
            options=_NO_POOLER, special=_of(0), features=_mean,
            stride=lambda config: config.patch_size * 2 ** (len(config.depths) - 1),
        ),
        EncoderFamily(
            model_type="hiera", title="Hiera", model="HieraModel", classifier="features",
            stride=_hiera_stride, features=_pooler, **_MAP,
        ),
    )
}  # fmt: skip
