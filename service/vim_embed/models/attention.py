"""Attention of transformers' encoders on torch's fused kernels, also in a captured CUDA graph.

While a stream is captured, transformers takes itself to be traced: it then builds a mask that
allows everything, and with any mask torch falls back to its slowest attention (ViT-B in float16,
128 images on an H200: 36 ms in place of 13). Encoders look at all of their tokens, so this
implementation asks for no mask. It is registered through transformers' public interface; give
`attn_implementation=ATTENTION`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface

ATTENTION = "vim_embed"
Product = Callable[[Tensor], Tensor]
# (weight, bias or None) -> the linear layer (..., K) -> (..., columns); None: not for this weight.
MakeProduct = Callable[[Tensor, Tensor | None], Product | None]
# Names that transformers gives to the projections of one attention.
_PROJECTIONS = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"))


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """softmax(Q Kᵀ · scaling) V of (B, heads, T, d): (B, T, heads, d), and no weights.

    attention_mask: only what the encoder itself adds, such as relative positions.
    """
    found = F.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, scale=scaling
    )
    return found.transpose(1, 2).contiguous(), None


def _no_mask(*_: object, **__: object) -> None:
    """Every token sees every other."""


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, _no_mask)


def plain_product(weight: Tensor, bias: Tensor | None) -> Product:
    """torch's own."""
    return partial(F.linear, weight=weight, bias=bias)


def share_projections(model: nn.Module, make: MakeProduct = plain_product) -> int:
    """Let the projections of each attention be one matrix product; how many attentions do.

    Queries, keys and values have one input, and one product of three times the width is faster
    than three. The layers stay where they are, under their names: each gives its part of the
    product, and its weight is a view of the joined one.
    """
    shared = 0
    for module in model.modules():
        for names in _PROJECTIONS:
            layers = [getattr(module, name, None) for name in names]
            if _joinable(layers):
                _join([layer for layer in layers if isinstance(layer, nn.Linear)], make)
                shared += 1
    return shared


def replace_products(model: nn.Module, make: MakeProduct) -> int:
    """Let the linear layers that share no product compute as `make` has it; how many do."""
    replaced = 0
    for module in model.modules():
        if type(module) is nn.Linear and "forward" not in module.__dict__:
            product = make(module.weight, module.bias)
            if product is not None:
                module.forward = product  # type: ignore[method-assign,assignment]
                replaced += 1
    return replaced


def _joinable(layers: Sequence[object]) -> bool:
    linear = [layer for layer in layers if type(layer) is nn.Linear]
    same = {(layer.in_features, layer.bias is None) for layer in linear}
    return len(linear) == len(layers) and len(same) == 1


def _join(layers: Sequence[nn.Linear], make: MakeProduct) -> None:
    sizes = [layer.out_features for layer in layers]
    weight = torch.cat([layer.weight.detach() for layer in layers])
    biases = [layer.bias for layer in layers]
    bias = None if biases[0] is None else torch.cat([each.detach() for each in biases])
    product = _SharedProduct(make(weight, bias) or plain_product(weight, bias), sizes)
    for index, layer in enumerate(layers):
        first = sum(sizes[:index])
        layer.weight.data = weight[first : first + sizes[index]]
        if bias is not None:
            layer.bias.data = bias[first : first + sizes[index]]
        layer.forward = partial(product.part, index)  # type: ignore[method-assign]


class _SharedProduct:
    """One input's product with several weights, kept until each part was asked for once."""

    def __init__(self, product: Product, sizes: Sequence[int]) -> None:
        self._product, self._sizes = product, list(sizes)
        self._input: Tensor | None = None
        self._parts: dict[int, Tensor] = {}

    def part(self, index: int, tokens: Tensor) -> Tensor:
        """Part `index` of (B, T, D) @ weightᵀ + bias. Not for several threads at once."""
        if self._input is not tokens or index not in self._parts:
            whole = self._product(tokens)
            self._input = tokens
            self._parts = dict(enumerate(torch.split(whole, self._sizes, dim=-1)))
        found = self._parts.pop(index)
        if not self._parts:
            self._input = None
        return found

    def __deepcopy__(self, memo: object) -> Self:
        return self  # a twin of the model puts its own layers in place of it
