"""Rows on their way from host memory to a device.

On CUDA they go through a pinned buffer and are copied on a stream of their own, so that the next
batch travels while this one computes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vim_embed.types.pixels import PixelArray

_FEW_BYTES = 1024 * 1024  # copied sooner than two streams are made to wait for each other
# One thread copies 10 GB/s or less, and float32 images want that of it. Not torch's own threads:
# they wait for the slowest of all cores, and beside HTTP processes that cost a third of the rows/s.
_COPIERS = max(2, min(8, (os.cpu_count() or 1) // 2))
_PIECE_BYTES = 1024 * 1024


@dataclass(frozen=True)
class StagedPixels:
    """Rows (B, 3, H, W) on the device, once `copied` happened where there is such an event."""

    pixels: Tensor
    copied: torch.cuda.Event | None = None

    def ready(self) -> Tensor:
        """The rows, for the device's current stream: it waits for the copy, the host does not."""
        if self.copied is not None:
            stream = torch.cuda.current_stream(self.pixels.device)
            stream.wait_event(self.copied)
            self.pixels.record_stream(stream)
        return self.pixels


class HostStaging:
    """Stages rows for one device; from any thread."""

    def __init__(self, device: torch.device) -> None:
        cuda = device.type == "cuda"
        self._device = device
        self._copies = torch.cuda.Stream(device) if cuda else None  # type: ignore[no-untyped-call]
        self._copiers = ThreadPoolExecutor(_COPIERS, "vim-embed-copy") if cuda else None

    def __call__(self, parts: Sequence[PixelArray]) -> StagedPixels:
        """Rows (n_i, 3, H, W) of one dtype, put together in their order."""
        rows = sum(len(part) for part in parts)
        dtype = getattr(torch, parts[0].dtype.name)
        shape = (rows, *parts[0].shape[1:])
        buffer = torch.empty(shape, dtype=dtype, pin_memory=self._copies is not None)
        put_together(parts, buffer.numpy(), self._copiers)
        if self._copies is None:
            return StagedPixels(buffer)
        if buffer.nbytes <= _FEW_BYTES:
            return StagedPixels(buffer.to(self._device, non_blocking=True))
        with torch.cuda.stream(self._copies):
            pixels = buffer.to(self._device, non_blocking=True)
        return StagedPixels(pixels, self._copies.record_event())


def put_together(parts: Sequence[PixelArray], out: PixelArray, pool: Executor | None) -> None:
    """The parts into `out` (B, ...), one behind the other; large ones by the pool's threads."""
    if pool is None or out.nbytes <= _PIECE_BYTES:
        np.concatenate(parts, out=out)
        return
    copies, at = [], 0
    for part in parts:
        for rows in np.array_split(part, -(-part.nbytes // _PIECE_BYTES)):
            copies.append(pool.submit(np.copyto, out[at : at + len(rows)], rows))
            at += len(rows)
    wait(copies)
    for copy in copies:
        copy.result()
