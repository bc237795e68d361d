"""A second stream for batches that come while the last one computes: both then share the device.

The graph of some ten images leaves multiprocessors idle at each kernel's end, and memory and tensor
cores while it scans; a second batch's kernels take them (docs/measurements/h200.md, In process).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from vim_embed.inference.cuda_graphs import GraphCache
from vim_embed.inference.device_copy import OnItsWay


class Beside:
    """The second stream, and graphs with memory of their own for it."""

    def __init__(self, graphs: GraphCache, stream: torch.cuda.Stream) -> None:
        self.graphs = graphs
        self.stream = stream
        self._last: dict[bool, OnItsWay] = {}  # by whether it went beside
        self._went = False  # the last of all

    def is_current(self) -> bool:
        """Whether the caller is on the second stream."""
        return torch.cuda.current_stream(self.stream.device) == self.stream

    def launched(self, batch: OnItsWay) -> None:
        """A batch is on its way from the current stream."""
        self._went = self.is_current()
        self._last[self._went] = batch

    def free(self) -> AbstractContextManager[object]:
        """The caller's stream, or this one where a batch still computes there."""
        own, other = self._is_busy(False), self._is_busy(True)
        goes = own and (not other or not self._went)
        return torch.cuda.stream(self.stream) if goes else nullcontext()

    def _is_busy(self, beside: bool) -> bool:
        last = self._last.get(beside)
        return last is not None and not last.is_here()
