"""The queue: order, bounds, cancellation, isolation, fairness, draining."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vim_embed.batching.fairness import shares_of_batch
from vim_embed.batching.queue import BatchQueue
from vim_embed.batching.request import EmbedRequest
from vim_embed.batching.worker import Worker
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.engines.interface import Outputs, Staged
from vim_embed.errors import (
    DeadlineExceeded,
    Draining,
    InternalError,
    PayloadTooLarge,
    QueueFull,
)
from vim_embed.types.model_info import EMBEDDING, EmbedOptions
from vim_embed.types.pixels import PixelArray

MEAN = EmbedOptions()
POISON = 251


class GatedEngine(ArithmeticEngine):
    """Records its batches, waits at a gate, and fails on poisoned rows."""

    def __init__(self, names: Sequence[str] = ("arithmetic",)) -> None:
        super().__init__(names)
        self.gate = threading.Event()
        self.batches: list[tuple[str, int]] = []
        self.staged: list[tuple[str, int]] = []
        self.entered = threading.Semaphore(0)
        self.load()

    def stage(self, model: str, parts: Sequence[PixelArray], options: EmbedOptions) -> Staged:
        self.staged.append((model, sum(len(part) for part in parts)))
        return super().stage(model, parts, options)

    def run(self, staged: Staged) -> Outputs:
        self.entered.release()
        assert self.gate.wait(20)
        self.batches.append((self.staged[len(self.batches)][0], staged.rows))
        pixels = staged.pixels  # type: ignore[attr-defined]
        if (pixels[:, 0, 0, 0] == POISON).any():
            raise RuntimeError("poisoned row")
        return super().run(staged)


@contextmanager
def batching(engine: ArithmeticEngine, **limits: int) -> Iterator[BatchQueue]:
    engine.load()
    queue = BatchQueue(
        engine,
        queue_rows=limits.get("queue_rows", 10_000),
        queue_bytes=limits.get("queue_bytes", 10**9),
    )
    queue.start()
    yield queue
    if isinstance(engine, GatedEngine):
        engine.gate.set()
    assert queue.drain(20)
    assert not queue.up


def rows(count: int, seed: int = 0) -> PixelArray:
    random = np.random.default_rng(seed)
    return random.integers(0, 250, (count, 3, 8, 8), dtype=np.uint8)


def expected(pixels: PixelArray) -> PixelArray:
    engine = ArithmeticEngine()
    return engine.run(engine.stage("arithmetic", [pixels], MEAN))[EMBEDDING]


def result(request: EmbedRequest) -> PixelArray:
    return request.future.result(20).outputs[EMBEDDING]


def wait_until_busy(engine: GatedEngine, queue: BatchQueue) -> EmbedRequest:
    first = queue.submit(EmbedRequest(next(iter(engine.status())), rows(1, 99), MEAN))
    assert engine.entered.acquire(timeout=20)
    return first


def wait_until_staged(engine: GatedEngine, batches: int) -> None:
    end = time.monotonic() + 20
    while len(engine.staged) < batches:
        assert time.monotonic() < end
        time.sleep(0.01)


@given(st.lists(st.integers(0, 600), max_size=20), st.integers(1, 512))
def test_shares(wanted: list[int], budget: int) -> None:
    shares = shares_of_batch(wanted, budget)
    assert all(0 <= share <= want for share, want in zip(shares, wanted, strict=True))
    assert sum(shares) == min(budget, sum(wanted))  # no place is left empty
    small = [(share, want) for share, want in zip(shares, wanted, strict=True) if want <= budget]
    cut = next((i for i, (share, want) in enumerate(small) if share < want), len(small))
    assert all(share == 0 for share, _ in small[cut + 1 :])  # in order of arrival
    if any(want > budget for want in wanted):
        assert sum(share for share, _ in small) >= min(budget // 2, sum(want for _, want in small))


def test_large_and_small_requests() -> None:
    assert shares_of_batch([512, 1, 4], 32) == [27, 1, 4]
    assert shares_of_batch([512, 20, 20], 32) == [16, 16, 0]
    assert shares_of_batch([8, 8, 8], 8) == [8, 0, 0]
    assert shares_of_batch([5, 5], 8) == [5, 3]


def test_every_row_comes_back_to_its_own_request() -> None:
    with batching(ArithmeticEngine()) as queue:
        sizes = np.random.default_rng(3).integers(1, 40, 200)
        pixels = [rows(int(size), seed) for seed, size in enumerate(sizes)]
        requests = [queue.submit(EmbedRequest("arithmetic", part, MEAN)) for part in pixels]
        for request, part in zip(requests, pixels, strict=True):
            np.testing.assert_array_equal(result(request), expected(part))


def test_rows_that_wait_share_the_next_batch() -> None:
    engine = GatedEngine()
    with batching(engine) as queue:
        first = wait_until_busy(engine, queue)
        later = [queue.submit(EmbedRequest("arithmetic", rows(2, seed), MEAN)) for seed in range(5)]
        engine.gate.set()
        for request in [first, *later]:
            result(request)
    assert engine.batches == [("arithmetic", 1), ("arithmetic", 10)]


def test_a_full_batch_is_staged_while_another_runs() -> None:
    engine = GatedEngine()
    with batching(engine) as queue:
        wait_until_busy(engine, queue)
        queue.submit(EmbedRequest("arithmetic", rows(20), MEAN))
        wait_until_staged(engine, 2)
        assert engine.staged == [("arithmetic", 1), ("arithmetic", 16)]


def test_models_take_turns() -> None:
    engine = GatedEngine(["a", "b"])
    with batching(engine) as queue:
        wait_until_busy(engine, queue)
        requests = [
            queue.submit(EmbedRequest("a", rows(48), MEAN)),
            queue.submit(EmbedRequest("b", rows(48), MEAN)),
        ]
        engine.gate.set()
        for request in requests:
            result(request)
    order = "".join(model for model, _ in engine.batches[1:])
    assert "aaa" not in order
    assert "bbb" not in order
    assert sum(count for _, count in engine.batches[1:]) == 96


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_small_request_is_not_stuck_behind_large_ones(dtype: str) -> None:
    """It is done with the second batch after those that run and are staged when it arrives."""
    engine, done = GatedEngine(), []
    with batching(engine) as queue:
        wait_until_busy(engine, queue)
        large = [
            queue.submit(EmbedRequest("arithmetic", rows(512, seed), MEAN)) for seed in range(6)
        ]
        wait_until_staged(engine, 2)
        small = queue.submit(EmbedRequest("arithmetic", rows(3, 7).astype(dtype), MEAN))
        for request in (small, *large):
            request.future.add_done_callback(lambda _: done.append(len(engine.batches)))
        engine.gate.set()
        np.testing.assert_array_equal(result(small), expected(rows(3, 7).astype(dtype)))
        for seed, request in enumerate(large):
            np.testing.assert_array_equal(result(request), expected(rows(512, seed)))
    assert len(done) == 7  # after the drain: a result wakes who waits before it calls anyone
    assert done[0] <= 4
    assert min(done[1:]) >= 512 // engine.batch_rows("arithmetic", (3, 8, 8))
    assert len(engine.batches) >= 6 * 512 // engine.batch_rows("arithmetic", (3, 8, 8))


def test_options_and_shapes_do_not_mix() -> None:
    engine = GatedEngine()
    with batching(engine) as queue:
        wait_until_busy(engine, queue)
        cls = queue.submit(EmbedRequest("arithmetic", rows(1), EmbedOptions(pooling="cls")))
        mean = queue.submit(EmbedRequest("arithmetic", rows(1), MEAN))
        wide = queue.submit(EmbedRequest("arithmetic", np.zeros((1, 3, 8, 9), np.uint8), MEAN))
        engine.gate.set()
        assert result(cls)[0, -1] == len("cls")
        assert result(mean)[0, -1] == len("mean")
        assert result(wide).shape == (1, 8)


def test_a_full_queue_refuses_at_once() -> None:
    engine = GatedEngine()
    with batching(engine, queue_rows=10) as queue:
        wait_until_busy(engine, queue)
        queue.submit(EmbedRequest("arithmetic", rows(8), MEAN))
        with pytest.raises(QueueFull) as refusal:
            queue.submit(EmbedRequest("arithmetic", rows(3), MEAN))
        assert 1 <= (refusal.value.retry_after or 0) <= 60
        queue.submit(EmbedRequest("arithmetic", rows(2), MEAN))
        with pytest.raises(PayloadTooLarge, match="fewer rows"):
            queue.submit(EmbedRequest("arithmetic", rows(11), MEAN))


def test_a_queue_full_of_bytes_refuses() -> None:
    engine = GatedEngine()
    with batching(engine, queue_bytes=rows(4).nbytes) as queue:
        wait_until_busy(engine, queue)
        queue.submit(EmbedRequest("arithmetic", rows(3), MEAN))
        with pytest.raises(QueueFull):
            queue.submit(EmbedRequest("arithmetic", rows(2), MEAN))


def test_one_client_does_not_fill_the_whole_queue() -> None:
    engine = GatedEngine()
    engine.load()
    queue = BatchQueue(engine, queue_rows=12, queue_bytes=10**9, client_share=0.5)
    queue.start()
    wait_until_busy(engine, queue)

    def submit(client: str, count: int) -> EmbedRequest:
        return queue.submit(EmbedRequest("arithmetic", rows(count), MEAN, client=client))

    requests = [submit("greedy", 8)]  # more than its share, but alone
    with pytest.raises(QueueFull, match="share of the queue"):
        submit("greedy", 1)
    requests += [submit("modest", 2), submit("", 1), submit("", 1)]
    with pytest.raises(QueueFull, match="12 rows are waiting"):
        submit("modest", 1)
    engine.gate.set()
    for request in requests:
        result(request)
    assert queue.drain(20)


def test_retry_after_follows_the_measured_rate() -> None:
    class Slow(ArithmeticEngine):
        """16 rows in 0.4 s."""

        def run(self, staged: Staged) -> Outputs:
            time.sleep(0.4)
            return super().run(staged)

    engine = Slow()
    with batching(engine, queue_rows=320) as queue:
        result(queue.submit(EmbedRequest("arithmetic", rows(16), MEAN)))
        queue.submit(EmbedRequest("arithmetic", rows(320), MEAN))
        with pytest.raises(QueueFull) as refusal:
            queue.submit(EmbedRequest("arithmetic", rows(320), MEAN))
        assert 3 <= (refusal.value.retry_after or 0) <= 6  # 160 rows at 40 a second, less some


def test_cancelled_rows_never_reach_the_engine() -> None:
    engine = GatedEngine()
    with batching(engine, queue_rows=10) as queue:
        wait_until_busy(engine, queue)
        gone = queue.submit(EmbedRequest("arithmetic", rows(9), MEAN))
        gone.cancel()
        assert queue.waiting_rows == 0
        kept = queue.submit(EmbedRequest("arithmetic", rows(10, 5), MEAN))
        engine.gate.set()
        np.testing.assert_array_equal(result(kept), expected(rows(10, 5)))
        with pytest.raises(CancelledError):
            gone.future.result(0)
    assert engine.batches == [("arithmetic", 1), ("arithmetic", 10)]


def test_rows_past_their_deadline_never_reach_the_engine() -> None:
    engine = GatedEngine()
    with batching(engine) as queue:
        wait_until_busy(engine, queue)
        late = queue.submit(EmbedRequest("arithmetic", rows(4), MEAN, deadline=time.monotonic()))
        kept = queue.submit(
            EmbedRequest("arithmetic", rows(2), MEAN, deadline=time.monotonic() + 60)
        )
        engine.gate.set()
        result(kept)
        with pytest.raises(DeadlineExceeded):
            result(late)
    assert engine.batches == [("arithmetic", 1), ("arithmetic", 2)]


def test_one_failing_request_hurts_only_itself() -> None:
    engine = GatedEngine()
    with batching(engine) as queue:
        first = wait_until_busy(engine, queue)
        poisoned = rows(2, 1)
        poisoned[1, 0, 0, 0] = POISON
        bad = queue.submit(EmbedRequest("arithmetic", poisoned, MEAN))
        good = [queue.submit(EmbedRequest("arithmetic", rows(2, seed), MEAN)) for seed in (2, 3)]
        engine.gate.set()
        result(first)
        with pytest.raises(InternalError, match="RuntimeError"):
            result(bad)
        for seed, request in zip((2, 3), good, strict=True):
            np.testing.assert_array_equal(result(request), expected(rows(2, seed)))
        assert queue.up
        result(queue.submit(EmbedRequest("arithmetic", rows(1), MEAN)))


@pytest.mark.parametrize("seconds", [0.0, 0.05])
@pytest.mark.parametrize("fault", ["short", "nan", "raise"])
def test_an_engine_that_answers_nonsense(
    fault: str, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that come while its worker is about to fail are none of that failure's."""
    fail = Worker.fail

    def late(*arguments: Any) -> None:
        time.sleep(seconds)
        fail(*arguments)

    monkeypatch.setattr(Worker, "fail", late)

    def run(self: ArithmeticEngine, staged: Staged) -> Outputs:
        if fault == "raise":
            raise MemoryError
        count = staged.rows - (fault == "short")
        return {EMBEDDING: np.full((count, 8), np.nan, np.float32)}

    engine = ArithmeticEngine()
    with batching(engine) as queue:
        with monkeypatch.context() as patch:
            patch.setattr(ArithmeticEngine, "run", run)
            with pytest.raises(InternalError):
                result(queue.submit(EmbedRequest("arithmetic", rows(20), MEAN)))
        np.testing.assert_array_equal(
            result(queue.submit(EmbedRequest("arithmetic", rows(20), MEAN))), expected(rows(20))
        )


def test_draining_finishes_what_is_queued_and_refuses_the_rest() -> None:
    engine = GatedEngine()
    queue = BatchQueue(engine, queue_rows=100, queue_bytes=10**9)
    queue.start()
    wait_until_busy(engine, queue)
    queued = queue.submit(EmbedRequest("arithmetic", rows(40), MEAN))
    queue.stop_accepting()
    with pytest.raises(Draining):
        queue.submit(EmbedRequest("arithmetic", rows(1), MEAN))
    engine.gate.set()
    assert queue.drain(20)
    np.testing.assert_array_equal(result(queued), expected(rows(40)))
    assert not queue.up


def test_draining_gives_up_after_its_timeout() -> None:
    engine = GatedEngine()
    queue = BatchQueue(engine, queue_rows=100, queue_bytes=10**9)
    queue.start()
    wait_until_busy(engine, queue)
    staged = queue.submit(EmbedRequest("arithmetic", rows(16), MEAN))
    wait_until_staged(engine, 2)
    queued = queue.submit(EmbedRequest("arithmetic", rows(4), MEAN))
    threading.Timer(0.5, engine.gate.set).start()
    assert not queue.drain(0.1)
    for request in (staged, queued):
        with pytest.raises(Draining):
            result(request)
