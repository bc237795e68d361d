"""Workers that fail: what they held is answered at once, they begin anew, the rest goes on."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from vim_embed.batching.queue import BatchQueue
from vim_embed.batching.request import EmbedRequest, Slice
from vim_embed.batching.supervisor import RestartPolicy
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.engines.interface import EngineFailed, Outputs, Staged
from vim_embed.engines.torch_engine import EngineOptions, TorchEngine
from vim_embed.errors import InternalError, NotReady, WorkerFailed
from vim_embed.types.model_info import EMBEDDING, EmbedOptions
from vim_embed.types.pixels import PixelArray

MEAN = EmbedOptions()
QUICK = RestartPolicy(forward=20.0, failures=3, first_pause=0.01, longest_pause=0.02)
HASTY = replace(QUICK, forward=0.3)  # for forwards that hang; elsewhere a busy machine is no hang


class EndOfThread(BaseException):
    """Nothing catches it."""


class BreakableEngine(ArithmeticEngine):
    """Does what `fault` says in `run`, and counts its restarts."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(device=device)
        self.fault: Callable[[], None] | None = None
        self.on_restart: Callable[[], None] | None = None
        self.restarts = 0
        self.offset = 0.0
        self.rows = 0
        self.load()

    def restart(self) -> None:
        self.restarts += 1
        if self.on_restart is not None:
            self.on_restart()

    def run(self, staged: Staged) -> Outputs:
        if self.fault is not None:
            self.fault()
        self.rows += staged.rows
        return {name: array + self.offset for name, array in super().run(staged).items()}


@contextmanager
def batching(
    *engines: BreakableEngine,
    policy: RestartPolicy = QUICK,
    on_lost: Callable[[], None] = lambda: None,
) -> Iterator[BatchQueue]:
    queue = BatchQueue(
        engines, queue_rows=10_000, queue_bytes=10**9, policy=policy, on_lost=on_lost
    )
    queue.start()
    yield queue
    for engine in engines:
        engine.fault = None
    queue.drain(20)
    assert not queue.up


def rows(count: int, seed: int = 0) -> PixelArray:
    return np.random.default_rng(seed).integers(0, 250, (count, 3, 8, 8), dtype=np.uint8)


def submit(queue: BatchQueue, count: int = 3, seed: int = 0) -> EmbedRequest:
    return queue.submit(EmbedRequest("arithmetic", rows(count, seed), MEAN))


def assert_right(request: EmbedRequest) -> None:
    engine = ArithmeticEngine()
    expected = engine.run(engine.stage("arithmetic", [request.pixels], MEAN))[EMBEDDING]
    np.testing.assert_array_equal(request.future.result(20).outputs[EMBEDDING], expected)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def once(fail: Callable[[], None], engine: BreakableEngine) -> Callable[[], None]:
    def fault() -> None:
        engine.fault = None
        fail()

    return fault


def raising(error: BaseException) -> Callable[[], None]:
    def fault() -> None:
        raise error

    return fault


def wait_for(event: threading.Event) -> None:
    assert event.wait(20)


class Steps(threading.Semaphore):
    """A fault that waits for one `release` each time."""

    def __init__(self) -> None:
        super().__init__(0)
        self.arrived = 0
        self.fails: Exception | None = None

    def __call__(self) -> None:
        self.arrived += 1
        assert self.acquire(timeout=20)
        if self.fails is not None:
            raise self.fails


def test_a_failure_that_the_golden_sample_does_not_share_is_the_request_s() -> None:
    engine = BreakableEngine()
    with batching(engine) as queue:
        engine.fault = once(raising(RuntimeError("these rows")), engine)
        with pytest.raises(InternalError):
            submit(queue).future.result(20)
        assert_right(submit(queue))
        assert engine.restarts == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("error", [EngineFailed("gone"), EndOfThread()])
