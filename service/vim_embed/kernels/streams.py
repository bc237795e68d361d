"""CUDA streams that are nobody else's."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch

_Kind = tuple[int, int, bool]  # device, priority, whether it is captured
_FREE: dict[_Kind, list[int]] = defaultdict(list)  # the handles that nobody has any more


class _Lease:
    """Hands a stream's handle on when the stream, which has this as an attribute, is freed.

    A weak reference to the stream would not do: torch 2.10 to 2.12 frees its CUDA streams without
    a word to these, which then point into memory that is somebody else's (pytorch pull 183403).
    """

    def __init__(self, free: list[int], handle: int) -> None:
        self._free, self._handle = free, handle

    def __del__(self) -> None:
        self._free.append(self._handle)


def own_stream(
    device: torch.device, priority: int = 0, *, captured: bool = False
) -> torch.cuda.Stream:
    """A stream of the device that no other caller has, and that waits for no other by itself.

    torch deals 32 streams out in turns. So one of its streams may be another's too: two forwards
    that were captured on it share cuBLAS's workspace, and rows that are copied on it while a graph
    is captured become part of that. Without cuda-bindings it is one of those all the same, then of
    a priority that nothing else asks for if it is to be captured.
    priority: the lower, the sooner its kernels run. Not while the current stream is captured.
    """
    try:
        from cuda.bindings import driver
    except ImportError:
        dealt = min(priority, -1) if captured else priority
        return torch.cuda.Stream(device, dealt)  # type: ignore[no-untyped-call]
    with torch.cuda.device(device):
        kind = torch.cuda.current_device(), priority, captured
        handle = _freed(kind) or _new_stream(driver, priority)
        stream: torch.cuda.Stream = torch.cuda.ExternalStream(handle, kind[0])  # type: ignore[no-untyped-call]
    stream.lease = _Lease(_FREE[kind], handle)  # type: ignore[attr-defined]
    return stream


def _freed(kind: _Kind) -> int | None:
    """Handed on, never destroyed: torch's allocators may still ask such a stream for an event."""
    try:
        return _FREE[kind].pop()
    except IndexError:
        return None


def _new_stream(driver: Any, priority: int) -> int:
    torch.cuda.current_stream().query()  # makes the context current
    flags = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
    status, handle = driver.cuStreamCreateWithPriority(flags, priority)
    if int(status):
        raise RuntimeError(f"CUDA driver: {status} as a stream was made")
    return int(handle)
