"""What an `Embedder` asks of a model: a module that tells of itself, maybe with a faster form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, Self

import torch
from torch import Tensor

from vim_embed.types.preprocessing import NORMALISED, Rounding, Scaling
from vim_embed.types.token_layout import TokenLayout


class Backbone(Protocol):
    """A module from normalised images (B, C, H, W) to final tokens (B, L, D)."""

    def __call__(self, pixel_values: Tensor) -> Tensor: ...

    def layout(self, height: int, width: int) -> TokenLayout:
        """The final tokens of an image of that many pixels."""
        ...

    def features(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        """What the model's own classifier reads of the final tokens: (B, F)."""
        ...

    def in_reference(self, dtype: torch.dtype = torch.float32) -> Self:
        """The same weights in `dtype`, computed by other code where there is any."""
        ...

    def prepare_for_graphs(self) -> None:
        """Join the operations that a CUDA graph runs faster as one; results stay what they are."""
        ...


class FusedBackbone(Protocol):
    """The same forward in another form: images as they come in, tokens in the compute dtype out."""

    @property
    def rounding(self) -> Rounding | None:
        """What it makes of normalised float32 pixels before all else; it takes them so as well, as
        the bits in int16. None: it does not.
        """
        ...

    def __call__(
        self,
        pixel_values: Tensor,
        *,
        scaling: Scaling = NORMALISED,
        on_block: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """scaling: what makes the pixels, uint8 or of a float dtype, normalised ones.

        on_block(i, stream): sees the residual stream (B, T, D) float32 after each block.
        """
        ...

    def cls(self, pixel_values: Tensor, *, scaling: Scaling = NORMALISED) -> Tensor:
        """Only the final class tokens (B, D)."""
        ...