def test_a_worker_that_fails_begins_anew(error: BaseException) -> None:
    engine = BreakableEngine()
    with batching(engine) as queue:
        engine.fault = once(raising(error), engine)
        with pytest.raises(WorkerFailed) as refusal:
            submit(queue).future.result(20)
        assert refusal.value.retryable
        assert refusal.value.retry_after == 1
        assert_right(submit(queue))
        assert engine.restarts == 1
        assert queue.problems == {}


def test_an_engine_that_fails_on_its_golden_sample_too_begins_anew() -> None:
    engine = BreakableEngine()
    with batching(engine) as queue:
        engine.fault = raising(RuntimeError("always"))
        engine.on_restart = lambda: setattr(engine, "fault", None)
        with pytest.raises(InternalError):
            submit(queue).future.result(20)
        until(lambda: engine.restarts == 1)
        assert_right(submit(queue))


def test_a_forward_that_hangs_is_left_behind() -> None:
    engine, released = BreakableEngine(), threading.Event()
    with batching(engine, policy=HASTY) as queue:
        engine.fault = once(lambda: wait_for(released), engine)
        stuck = submit(queue, seed=1)
        until(lambda: engine.fault is None)
        waiting = submit(queue, seed=2)
        with pytest.raises(WorkerFailed, match=r"no end of a forward within 0\.3 s"):
            stuck.future.result(20)
        assert_right(waiting)  # what had waited in the queue was not lost
        released.set()
        assert_right(submit(queue, seed=3))


def busy_until(released: threading.Event) -> None:
    while not released.is_set():
        sum(range(10_000))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a thread's processor time")
@pytest.mark.parametrize(("device", "hangs"), [("cpu", False), ("cuda:0", True)])
def test_who_computes_hangs_on_a_gpu_alone(device: str, hangs: bool) -> None:
    """A busy machine makes a CPU slow; a thread that waits for a GPU may spin for ever."""
    engine, released = BreakableEngine(device=device), threading.Event()
    with batching(engine, policy=HASTY) as queue:
        engine.fault = once(lambda: busy_until(released), engine)
        late = submit(queue, seed=1)
        if hangs:
            with pytest.raises(WorkerFailed, match=r"no end of a forward within 0\.3 s"):
                late.future.result(60)
        else:
            until(lambda: queue.workers[0].state.longest > 3 * HASTY.forward)
        released.set()
        if not hangs:
            assert_right(late)
        until(lambda: engine.restarts == hangs)
        assert_right(submit(queue, seed=3))


def test_what_a_late_thread_still_delivers_reaches_nobody() -> None:
    engine, released = BreakableEngine(), threading.Event()
    with batching(engine, policy=HASTY) as queue:
        engine.fault = once(lambda: wait_for(released), engine)
        large = submit(queue, 40)  # in slices of 16 rows
        with pytest.raises(WorkerFailed):
            large.future.result(20)
        released.set()
        until(lambda: engine.rows >= 16)
        assert_right(submit(queue, 40, seed=4))
        assert large.done == 0


def test_a_worker_that_fails_again_and_again_is_lost() -> None:
    engine, lost = BreakableEngine(), threading.Event()
    with batching(engine, on_lost=lost.set) as queue:
        engine.fault = raising(EngineFailed("gone"))
        engine.on_restart = raising(RuntimeError("does not load"))
        with pytest.raises(WorkerFailed):
            submit(queue).future.result(20)
        late = submit(queue)
        assert lost.wait(20)
        assert engine.restarts == QUICK.failures
        with pytest.raises(NotReady, match="4 times in a row"):
            late.future.result(20)
        assert not queue.up
        assert "does not load" in queue.problems["cpu"]


def test_an_engine_that_cannot_recover_is_lost_at_once() -> None:
    engine, lost = BreakableEngine(), threading.Event()
    with batching(engine, on_lost=lost.set) as queue:
        engine.fault = raising(EngineFailed("gone"))
        engine.on_restart = raising(EngineFailed("for good"))
        submit(queue)
        assert lost.wait(20)
        assert engine.restarts == 1
        assert "for good" in queue.problems["cpu"]


