"""Clients that keep a service busy: one process each, started once and told what to send.

Processes, because threads of one would share an interpreter lock and measure themselves. In the
closed loop each client waits for its answer before it sends again. In the open loop requests
leave at random moments, whether or not earlier ones are answered, and are timed from the moment
at which they were meant to leave: a service that falls behind cannot slow down its own test.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Self

import numpy as np

from vim_embed_client.client import Client
from vim_embed_client.errors import StatusError, VimEmbedError
from vim_embed_client.formats import Array

OPEN_REQUESTS = 32  # that one client of the open loop has under way at most
_DISTINCT = 4
_PAUSE_S = 0.1  # after a failure that does not say how long to wait


@dataclass(frozen=True, kw_only=True)
class Load:
    """What clients may be told to send: up to `rows` random images of side `image_size`."""

    url: str
    api_key: str | None
    model: str
    rows: int
    wire: str
    image_size: int

    def batches(self) -> list[Array]:
        """A few different batches to send in turn."""
        random = np.random.default_rng(0)
        shape = (self.rows, 3, self.image_size, self.image_size)
        batches = [random.integers(0, 256, shape, dtype=np.uint8) for _ in range(_DISTINCT)]
        if self.wire == "uint8":
            return list(batches)
        return [(batch.astype(np.float32) / 255).astype(self.wire) for batch in batches]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A round: `rows` a request for `seconds`. rate: of this client, in requests a second, for
    the open loop; None for the closed one.
    """

    rows: int
    seconds: float
    rate: float | None = None
    seed: int = 0

    def arrivals(self) -> Iterator[float]:
        """Seconds from the beginning at which requests are to leave, of a Poisson process."""
        assert self.rate is not None
        random = np.random.default_rng(self.seed)
        due = random.exponential(1 / self.rate)
        while due < self.seconds:
            yield due
            due += random.exponential(1 / self.rate)


@dataclass(kw_only=True)
class Sample:
    """What one client saw in one round. Times in seconds, of a clock common to all processes.

    failures: requests by the code of their error. unsent: of the open loop, requests that were
    still to leave when the round was cut short.
    """

    rows: int = 0
    started: float = 0.0
    ended: float = 0.0
    latencies: list[float] = field(default_factory=list)
    server_timing: list[Mapping[str, float]] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    unsent: int = 0


class LoadClients:
    """`count` client processes; each has sent one request to warm up when they are entered."""

    def __init__(self, load: Load, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._theirs: list[Connection] = []
        self._processes = []
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(load, theirs), daemon=True)
            self._pipes.append(ours)
            self._theirs.append(theirs)
            self._processes.append(process)

    def __enter__(self) -> Self:
        for process in self._processes:
            process.start()
        for pipe in self._theirs:
            pipe.close()
        try:
            self._gather(self._pipes)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self._processes:
            process.terminate()
            process.join()
        for pipe in self._pipes:
            pipe.close()

    def run(
        self, seconds: float, *, clients: int, rows: int, rate: float | None = None, seed: int = 0
    ) -> list[Sample]:
        """Let the first `clients` send requests for `seconds`, at `rate` a second together."""
        share = None if rate is None else rate / clients
        for number, pipe in enumerate(self._pipes[:clients]):
            task = Task(rows=rows, seconds=seconds, rate=share, seed=1000 * seed + number)
            pipe.send(task)
        return self._gather(self._pipes[:clients])

    def _gather(self, pipes: list[Connection]) -> list[Sample]:
        try:
            answers: list[Sample | VimEmbedError] = [pipe.recv() for pipe in pipes]
        except EOFError:
            raise VimEmbedError("a client process ended early: is there memory left?") from None
        for answer in answers:
            if isinstance(answer, VimEmbedError):
                raise answer
        return [answer for answer in answers if isinstance(answer, Sample)]


def _serve(load: Load, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Client(load.url, api_key=load.api_key, rows_per_request=load.rows) as client:
        try:
            batches = load.batches()
            client.embed(batches[0], model=load.model)
            pipe.send(Sample())
            sender = Sender(client.with_options(max_retries=0), load.model, batches)
            while True:
                pipe.send(sender.run(pipe.recv()))
        except VimEmbedError as error:
            pipe.send(error)
        except EOFError:
            return


class Sender:
    """Carries out tasks, one after the other; what one client process does."""

    def __init__(self, client: Client, model: str, batches: list[Array]) -> None:
        self._client = client
        self._model = model
        self._batches = batches
        self._lock = threading.Lock()
        self._sample = Sample()

    def run(self, task: Task) -> Sample:
        self._sample = Sample(started=time.monotonic())
        if task.rate is None:
            self._run_closed(task)
        else:
            self._run_open(task)
        self._sample.ended = time.monotonic()
        return self._sample

    def _run_closed(self, task: Task) -> None:
        end, number = self._sample.started + task.seconds, 0
        while not number or time.monotonic() < end:
            pause = self._send(number, task.rows, time.monotonic())
            time.sleep(max(0.0, min(pause, end - time.monotonic())))
            number += 1

    def _run_open(self, task: Task) -> None:
        arrivals = enumerate(task.arrivals())
        threads = [
            threading.Thread(target=self._send_arrivals, args=(task, arrivals))
            for _ in range(OPEN_REQUESTS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _send_arrivals(self, task: Task, arrivals: Iterator[tuple[int, float]]) -> None:
        """Take arrivals in turn; those that could not leave in twice the time are given up."""
        cut = self._sample.started + 2 * task.seconds
        while True:
            with self._lock:
                number, due = next(arrivals, (0, -1.0))
            if due < 0:
                return
            intended = self._sample.started + due
            time.sleep(max(0.0, intended - time.monotonic()))
            if time.monotonic() < cut:
                self._send(number, task.rows, intended)
            else:
                with self._lock:
                    self._sample.unsent += 1

    def _send(self, number: int, rows: int, begin: float) -> float:
        """One request, timed from `begin`; seconds to wait before another one."""
        batch = self._batches[number % len(self._batches)][:rows]
        try:
            result = self._client.embed(batch, model=self._model)
        except VimEmbedError as error:
            with self._lock:
                self._sample.failures[_code(error)] += 1
            return _pause(error)
        with self._lock:
            self._sample.rows += rows
            self._sample.latencies.append(time.monotonic() - begin)
            self._sample.server_timing += result.server_timing
        return 0.0


def _code(error: VimEmbedError) -> str:
    return (isinstance(error, StatusError) and error.code) or type(error).__name__


def _pause(error: VimEmbedError) -> float:
    asked = error.retry_after if isinstance(error, StatusError) else None
    try:
        return float(asked or _PAUSE_S)
    except ValueError:  # a date
        return _PAUSE_S
