"""An array goes through a model in chunks: one is staged while the last one computes.

On CUDA a chunk may go on a second stream besides (beside.py), and its numbers are looked at on the
device, while others compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vim_embed.inference.beside import SideBySide
from vim_embed.inference.device_copy import OnItsWay
from vim_embed.inference.staging import HostStaging, StagedPixels
from vim_embed.types.pixels import PixelArray, as_wire, check_values, refuse_unless
from vim_embed.types.preprocessing import Rounding

Found = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Way:
    """How the chunks of an array go through a model.

    launch: queues the forward of rows on the device on its current stream. rounding: how float32
    pixels may be rounded on the host. graphs: with a second stream, maybe; beside: whether chunks
    may go there.
    """

    device: torch.device
    staging: HostStaging
    launch: Callable[[Tensor], OnItsWay]
    rounding: Rounding | None
    graphs: SideBySide | None
    beside: bool


@dataclass(frozen=True)
class _Chunk:
    """Rows from `first` on that are computed, and looked at meanwhile where that is on a device."""

    first: int
    found: OnItsWay
    finite: OnItsWay | None

    def wait(self) -> dict[str, Tensor]:
        """The results. Raises PixelError for rows that are not finite."""
        if self.finite is not None:
            refuse_unless(self.finite.wait()["finite"].numpy(), self.first)
        return self.found.wait()


def in_chunks(pixels: PixelArray, rows: int, way: Way) -> Found:
    """What comes out for pixels (B, C, H, W), in chunks of `rows`: named (B, D).

    pixels: in any order of memory or bytes; a chunk at a time is converted, so that a large file
    may be mapped.

    Raises PixelError for rows that are not finite.
    """
    found: Found = {}
    for first, chunk in _overlapped(pixels, rows, way):
        for name, part in chunk.items():
            if name not in found:
                found[name] = np.empty((len(pixels), *part.shape[1:]), np.float32)
            found[name][first : first + len(part)] = part.numpy()
    return found


def _overlapped(pixels: PixelArray, rows: int, way: Way) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """First row and results of each chunk, which the next one is launched before."""
    last = None
    # The device waits for the staging of the first chunk alone, so the remainder goes first.
    starts = [0, *range(len(pixels) % rows or rows, len(pixels), rows)]
    for first, end in pairwise([*starts, len(pixels)]):
        launched = _launched(as_wire(pixels[first:end]), first, rows, way)
        if last is not None:
            yield last.first, last.wait()
        last = launched
    if last is not None:
        yield last.first, last.wait()


def _launched(chunk: PixelArray, first: int, rows: int, way: Way) -> _Chunk:
    if way.device.type != "cuda":  # which looks faster, while others compute
        check_values(chunk, first)
    two = way.graphs is not None and way.graphs.beside is not None
    try:
        with _on(way.device), _stream_of(chunk, rows, way):
            return _staged_and_launched(chunk, first, way)
    except torch.OutOfMemoryError:
        if way.graphs is None or not two:
            raise
    way.graphs.give_up()  # as another thread may have done meanwhile
    with _on(way.device):
        return _staged_and_launched(chunk, first, way)


def _stream_of(chunk: PixelArray, rows: int, way: Way) -> AbstractContextManager[object]:
    """Where a chunk is staged and launched: on a stream beside the last one's, if both are large
    and that one still computes.
    """
    if way.graphs is None or not way.beside or 4 * len(chunk) <= 3 * rows:
        return nullcontext()
    return way.graphs.free()


def _staged_and_launched(chunk: PixelArray, first: int, way: Way) -> _Chunk:
    staged = _rounded(chunk, way) or way.staging([chunk])
    looked_at = way.device.type == "cuda" and staged.pixels.is_floating_point()
    finite = staged.finite() if looked_at else None
    return _Chunk(first, way.launch(staged.ready()), finite)


def _rounded(chunk: PixelArray, way: Way) -> StagedPixels | None:
    """float32 pixels of a half-precision forward, where that takes the same bytes rounded."""
    return None if way.rounding is None else way.staging.rounded(chunk, way.rounding)


def _on(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