def test_success_forgets_earlier_failures() -> None:
    engine = BreakableEngine()
    with batching(engine) as queue:
        for _ in range(2 * QUICK.failures):
            engine.fault = once(raising(EngineFailed("gone")), engine)
            with pytest.raises(WorkerFailed):
                submit(queue).future.result(20)
            assert_right(submit(queue))


def test_a_model_whose_golden_sample_changed_runs_no_more() -> None:
    engine = BreakableEngine()
    with batching(engine) as queue:
        (report,) = (future.result(20) for future in queue.check("arithmetic"))
        assert report.ok
        assert report.same_bytes
        engine.offset = 0.5
        (report,) = (future.result(20) for future in queue.check("arithmetic"))
        assert not report.ok
        assert "self-check failed" in (queue.why_unavailable("arithmetic") or "")
        with pytest.raises(NotReady, match="self-check failed"):
            submit(queue).future.result(20)
        engine.offset = 0.0
        (report,) = (future.result(20) for future in queue.check("arithmetic"))
        assert report.ok
        assert queue.why_unavailable("arithmetic") is None
        assert_right(submit(queue))


def test_a_check_that_raises_restarts_the_worker() -> None:
    engine = BreakableEngine()
    with batching(engine) as queue:
        engine.fault = once(raising(RuntimeError("odd")), engine)
        (future,) = queue.check("arithmetic")
        with pytest.raises(WorkerFailed, match="RuntimeError on the golden sample: odd"):
            future.result(20)
        until(lambda: engine.restarts == 1)
        assert_right(submit(queue))


def test_a_check_that_hangs_is_answered_with_its_worker() -> None:
    engine, released = BreakableEngine(), threading.Event()
    with batching(engine, policy=HASTY) as queue:
        engine.fault = once(lambda: wait_for(released), engine)
        engine.offset = 0.5  # so that the late comparison finds a difference
        (future,) = queue.check("arithmetic")
        with pytest.raises(WorkerFailed, match=r"no end of a forward within 0\.3 s"):
            future.result(20)
        until(lambda: engine.restarts == 1)
        released.set()
        until(lambda: engine.rows == 1)
        engine.offset = 0.0
        assert_right(submit(queue))
        assert queue.why_unavailable("arithmetic") is None


def test_a_check_that_nobody_waits_for_does_not_keep_a_worker_from_its_restart() -> None:
    engine, released = BreakableEngine(), threading.Event()
    with batching(engine, policy=HASTY) as queue:
        engine.fault = once(lambda: wait_for(released), engine)
        submit(queue)
        until(lambda: engine.fault is None)
        (future,) = queue.check("arithmetic")  # behind the forward that hangs
        assert future.cancel()
        until(lambda: engine.restarts == 1)
        released.set()
        assert_right(submit(queue))


def test_a_batch_that_was_only_staged_outlives_its_worker() -> None:
    """Its rows had no part in the failure: they go back, and are first in line."""
    engine, step = BreakableEngine(), Steps()
    order: list[EmbedRequest] = []
    with batching(engine) as queue:
        engine.fault = step
        guilty = submit(queue, 16, seed=0)
        until(lambda: step.arrived == 1)
        staged, behind = submit(queue, 16, seed=1), submit(queue, 16, seed=2)
        until(lambda: bool(queue.workers[0].state.in_phase("staged")))
        for request in (staged, behind):
            request.future.add_done_callback(lambda _, request=request: order.append(request))  # type: ignore[misc]
        engine.on_restart = lambda: setattr(engine, "fault", None)
        step.fails = EngineFailed("gone")
        step.release()
        with pytest.raises(WorkerFailed):
            guilty.future.result(20)
        for request in (staged, behind):
            assert_right(request)
        assert engine.restarts == 1
        assert engine.rows == 32  # each of them once
        until(lambda: len(order) == 2)  # a result wakes who waits for it before it calls anyone
        assert order == [staged, behind]


