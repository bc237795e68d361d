"""Rows on their way from host memory to a device.

On CUDA they go through a pinned buffer and are copied on a stream of their own, so that the next
batch travels while this one computes.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from vim_embed.inference.device_copy import OnItsWay, to_host
from vim_embed.inference.short_memory import one_short_memory
from vim_embed.kernels.cpu.compile import NativeUnavailable
from vim_embed.kernels.cpu.host_copy import ParallelCopy, Sending
from vim_embed.kernels.streams import own_stream
from vim_embed.types.pixels import PixelArray
from vim_embed.types.preprocessing import Rounding

_LOG = logging.getLogger(__name__)
_FEW_BYTES = 1024 * 1024  # copied sooner than two streams are made to wait for each other

Fill = Callable[[PixelArray, Sending | None], bool]


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

    def __init__(self, device: torch.device, *, alone: bool = False) -> None:
        """alone: nothing else needs the cores, and the device waits for the rows: more threads, and
        the buffer's beginning travels while its end is filled.
        """
        cuda = device.type == "cuda"
        self._device = device
        self._alone = alone
        self._copies = own_stream(device) if cuda else None
        self._copy = _parallel_copy(alone=alone) if cuda else None

    @one_short_memory()
    def __call__(self, parts: Sequence[PixelArray]) -> StagedPixels:
        """Rows (n_i, 3, H, W) of one dtype, put together in their order.

        Raises torch.OutOfMemoryError.
        """
        rows = sum(len(part) for part in parts)
        dtype = getattr(torch, parts[0].dtype.name)
        buffer = self._buffer((rows, *parts[0].shape[1:]), dtype)
        if buffer.nbytes <= _FEW_BYTES and self._copies is not None:
            np.concatenate(parts, out=buffer.numpy())
            return StagedPixels(buffer.to(self._device, non_blocking=True))

        def fill(out: PixelArray, sending: Sending | None) -> bool:
            if self._copy is None:
                np.concatenate(parts, out=out)
            else:
                self._copy(parts, out, sending)
            return True

        staged = self._filled(buffer, fill)
        assert staged is not None
        return staged

    @one_short_memory()
    def rounded(self, rows: PixelArray, how: Rounding) -> StagedPixels | None:
        """float32 rows (B, C, H, W) as a forward rounds them anyway, the bits as int16: half as
        many bytes to send. None where that is not worth it or not possible, or they are not finite.
        """
        copy = self._copy
        if copy is None or rows.nbytes <= _FEW_BYTES or rows.dtype != np.float32:
            return None
        buffer = self._buffer(rows.shape, torch.int16)
        return self._filled(buffer, lambda out, sending: copy.rounded(rows, out, how, sending))

    def _buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        pinned = self._copies is not None
        return torch.empty(shape, dtype=dtype, device="cpu", pin_memory=pinned)

    def _filled(self, buffer: Tensor, fill: Fill) -> StagedPixels | None:
        """The buffer on the device, or on its way; None where `fill` says no."""
        if self._copies is None:
            return StagedPixels(buffer) if fill(buffer.numpy(), None) else None
        with torch.cuda.stream(self._copies):
            pixels = self._sent(buffer, fill, self._copies)
        if pixels is None:
            return None
        return StagedPixels(pixels, self._copies, self._copies.record_event())

    def _sent(self, buffer: Tensor, fill: Fill, stream: torch.cuda.Stream) -> Tensor | None:
        send = _cuda_send() if self._alone and self._copy is not None else None
        if send is None:
            filled = fill(buffer.numpy(), None)
            return buffer.to(self._device, non_blocking=True) if filled else None
        pixels = torch.empty(buffer.shape, dtype=buffer.dtype, device=self._device)
        stream.query()  # makes the context current in this thread, for the driver's function
        sending = Sending.by(send, pixels.data_ptr(), stream.cuda_stream)
        if not fill(buffer.numpy(), sending):
            return None
        # The last slice by torch, which has to know that the buffer is still read from.
        rest = slice(sending.sent // buffer.element_size(), None)
        pixels.view(-1)[rest].copy_(buffer.view(-1)[rest], non_blocking=True)
        return pixels


@cache
def _cuda_send() -> ctypes.c_void_p | None:
    """The driver's function that queues a copy to a device."""
    try:
        function = ctypes.CDLL("libcuda.so.1").cuMemcpyHtoDAsync_v2
    except (OSError, AttributeError) as error:
        _LOG.info("rows are sent when all are there", extra={"reason": str(error)})
        return None
    return ctypes.cast(function, ctypes.c_void_p)


def _parallel_copy(*, alone: bool) -> ParallelCopy | None:
    """One thread copies 10 GB/s or less; float32 images want more of it."""
    try:
        return ParallelCopy(alone=alone)
    except NativeUnavailable as error:
        _LOG.warning("rows are copied by one thread", extra={"reason": str(error)})
        return None
