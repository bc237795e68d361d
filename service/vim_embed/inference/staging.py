"""Rows on their way from host memory to a device.

On CUDA they go through a pinned buffer, piece by piece: one is copied into it by torch's threads
while the last one travels. That is on a stream of its own, so that the next batch is under way
while this one computes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vim_embed.types.pixels import PixelArray

_FEW_BYTES = 1024 * 1024  # copied sooner than two streams are made to wait for each other
_PIECE_BYTES = 4 * 1024 * 1024  # of one copy, so that the device need not wait for the last row


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

    def __call__(self, parts: Sequence[PixelArray]) -> StagedPixels:
        """Rows (n_i, 3, H, W) of one dtype, put together in their order."""
        rows = sum(len(part) for part in parts)
        dtype = getattr(torch, parts[0].dtype.name)
        shape = (rows, *parts[0].shape[1:])
        buffer = torch.empty(shape, dtype=dtype, pin_memory=self._copies is not None)
        if self._copies is None or buffer.nbytes <= _FEW_BYTES:
            np.concatenate(parts, out=buffer.numpy())
            return StagedPixels(buffer.to(self._device, non_blocking=True))
        with torch.cuda.stream(self._copies):
            pixels = torch.empty_like(buffer, device=self._device)
            for piece in put_together(parts, buffer):
                pixels[piece].copy_(buffer[piece], non_blocking=True)
        return StagedPixels(pixels, self._copies.record_event())


def put_together(parts: Sequence[PixelArray], out: Tensor) -> Iterator[slice]:
    """The parts into `out` (B, ...) on the host, one behind the other: the rows of each piece, as
    soon as they are there.
    """
    at = 0
    for part in parts:
        rows = as_tensor(part)
        step = max(1, _PIECE_BYTES * len(part) // max(1, part.nbytes))
        for piece in torch.split(rows, step):
            place = slice(at, at + len(piece))
            out[place].copy_(piece)
            yield place
            at = place.stop


def as_tensor(array: PixelArray) -> Tensor:
    """The array's own memory, to be read alone, and no longer than the array is kept.

    torch knows no read-only tensors, and warns of arrays that are.
    """
    array = np.ascontiguousarray(array)
    if array.flags.writeable:
        return torch.from_numpy(array)
    memory = (ctypes.c_byte * array.nbytes).from_address(array.ctypes.data)
    return torch.from_numpy(np.frombuffer(memoryview(memory), array.dtype).reshape(array.shape))
