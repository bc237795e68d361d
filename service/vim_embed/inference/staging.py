"""Rows on their way from host memory to a device.

On CUDA they go through a pinned buffer, piece by piece: some are copied into it while others
travel. That is on a stream of its own, so that the next batch is under way while this one computes.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vim_embed.types.pixels import PixelArray

_FEW_BYTES = 1024 * 1024  # copied sooner than two streams are made to wait for each other
# One thread copies 10 GB/s or less, and float32 images want that of it. Not torch's own threads:
# they wait for the slowest of all cores, which on a shared machine is slow indeed.
_HELPERS = max(1, min(3, (os.cpu_count() or 1) // 2 - 1))
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
        self._device = device
        cuda = device.type == "cuda"
        self._copies = torch.cuda.Stream(device) if cuda else None  # type: ignore[no-untyped-call]
        self._helpers = ThreadPoolExecutor(_HELPERS, "vim-embed-copy") if cuda else None

    def __call__(self, parts: Sequence[PixelArray]) -> StagedPixels:
        """Rows (n_i, 3, H, W) of one dtype, put together in their order."""
        rows = sum(len(part) for part in parts)
        dtype = getattr(torch, parts[0].dtype.name)
        shape = (rows, *parts[0].shape[1:])
        buffer = torch.empty(shape, dtype=dtype, pin_memory=self._copies is not None)
        if self._copies is None or self._helpers is None or buffer.nbytes <= _FEW_BYTES:
            np.concatenate(parts, out=buffer.numpy())
            return StagedPixels(buffer.to(self._device, non_blocking=True))
        stream = self._copies
        with torch.cuda.stream(stream):
            pixels = torch.empty_like(buffer, device=self._device)

        def send(rows: slice) -> None:
            with torch.cuda.stream(stream):
                pixels[rows].copy_(buffer[rows], non_blocking=True)

        put_together(parts, buffer.numpy(), send, self._helpers)
        return StagedPixels(pixels, stream.record_event())


def put_together(
    parts: Sequence[PixelArray],
    out: PixelArray,
    then: Callable[[slice], None],
    helpers: Executor,
) -> None:
    """The parts into `out` (B, ...), one behind the other, by this thread and by helpers that are
    free. then(rows): called after each piece, from whichever thread copied it.
    """
    left = deque(_pieces(parts))

    def work() -> None:
        while True:
            try:
                rows, piece = left.popleft()
            except IndexError:  # nothing is left
                return
            np.copyto(out[rows], piece)
            then(rows)

    helping = [helpers.submit(work) for _ in range(min(_HELPERS, len(left) - 1))]
    try:
        work()
    finally:
        left.clear()
        running = [helper for helper in helping if not helper.cancel()]
        wait(running)
    for helper in running:
        helper.result()


def _pieces(parts: Sequence[PixelArray]) -> Iterator[tuple[slice, PixelArray]]:
    """Pieces of about as many bytes, with their rows of the whole."""
    at = 0
    for part in parts:
        step = max(1, _PIECE_BYTES * len(part) // max(1, part.nbytes))
        for first in range(0, len(part), step):
            piece = part[first : first + step]
            yield slice(at + first, at + first + len(piece)), piece
        at += len(part)
