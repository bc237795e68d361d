"""An engine that does no work, to compare servers with: a row's embedding is eight of its pixels.

They are taken from all over the row, so that a swapped, shifted or shortened row shows.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.engines.interface import Outputs, Staged
from vim_embed.types.model_info import EMBEDDING, EmbedOptions
from vim_embed.types.pixels import PixelArray

IMAGE_SIZE = 224
MODEL = "marks"


def marks(pixels: NDArray[np.generic]) -> NDArray[np.float32]:
    """(n, 3, H, W) -> (n, 8) float32."""
    flat = pixels.reshape(len(pixels), -1)
    places = np.linspace(0, flat.shape[1] - 1, ArithmeticEngine.DIM).astype(int)
    return flat[:, places].astype(np.float32)


@dataclass(frozen=True)
class _Parts:
    parts: Sequence[PixelArray]

    @property
    def rows(self) -> int:
        return sum(len(part) for part in self.parts)


class MarksEngine(ArithmeticEngine):
    """Gives `marks`, and copies nothing: what a server costs is all its own.

    rate: rows/s of the device that it pretends to be, by waiting; 0: one that takes no time.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__((MODEL,), image_size=IMAGE_SIZE)
        self._rate = rate

    def batch_rows(self, model: str, shape: tuple[int, ...]) -> int:
        return 64

    def stage(self, model: str, parts: Sequence[PixelArray], options: EmbedOptions) -> Staged:
        return _Parts(parts)

    def run(self, staged: Staged) -> Outputs:
        if not isinstance(staged, _Parts):
            return super().run(staged)  # the golden sample
        if self._rate:
            time.sleep(staged.rows / self._rate)
        return {EMBEDDING: np.concatenate([marks(part) for part in staged.parts])}