def test_rows_given_back_go_to_another_device() -> None:
    first, second = pair()
    step = Steps()
    with batching(first, second) as queue:
        first.fault = second.fault = step
        guilty = [submit(queue, 16, seed) for seed in range(2)]
        until(lambda: step.arrived == 2)
        staged = [submit(queue, 16, seed) for seed in (2, 3)]
        until(lambda: all(worker.state.in_phase("staged") for worker in queue.workers))
        first.on_restart = raising(EngineFailed("for good"))
        queue.workers[0].fail(queue.workers[0].state, "exception", "gone")
        second.fault = None
        step.release()
        step.release()
        for request in staged:
            assert_right(request)
            info = request.future.result().info
            assert info is not None
            assert info.device == "two"
        failed = [isinstance(request.future.exception(20), WorkerFailed) for request in guilty]
        assert sorted(failed) == [False, True]


# threads that compute themselves


class ComputingEngine(BreakableEngine):
    """As on a CPU."""

    stages_ahead = False

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[int] = set()
        self.order: list[str] = []

    def stage(self, model: str, parts: Sequence[PixelArray], options: EmbedOptions) -> Staged:
        self.threads.add(threading.get_ident())
        self.order.append("stage")
        return super().stage(model, parts, options)

    def run(self, staged: Staged) -> Outputs:
        self.threads.add(threading.get_ident())
        self.order.append("run")
        return super().run(staged)


def test_one_thread_computes_all_batches_on_a_cpu() -> None:
    """Each thread that computes has OpenMP threads of its own, which are then too many."""
    engine = ComputingEngine()
    with batching(engine) as queue:
        for request in [submit(queue, 16, seed) for seed in range(6)]:
            assert_right(request)
        assert engine.order == ["stage", "run"] * 6
        assert len(engine.threads) == 1
        engine.fault = raising(EngineFailed("gone"))
        with pytest.raises(WorkerFailed, match="gone"):
            submit(queue, 16).future.result(20)
        engine.fault = None
        until(lambda: engine.restarts == 1 and queue.up)
        assert_right(submit(queue, 16))
    assert not TorchEngine([], EngineOptions(torch.device("cpu"))).stages_ahead


# a device that takes the next forward while it computes one


class QueueingEngine(BreakableEngine):
    """Computes one after the other, and takes a second call of `run` meanwhile."""

    at_once = 2

    def __init__(self) -> None:
        super().__init__()
        self.device_free = threading.Lock()
        self.launched = 0
        self.gate = threading.Event()
        self.gate.set()
        self.seconds = 0.0

    def run(self, staged: Staged) -> Outputs:
        self.launched += 1
        with self.device_free:
            time.sleep(self.seconds)
            wait_for(self.gate)
            return super().run(staged)


def test_the_next_forward_is_launched_before_the_last_one_ends() -> None:
    engine = QueueingEngine()
    engine.gate.clear()
    with batching(engine) as queue:
        requests = [submit(queue, 16, seed) for seed in range(4)]
        until(lambda: engine.launched == 2)
        time.sleep(0.05)
        assert engine.launched == 2
        assert sum(part.rows for part in queue.workers[0].held) == 32  # no more are taken ahead
        engine.gate.set()
        for request in requests:
            assert_right(request)


def test_the_seconds_of_forwards_are_those_of_the_device() -> None:
    engine = QueueingEngine()
    engine.seconds = 0.05
    with batching(engine) as queue:
        begin = time.monotonic()
        requests = [submit(queue, 16, seed) for seed in range(6)]
        spent = [request.future.result(20).forward_seconds for request in requests]
        assert sum(spent) <= time.monotonic() - begin


def test_all_that_was_launched_fails_with_its_worker() -> None:
    engine = QueueingEngine()
    engine.gate.clear()
    with batching(engine) as queue:
        requests = [submit(queue, 16, seed) for seed in range(2)]
        until(lambda: engine.launched == 2)
        engine.fault = raising(EngineFailed("gone"))
        engine.gate.set()
        for request in requests:
            with pytest.raises(WorkerFailed, match="gone"):
                request.future.result(20)
        engine.fault = None
        until(lambda: engine.restarts == 1 and queue.up)
        assert_right(submit(queue, 16))


