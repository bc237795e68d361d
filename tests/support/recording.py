"""An engine that keeps what it was asked to embed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.types.model_info import EmbedOptions


class Recording(ArithmeticEngine):
    """Keeps every row of pixels that reaches it."""

    def __init__(self, image_size: int) -> None:
        super().__init__(image_size=image_size)
        self.rows: list[NDArray[Any]] = []

    def stage(self, model: str, parts: Sequence[NDArray[Any]], options: EmbedOptions) -> Any:
        self.rows += [row.copy() for part in parts for row in part]
        return super().stage(model, parts, options)
