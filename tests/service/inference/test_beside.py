"""Which stream a batch goes on; the streams and batches themselves are stand-ins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import torch

from vim_embed.inference.beside import Beside
from vim_embed.inference.cuda_graphs import GraphCache
from vim_embed.inference.device_copy import OnItsWay


@dataclass(eq=False)
class Stream:
    device: str = "cuda:0"
    waited_for: list[Stream] = field(default_factory=list)

    def wait_stream(self, other: Stream) -> None:
        self.waited_for.append(other)


@dataclass
class Batch:
    here: bool = False

    def is_here(self) -> bool:
        return self.here


class Device:
    """The current stream, and batches launched wherever `Beside` says."""

    def __init__(self) -> None:
        self.own, self.second = Stream(), Stream()
        self.current = self.own
        self.beside = Beside(cast(GraphCache, None), cast(Any, self.second))

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def launch(self) -> tuple[Stream, Batch]:
        with self.beside.free():
            batch, went = Batch(), self.current
            self.beside.launched(cast(OnItsWay, batch))
        return went, batch


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: made.current)
    monkeypatch.setattr(torch.cuda, "stream", made.on)
    return made


def test_a_batch_alone_stays_on_its_caller_s_stream(device: Device) -> None:
    for _ in range(3):
        went, batch = device.launch()
        assert went is device.own
        batch.here = True


def test_the_next_goes_beside_the_one_that_computes(device: Device) -> None:
    _, first = device.launch()
    went, second = device.launch()
    assert went is device.second
    first.here = True
    went, third = device.launch()
    assert went is device.own, "as soon as that is free"
    second.here = third.here = True
    assert device.launch()[0] is device.own


def test_of_two_busy_streams_the_one_that_began_sooner(device: Device) -> None:
    went = [device.launch()[0] for _ in range(5)]
    assert went == [device.own, device.second, device.own, device.second, device.own]


def test_a_batch_that_is_done_at_once_is_not_waited_for(device: Device) -> None:
    assert OnItsWay({}).is_here()
    device.beside.launched(OnItsWay({}))
    assert device.launch()[0] is device.own


def test_graphs_of_one_cache_follow_each_other_across_streams() -> None:
    cache = GraphCache(lambda *_: {}, [4], capture=cast(Any, object()))
    first, second = Stream(), Stream()
    for stream in (first, first, second, second, first):
        cache._follow(cast(Any, stream))
    assert second.waited_for == [first]
    assert first.waited_for == [second]
