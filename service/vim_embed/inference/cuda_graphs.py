"""CUDA graphs of a model's forward, one per bucket of rows.

Launching a few hundred kernels costs more than small batches compute; a captured graph launches
them at once. Rows are padded to the next bucket: rows never meet in a forward, so the padding
(whatever the buffer held before) changes nothing. The graphs of a cache share one memory pool, so
one runs behind the other, on whatever streams they are asked for; they are dropped, least recently
used first, above a limit. Two caches share nothing, and their graphs may run side by side.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from vim_embed.inference.short_memory import one_short_memory
from vim_embed.kernels.constants import handed_out
from vim_embed.kernels.streams import own_stream
from vim_embed.types.model_info import EmbedOptions

_LOG = logging.getLogger(__name__)
_WARM_UPS = 2

Compute = Callable[[Tensor, EmbedOptions], dict[str, Tensor]]
Key = tuple[tuple[int, ...], torch.dtype, EmbedOptions]


@dataclass(frozen=True)
class Captured:
    """A graph, its input buffer, the outputs that a replay fills, the constants that it reads."""

    replay: Callable[[], None]
    pixels: Tensor
    outputs: dict[str, Tensor]
    constants: Sequence[Tensor] = ()

    def read_on(self, stream: torch.cuda.Stream) -> None:
        """It is replayed there: whoever drops it need not wait for that stream."""
        for tensor in (self.pixels, *self.constants):
            tensor.record_stream(stream)


Capture = Callable[[Compute, Tensor, EmbedOptions], Captured]


def buckets_up_to(rows: int) -> list[int]:
    """1, 2, 4, 8, 16, then steps of half a power of two (24, 32, 48, …), ending at `rows`."""
    sizes = {rows}
    size = 1
    while size < rows:
        sizes.add(size)
        if size >= 16 and size * 3 // 2 < rows:
            sizes.add(size * 3 // 2)
        size *= 2
    return sorted(sizes)


class GraphCache:
    """Runs `compute` through captured graphs. Not for several threads at once."""

    def __init__(
        self,
        compute: Compute,
        buckets: Sequence[int],
        *,
        limit: int = 32,
        capture: Capture | None = None,
    ) -> None:
        self.buckets = sorted(buckets)
        self._compute = compute
        self._limit = limit
        self._graphs: OrderedDict[Key, Captured] = OrderedDict()
        self._capture = capture or CudaCapture()
        self._last: torch.cuda.Stream | None = None  # that a graph was launched on
        self._streams: set[torch.cuda.Stream] = set()  # all of them

    def __len__(self) -> int:
        return len(self._graphs)

    def __call__(
        self, pixels: Tensor, options: EmbedOptions, bucket: int | None = None
    ) -> dict[str, Tensor]:
        """`compute(pixels, options)`; the outputs are valid until the next call.

        bucket: rows of the graph, at least those of `pixels`, instead of the next bucket.
        """
        rows = len(pixels)
        if bucket is None:
            if rows > self.buckets[-1]:
                return self._in_parts(pixels, options)
            bucket = next(size for size in self.buckets if size >= rows)
        if pixels.is_cuda:
            self._follow(torch.cuda.current_stream(pixels.device))
        graph = self._graph(((bucket, *pixels.shape[1:]), pixels.dtype, options), pixels)
        graph.pixels[:rows].copy_(pixels)
        graph.replay()
        return {name: output[:rows] for name, output in graph.outputs.items()}

    def _follow(self, stream: torch.cuda.Stream) -> None:
        """`stream` waits for what was launched before, and what its caller then queued there."""
        if stream == self._last:
            return
        if self._last is not None:
            stream.wait_stream(self._last)
        self._last = stream
        if stream not in self._streams:
            self._streams.add(stream)
            for graph in self._graphs.values():
                graph.read_on(stream)

    def _in_parts(self, pixels: Tensor, options: EmbedOptions) -> dict[str, Tensor]:
        parts = []
        for part in torch.split(pixels, self.buckets[-1]):
            parts.append({name: out.clone() for name, out in self(part, options).items()})
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _graph(self, key: Key, like: Tensor) -> Captured:
        graph = self._graphs.pop(key, None)
        if graph is None:
            shape, dtype, options = key
            static = torch.zeros(shape, dtype=dtype, device=like.device)
            graph = self._capture(self._compute, static, options)
            for stream in self._streams:
                graph.read_on(stream)
            _LOG.debug("captured a graph", extra={"shape": shape, "dtype": str(dtype)})
        self._graphs[key] = graph
        while len(self._graphs) > self._limit:
            self._graphs.popitem(last=False)
        return graph


class CaptureTurns:
    """One capture at a time in this process: the devices share torch's allocator. No cyclic garbage
    is freed meanwhile: an old model's graphs may be in it, which breaks a capture.

    A lock would not do: a capture that hangs would keep it for ever, on every device.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holder: tuple[str, object] | None = None
        self._collects = True  # whether garbage was collected before this turn

    @contextmanager
    def of(self, device: str) -> Iterator[None]:
        """Wait for this device's turn, and have it."""
        mine = (device, object())
        with self._changed:
            self._changed.wait_for(lambda: self._holder is None)
            self._holder = mine
            self._collects = gc.isenabled()
            gc.disable()
        try:
            yield
        finally:
            with self._changed:
                if self._holder is mine:
                    self._end()

    def abandon(self, device: str) -> None:
        """A capture of this device that is under way will never end: others need not wait."""
        with self._changed:
            if self._holder is not None and self._holder[0] == device:
                self._end()

    def _end(self) -> None:
        self._holder = None
        if self._collects:
            gc.enable()
        self._changed.notify()


CAPTURE_TURNS = CaptureTurns()


class CudaCapture:
    """Captures on a stream of its own, all graphs in one memory pool."""

    def __init__(self, priority: int = 0) -> None:
        """priority: of the graphs' kernels; the lower, the sooner they run."""
        self._priority = priority
        self._pool = torch.cuda.graph_pool_handle()
        self._stream: torch.cuda.Stream | None = None

    def __call__(self, compute: Compute, pixels: Tensor, options: EmbedOptions) -> Captured:
        turn = CAPTURE_TURNS.of(str(pixels.device))
        with torch.cuda.device(pixels.device), turn, one_short_memory():
            side = self._stream = self._stream or own_stream(
                pixels.device, self._priority, captured=True
            )
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UPS):
                    compute(pixels, options)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Not with torch.cuda.graph: that waits until the device is idle and gives all cached
            # memory back before each capture, which other models' batches would feel. Other threads
            # stage and launch batches meanwhile, which a global capture would forbid.
            with torch.cuda.stream(side), handed_out() as constants:
                graph.capture_begin(self._pool, capture_error_mode="thread_local")
                try:
                    outputs = compute(pixels, options)
                except BaseException:
                    with suppress(RuntimeError):  # half a graph, which would hide what went wrong
                        graph.capture_end()
                    raise
                graph.capture_end()
        return Captured(graph.replay, pixels, outputs, constants)
