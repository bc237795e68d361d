"""Rows on their way from host memory to a device.

On CUDA they go through a pinned buffer and are copied on a stream of their own, so that the next
batch travels while this one computes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vim_embed.inference.device_copy import OnItsWay, to_host
from vim_embed.kernels.cpu.compile import NativeUnavailable
from vim_embed.kernels.cpu.host_copy import ParallelCopy
from vim_embed.types.pixels import PixelArray
from vim_embed.types.preprocessing import Rounding

_LOG = logging.getLogger(__name__)
_FEW_BYTES = 1024 * 1024  # copied sooner than two streams are made to wait for each other

Copy = Callable[[Sequence[PixelArray], PixelArray], None]


@dataclass(frozen=True)
class StagedPixels:
    """Rows (B, 3, H, W) on the device; `copied` by `stream` where that is a stream of its own."""

    pixels: Tensor
    stream: torch.cuda.Stream | None = None
    copied: torch.cuda.Event | None = None

    def ready(self) -> Tensor:
        """The rows, for the device's current stream: it waits for the copy, the host does not."""
        if self.copied is not None:
            stream = torch.cuda.current_stream(self.pixels.device)
            stream.wait_event(self.copied)
            self.pixels.record_stream(stream)
        return self.pixels

    def finite(self) -> OnItsWay:
        """Which rows are free of NaN and infinities: `finite` (B,), found while others compute."""
        with torch.cuda.stream(self.stream):
            # The largest magnitude: NaN and infinities are larger than any number.
            largest = torch.linalg.vector_norm(self.pixels.flatten(1), float("inf"), dim=1)
            return to_host({"finite": torch.isfinite(largest)})


class HostStaging:
    """Stages rows for one device; from any thread."""

    def __init__(self, device: torch.device) -> None:
        cuda = device.type == "cuda"
        self._device = device
        self._copies = torch.cuda.Stream(device) if cuda else None  # type: ignore[no-untyped-call]
        self._copy = _parallel_copy() if cuda else _plain_copy

    def __call__(self, parts: Sequence[PixelArray]) -> StagedPixels:
        """Rows (n_i, 3, H, W) of one dtype, put together in their order."""
        rows = sum(len(part) for part in parts)
        dtype = getattr(torch, parts[0].dtype.name)
        shape = (rows, *parts[0].shape[1:])
        buffer = torch.empty(shape, dtype=dtype, pin_memory=self._copies is not None)
        few = buffer.nbytes <= _FEW_BYTES
        (_plain_copy if few else self._copy)(parts, buffer.numpy())
        if few and self._copies is not None:
            return StagedPixels(buffer.to(self._device, non_blocking=True))
        return self._sent(buffer)

    def rounded(self, rows: PixelArray, how: Rounding) -> StagedPixels | None:
        """float32 rows (B, C, H, W) as a forward rounds them anyway, the bits as int16: half as
        many bytes to send. None where that is not worth it or not possible, or they are not finite.
        """
        many = rows.nbytes > _FEW_BYTES and rows.dtype == np.float32
        if not (many and isinstance(self._copy, ParallelCopy)):
            return None
        buffer = torch.empty(rows.shape, dtype=torch.int16, pin_memory=self._copies is not None)
        filled = self._copy.rounded(rows, buffer.numpy(), how)
        return self._sent(buffer) if filled else None

    def _sent(self, buffer: Tensor) -> StagedPixels:
        if self._copies is None:
            return StagedPixels(buffer)
        with torch.cuda.stream(self._copies):
            pixels = buffer.to(self._device, non_blocking=True)
        return StagedPixels(pixels, self._copies, self._copies.record_event())


def _plain_copy(parts: Sequence[PixelArray], out: PixelArray) -> None:
    np.concatenate(parts, out=out)


def _parallel_copy() -> Copy:
    """One thread copies 10 GB/s or less; float32 images want more of it."""
    try:
        return ParallelCopy()
    except NativeUnavailable as error:
        _LOG.warning("rows are copied by one thread", extra={"reason": str(error)})
        return _plain_copy