def test_slices_that_end_at_once_are_all_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one request come back from several threads."""

    def slow(part: Slice) -> int:
        time.sleep(0.02)
        return part.stop - part.start

    request = EmbedRequest("arithmetic", rows(8), MEAN)
    slices = [*request.take(4), *request.take(4)]
    monkeypatch.setattr(Slice, "rows", property(slow))
    answer = {EMBEDDING: np.ones((4, 2), np.float32)}
    threads = [threading.Thread(target=part.give, args=(answer, 0.0, 1.0)) for part in slices]
    for thread in threads:
        thread.start()
    assert request.future.result(5).forward_seconds == 2.0


# several devices


def pair() -> Sequence[BreakableEngine]:
    return BreakableEngine("one"), BreakableEngine("two")


def test_every_device_works_while_there_is_work() -> None:
    engines = pair()
    with batching(*engines) as queue:
        steps = [Steps() for _ in engines]
        for engine, step in zip(engines, steps, strict=True):
            engine.fault = step

        def reached(number: int, held: int) -> bool:
            alike = all(step.arrived == number for step in steps)
            return alike and all(len(worker.held) == held for worker in queue.workers)

        requests = [submit(queue, 16, seed) for seed in range(8)]
        for number, held in enumerate([2, 2, 2, 1], start=1):
            until(partial(reached, number, held))
            for step in steps:
                step.release()
        for request in requests:
            assert_right(request)
        assert [engine.rows for engine in engines] == [64, 64]


def test_no_batch_is_prepared_ahead_while_a_device_is_idle() -> None:
    engines = pair()
    with batching(*engines) as queue:
        for _ in range(20):
            until(lambda: all(worker.idle for worker in queue.workers))
            gate = threading.Event()
            for engine in engines:
                engine.fault = partial(wait_for, gate)
            requests = [submit(queue, 16, seed) for seed in range(2)]
            until(lambda: all(worker.running for worker in queue.workers))
            gate.set()
            for request in requests:
                assert_right(request)


def test_an_answer_names_the_devices_that_computed_its_rows() -> None:
    engines = pair()
    steps = [Steps() for _ in engines]
    with batching(*engines) as queue:
        for engine, step in zip(engines, steps, strict=True):
            engine.fault = step
        both = submit(queue, 32)
        until(lambda: all(step.arrived == 1 for step in steps))
        alone = submit(queue, 16, seed=1)
        # Either device may prepare it ahead.
        until(lambda: any(len(worker.held) == 2 for worker in queue.workers))
        (taken,) = (place for place, worker in enumerate(queue.workers) if len(worker.held) == 2)
        for step in (*steps, steps[taken]):
            step.release()
        infos = [request.future.result(20).info for request in (both, alone)]
        assert [info and info.device for info in infos] == ["one,two", ("one", "two")[taken]]


def test_a_lost_device_is_taken_out_and_the_other_goes_on() -> None:
    first, second = pair()
    lost = threading.Event()
    with batching(first, second, on_lost=lost.set) as queue:
        first.fault = raising(EngineFailed("gone"))
        first.on_restart = raising(EngineFailed("for good"))
        seed = 0
        while first.restarts == 0:
            seed += 1
            request = submit(queue, 16, seed)
            try:
                assert_right(request)
            except WorkerFailed:
                continue
        until(lambda: "one" in queue.problems)
        before = first.rows
        for request in [submit(queue, 5, seed) for seed in range(50)]:
            assert_right(request)
        assert first.rows == before
        assert queue.up
        assert not lost.is_set()


def test_a_device_that_lacks_a_model_leaves_it_to_the_other() -> None:
    first, second = pair()
    first.unload("arithmetic")
    with batching(first, second) as queue:
        for request in [submit(queue, 20, seed) for seed in range(5)]:
            assert_right(request)
        assert first.rows == 0
        assert second.rows == 100
