"""Streams of one's own and their handles; torch's streams and the driver are stand-ins."""

from __future__ import annotations

import gc
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from vim_embed.kernels import streams
from vim_embed.kernels.streams import own_stream

DEVICE = torch.device("cuda:0")


class Stream:
    """No weak reference hears of its end, as with CUDA streams of torch 2.10 to 2.12."""

    __slots__ = ("__dict__", "cuda_stream")

    def __init__(self, handle: int, device: int) -> None:
        self.cuda_stream = handle


class Driver(SimpleNamespace):
    """Makes streams of ever new handles."""

    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)

    def __init__(self) -> None:
        super().__init__(made=[])

    def cuStreamCreateWithPriority(self, flags: int, priority: int) -> tuple[int, int]:
        self.made.append((flags, priority))
        return 0, 1000 + len(self.made)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    made, bindings = Driver(), ModuleType("cuda.bindings")
    bindings.driver = made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(query=bool))
    monkeypatch.setattr(torch.cuda, "ExternalStream", Stream)
    monkeypatch.setattr(streams, "_FREE", defaultdict(list))
    gc.disable()
    yield made
    gc.enable()


def handles(made: list[Any]) -> list[int]:
    return [stream.cuda_stream for stream in made]


def test_no_two_callers_have_the_same(driver: Driver) -> None:
    mine = [own_stream(DEVICE) for _ in range(70)]
    assert len(set(handles(mine))) == 70


def test_what_is_freed_is_handed_on(driver: Driver) -> None:
    mine = [own_stream(DEVICE) for _ in range(70)]
    gone = set(handles(mine[:35]))
    del mine[:35]
    again = [own_stream(DEVICE) for _ in range(36)]
    assert gone < set(handles(again))
    assert len(driver.made) == 71
    assert not set(handles(mine)) & set(handles(again))


def test_only_to_a_caller_who_wants_the_same_kind(driver: Driver) -> None:
    for priority, captured in ((0, False), (-1, False), (0, True)):
        for _ in range(3):
            own_stream(DEVICE, priority, captured=captured)
    assert driver.made == [(1, 0), (1, -1), (1, 0)]
