"""A second stream for batches that come while the last one computes: both then share the device.

The graph of some ten images leaves multiprocessors idle at each kernel's end, and memory and tensor
cores while it scans; a second batch's kernels take them (docs/measurements/h200.md, In process).
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from vim_embed.inference.cuda_graphs import GraphCache
from vim_embed.inference.device_copy import OnItsWay
from vim_embed.types.model_info import EmbedOptions

_LOG = logging.getLogger(__name__)


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


class SideBySide:
    """A model's graphs on its caller's stream, and `beside` until the memory is too short for it.

    Called as a GraphCache is, by one thread at a time.
    """

    def __init__(
        self,
        model: str,
        own: GraphCache,
        beside: Beside | None,
        launching: AbstractContextManager[object],
    ) -> None:
        """launching: the lock that whoever launches a batch has."""
        self.own = own
        self.beside = beside
        self._model = model
        self._launching = launching
        self._retired: torch.cuda.Stream | None = None  # that graphs may still follow

    def __call__(
        self, pixels: Tensor, options: EmbedOptions, bucket: int | None = None
    ) -> dict[str, Tensor]:
        """Through the graphs of the current stream."""
        beside = self.beside
        graphs = beside.graphs if beside is not None and beside.is_current() else self.own
        try:
            return graphs(pixels, options, bucket)
        except torch.OutOfMemoryError:
            if beside is None:
                raise
        del beside, graphs  # and with them their memory
        self.give_up()
        return self.own(pixels, options, bucket)

    def launched(self, batch: OnItsWay) -> None:
        """A batch is on its way from the current stream."""
        if self.beside is not None:
            self.beside.launched(batch)

    def free(self) -> AbstractContextManager[object]:
        """The stream for the next batch: the caller's, or the second one where that is free."""
        beside = self.beside  # another thread may give it up
        return nullcontext() if beside is None else beside.free()

    def give_up(self) -> None:
        """From now on batches go one behind the other, in the memory of one. From any thread."""
        with self._launching:
            if self.beside is None:
                return
            _LOG.warning(
                "batches go one behind the other: the memory is too short for two at once",
                extra={"model": self._model},
            )
            self._retired, self.beside = self.beside.stream, None
            self._retired.synchronize()
            torch.cuda.empty_cache()
