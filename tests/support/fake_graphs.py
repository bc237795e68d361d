"""A capture for the CPU that records and replays as a CUDA graph does."""

from __future__ import annotations

import torch
from torch import Tensor

from vim_embed.inference.cuda_graphs import Captured, Compute
from vim_embed.types.model_info import EmbedOptions


class RecordedCapture:
    """Fixed buffers; nothing is computed before a replay. `shapes`: of the captured inputs."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.replays = 0

    def __call__(self, compute: Compute, pixels: Tensor, options: EmbedOptions) -> Captured:
        self.shapes.append(tuple(pixels.shape))
        outputs = {k: torch.full_like(v, torch.nan) for k, v in compute(pixels, options).items()}

        def replay() -> None:
            self.replays += 1
            for name, value in compute(pixels, options).items():
                outputs[name].copy_(value)

        return Captured(replay, pixels, outputs)
