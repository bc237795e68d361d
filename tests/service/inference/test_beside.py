"""Which stream a batch goes on; the streams and batches themselves are stand-ins."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest
import torch

from support.fake_graphs import RecordedCapture
from support.fixtures_vim import load_fixture
from vim_embed import Embedder, load_model
from vim_embed.inference.beside import Beside, SideBySide
from vim_embed.inference.cuda_graphs import GraphCache
from vim_embed.inference.device_copy import OnItsWay
from vim_embed.inference.staging import HostStaging

MICRO = load_fixture("vim_micro").path


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


class NoStream:
    """The second stream on a CPU; the caller is on it or is not."""

    device = "cpu"
    synchronised = 0

    def synchronize(self) -> None:
        self.synchronised += 1


def graphs_of(model: Embedder) -> SideBySide:
    assert model._graphs is not None
    return model._graphs


class Short:
    """Graphs, or staging, for which the memory is too short while there is a second stream."""

    def __init__(self, model: Embedder, whole: Callable[..., Any]) -> None:
        self._model, self._whole = model, whole
        self.calls = 0

    def __call__(self, *given: Any) -> Any:
        self.calls += 1
        if graphs_of(self._model).beside is not None:
            raise torch.OutOfMemoryError
        return self._whole(*given)


def in_memory_for_one(monkeypatch: pytest.MonkeyPatch) -> tuple[Embedder, NoStream, Any]:
    """A model with a second stream that the caller is on, that stream, and a look at its graphs."""
    model = load_model("micro", MICRO, device="cpu")
    model.use_graphs(8, RecordedCapture())
    stream = NoStream()
    graphs = GraphCache(model.compute, [8], capture=RecordedCapture())
    graphs_of(model).beside = Beside(graphs, cast(Any, stream))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    return model, stream, weakref.ref(graphs)


def test_graphs_that_do_not_fit_beside_others_give_their_memory_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, stream, graphs = in_memory_for_one(monkeypatch)
    pixels = np.random.default_rng().integers(0, 256, (21, 3, 64, 64), dtype=np.uint8)

    def short(*_: object) -> None:
        raise torch.OutOfMemoryError

    graphs()._capture = short  # not by monkeypatch, which would hold them
    before = graphs_of(model).own
    held: list[bool] = []
    whole = GraphCache.__call__

    def watched(self: GraphCache, *given: Any) -> dict[str, torch.Tensor]:
        if self is before:
            held.append(graphs() is not None)
        return whole(self, *given)

    monkeypatch.setattr(GraphCache, "__call__", watched)
    found = model.embed(pixels)
    assert held[0] is False, "nothing holds the memory of the second ones by then"
    assert stream.synchronised == 1
    assert graphs_of(model).beside is None
    assert [r.message for r in caplog.records if "too short for two" in r.message]
    assert np.array_equal(found, load_model("micro", MICRO, device="cpu").embed(pixels))


def test_rows_that_do_not_fit_beside_others_are_staged_once_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, _, _ = in_memory_for_one(monkeypatch)
    pixels = np.random.default_rng().integers(0, 256, (21, 3, 64, 64), dtype=np.uint8)
    short = Short(model, HostStaging(torch.device("cpu")))
    monkeypatch.setattr(model, "_staging", short)
    found = model.embed(pixels)
    assert short.calls == 4, "three chunks, the first of them twice"
    assert np.array_equal(found, load_model("micro", MICRO, device="cpu").embed(pixels))


def test_whoever_comes_second_to_give_up_has_the_memory_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two threads run out of memory at once; one of them has given up by the other's error."""
    model, stream, _ = in_memory_for_one(monkeypatch)
    graphs, staging = graphs_of(model), HostStaging(torch.device("cpu"))

    def short(parts: Any) -> Any:
        if graphs.beside is None:
            return staging(parts)
        graphs.give_up()  # the other thread
        raise torch.OutOfMemoryError

    monkeypatch.setattr(model, "_staging", short)
    pixels = np.random.default_rng().integers(0, 256, (8, 3, 64, 64), dtype=np.uint8)
    found = model.embed(pixels)
    assert stream.synchronised == 1
    assert np.array_equal(found, load_model("micro", MICRO, device="cpu").embed(pixels))


def test_memory_that_is_too_short_for_one_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, _ = in_memory_for_one(monkeypatch)

    def short(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(model, "_staging", short)
    with pytest.raises(torch.OutOfMemoryError):
        model.embed(np.zeros((8, 3, 64, 64), np.uint8))
    assert graphs_of(model).beside is None
