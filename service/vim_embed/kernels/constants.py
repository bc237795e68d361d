"""Tensors that are computed once and read by many forwards, such as position tables.

The last used are kept up to a size, since their keys (sizes of images, normalisations) are the
users'. A CUDA graph reads what was handed out while it was captured, so whoever captures keeps
that beside the graph: see `handed_out`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, TypeVar

import torch
from torch import Tensor

K = TypeVar("K", bound=Hashable)
_MOST_BYTES = 64 * 2**20  # the tables of some hundred sizes of images
_BYTES_BESIDE = 4096  # what a tensor takes besides its numbers, at most
_HANDED_OUT: ContextVar[list[Tensor] | None] = ContextVar("handed_out", default=None)


@contextmanager
def handed_out() -> Iterator[list[Tensor]]:
    """A list of what any `Constants` hand out in this thread meanwhile."""
    tensors: list[Tensor] = []
    token = _HANDED_OUT.set(tensors)
    try:
        yield tensors
    finally:
        _HANDED_OUT.reset(token)


class Constants(Generic[K]):
    """Groups of tensors by key, each made at first use. Not for several threads at once."""

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._known: OrderedDict[K, tuple[Tensor, ...]] = OrderedDict()
        self._bytes = 0  # of all that are known

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: K, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """The tensors of `key`, for the current stream. make: makes them where they are not known;
        the same ones for a key, whenever it is called.
        """
        known = self._known.pop(key, None)
        found = make() if known is None else known
        capturing = found[0].is_cuda and torch.cuda.is_current_stream_capturing()
        if known is not None:
            self._known[key] = known
        elif not capturing:  # made in a capture, they are filled by its replays
            self._keep(key, found)
        if (handed := _HANDED_OUT.get()) is not None:
            handed.extend(found)
        if not capturing:
            _read_here(found)
        return found

    def _keep(self, key: K, tensors: tuple[Tensor, ...]) -> None:
        """And forget the least recently used above the size."""
        self._known[key] = tensors
        self._bytes += _bytes(tensors)
        while len(self._known) > 1 and self._bytes > self._most_bytes:
            _, forgotten = self._known.popitem(last=False)
            self._bytes -= _bytes(forgotten)


def _bytes(tensors: tuple[Tensor, ...]) -> int:
    return sum(tensor.nbytes + _BYTES_BESIDE for tensor in tensors)


def _read_here(tensors: tuple[Tensor, ...]) -> None:
    """They may be forgotten while the current stream still reads them."""
    for tensor in tensors:
        if tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))
