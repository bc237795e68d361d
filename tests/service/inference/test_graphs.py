"""The bucket logic around CUDA graphs, with a capture that records and replays on the CPU."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from support.fake_graphs import RecordedCapture
from vim_embed.inference import cuda_graphs
from vim_embed.inference.cuda_graphs import (
    Captured,
    CaptureTurns,
    CudaCapture,
    GraphCache,
    buckets_up_to,
)
from vim_embed.kernels.constants import Constants
from vim_embed.types.model_info import EmbedOptions

MEAN = EmbedOptions()


def compute(pixels: Tensor, options: EmbedOptions) -> dict[str, Tensor]:
    weights = torch.linspace(1, 2, pixels[0].numel()).view(pixels.shape[1:])
    return {"embedding": (pixels.float() * weights).flatten(1).cumsum(1) * len(options.pooling)}


@pytest.mark.parametrize("rows", [1, 2, 7, 16, 24, 64, 100])
def test_buckets(rows: int) -> None:
    buckets = buckets_up_to(rows)
    assert buckets[0] == 1
    assert buckets[-1] == rows
    assert all(b < c <= 2 * b for b, c in pairwise(buckets))


@pytest.mark.parametrize("rows", [1, 3, 8, 9, 31])
def test_rows_are_padded_and_split(rows: int) -> None:
    cache = GraphCache(compute, [1, 4, 8], capture=RecordedCapture())
    pixels = torch.randint(0, 256, (rows, 3, 4, 4), dtype=torch.uint8)
    for _ in range(2):
        torch.testing.assert_close(cache(pixels, MEAN), compute(pixels, MEAN))


def test_one_graph_for_each_shape_and_option() -> None:
    capture = RecordedCapture()
    cache = GraphCache(compute, [4], capture=capture)
    small, large = torch.ones(3, 3, 4, 4), torch.ones(2, 3, 5, 4)
    for pixels in (small, large, small, small.half()):
        cache(pixels, MEAN)
    cache(small, EmbedOptions(pooling="cls"))
    assert capture.shapes == [(4, 3, 4, 4), (4, 3, 5, 4), (4, 3, 4, 4), (4, 3, 4, 4)]


def test_graphs_are_bounded() -> None:
    capture = RecordedCapture()
    cache = GraphCache(compute, [1, 2, 4], limit=2, capture=capture)
    for rows in (1, 2, 1, 4, 1, 2):
        cache(torch.ones(rows, 3, 4, 4), MEAN)
    assert len(cache) == 2
    assert [shape[0] for shape in capture.shapes] == [1, 2, 4, 2]


def test_a_bucket_of_one_s_own() -> None:
    capture = RecordedCapture()
    cache = GraphCache(compute, [1, 4], capture=capture)
    pixels = torch.rand(3, 3, 4, 4)
    torch.testing.assert_close(cache(pixels, MEAN, 7), compute(pixels, MEAN))
    assert capture.shapes == [(7, 3, 4, 4)]


class Graph:
    """A CUDA graph; what goes wrong in a capture makes its end fail as well."""

    def __init__(self) -> None:
        self.captures = False
        self.broken = False

    def capture_begin(self, pool: object, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local"
        self.captures = True

    def capture_end(self) -> None:
        self.captures = False
        if self.broken:
            raise RuntimeError("CUDA error: operation failed in the capture")

    def replay(self) -> None: ...


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch) -> Graph:
    made = Graph()
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(cuda_graphs, "own_stream", lambda *_, **__: stream)
    for name, value in {
        "graph_pool_handle": lambda: (0, 1),
        "device": lambda device: nullcontext(),
        "stream": lambda stream: nullcontext(),
        "current_stream": lambda: stream,
        "CUDAGraph": lambda: made,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return made


@pytest.mark.parametrize("broken", [False, True])
def test_what_went_wrong_in_a_capture_is_what_is_raised(graph: Graph, broken: bool) -> None:
    """A full device is no lost one, and two streams are given up only for the former."""

    def short(pixels: Tensor, options: EmbedOptions) -> dict[str, Tensor]:
        if graph.captures:
            graph.broken = broken
            raise torch.OutOfMemoryError("too much")
        return {}

    with pytest.raises(torch.OutOfMemoryError, match="too much"):
        CudaCapture()(short, torch.zeros(1), MEAN)
    assert not graph.captures
    graph.broken = False
    assert CudaCapture()(lambda *_: {}, torch.zeros(1), MEAN).outputs == {}


def test_a_graph_keeps_the_constants_that_it_reads(graph: Graph) -> None:
    constants = Constants[int](most_bytes=1)

    def reading(pixels: Tensor, options: EmbedOptions) -> dict[str, Tensor]:
        (table,) = constants.get(1, lambda: (torch.ones(3),))
        return {"embedding": pixels * table}

    captured = CudaCapture()(reading, torch.zeros(3), MEAN)
    constants.get(2, lambda: (torch.zeros(3),))
    assert len(constants) == 1
    assert [tensor.tolist() for tensor in captured.constants] == [[1, 1, 1]]


@pytest.fixture
def collector() -> Iterator[Callable[[], bool]]:
    before = gc.isenabled()
    gc.enable()
    yield gc.isenabled
    (gc.enable if before else gc.disable)()


def test_no_garbage_is_collected_in_a_turn(collector: Callable[[], bool]) -> None:
    turns = CaptureTurns()
    for on in (True, False):
        (gc.enable if on else gc.disable)()
        with turns.of("cuda:0"):
            assert not collector()
        assert collector() is on


def test_garbage_is_collected_again_after_a_capture_that_hangs(
    collector: Callable[[], bool],
) -> None:
    turns = CaptureTurns()
    hangs = turns.of("cuda:0")
    hangs.__enter__()
    turns.abandon("cuda:1")
    assert not collector(), "that is another's"
    turns.abandon("cuda:0")
    assert collector()
    with turns.of("cuda:0"):
        hangs.__exit__(None, None, None)
        assert not collector(), "the turn is no longer its own"
    assert collector()


class OnDevice:
    """A tensor that is told on which streams it is read."""

    def __init__(self) -> None:
        self.read_on: list[object] = []

    def record_stream(self, stream: object) -> None:
        self.read_on.append(stream)


class Stream:
    def wait_stream(self, other: object) -> None: ...


def test_a_graph_s_memory_is_kept_until_each_stream_has_read_it() -> None:
    made: list[Captured] = []

    def captured(*_: object) -> Captured:
        tensors = OnDevice(), OnDevice()
        made.append(Captured(lambda: None, cast(Any, tensors[0]), {}, (cast(Any, tensors[1]),)))
        return made[-1]

    cache = GraphCache(compute, [1], capture=captured)
    first, second = Stream(), Stream()
    for stream, size in ((first, 4), (first, 4), (second, 4), (second, 5)):
        cache._follow(cast(Any, stream))
        cache._graph(((1, 3, size, size), torch.float32, MEAN), torch.zeros(1))
    read = [[cast(Any, t).read_on for t in (one.pixels, *one.constants)] for one in made]
    assert read[0] == [[first, second], [first, second]]
    assert [set(streams) for streams in read[1]] == [{first, second}] * 2
