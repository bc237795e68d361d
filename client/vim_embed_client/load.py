"""Clients that keep a service busy: one process each, started once and told when to run.

Processes, because threads of one would share an interpreter lock and measure themselves.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Self

import numpy as np

from vim_embed_client.client import Client
from vim_embed_client.errors import VimEmbedError
from vim_embed_client.wire import Array

_DISTINCT = 4


@dataclass(frozen=True, kw_only=True)
class Load:
    """What each client sends: `rows` random images of side `image_size` at a time."""

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
        return [batch.astype(np.float32) / 255 for batch in batches]


@dataclass(kw_only=True)
class Sample:
    """What one client saw in one round. Times in seconds, of a clock common to all processes."""

    rows: int = 0
    started: float = 0.0
    ended: float = 0.0
    latencies: list[float] = field(default_factory=list)
    server_timing: list[Mapping[str, float]] = field(default_factory=list)


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
            self._gather()
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

    def run(self, seconds: float) -> list[Sample]:
        """Let all of them send requests one after the other for `seconds`."""
        for pipe in self._pipes:
            pipe.send(seconds)
        return self._gather()

    def _gather(self) -> list[Sample]:
        try:
            answers: list[Sample | VimEmbedError] = [pipe.recv() for pipe in self._pipes]
        except EOFError:
            raise VimEmbedError("a client process ended early: is there memory left?") from None
        for answer in answers:
            if isinstance(answer, VimEmbedError):
                raise answer
        return [answer for answer in answers if isinstance(answer, Sample)]


def _serve(load: Load, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    batches = load.batches()
    with Client(load.url, api_key=load.api_key, rows_per_request=load.rows) as client:
        seconds = 0.0
        while True:
            try:
                pipe.send(_measure(client, load, batches, seconds))
                seconds = pipe.recv()
            except VimEmbedError as error:
                return pipe.send(error)
            except EOFError:
                return None


def _measure(client: Client, load: Load, batches: list[Array], seconds: float) -> Sample:
    """Send at least one request, and more until `seconds` have passed."""
    sample = Sample(started=time.monotonic())
    begin = sample.started
    while not sample.latencies or begin < sample.started + seconds:
        batch = batches[len(sample.latencies) % len(batches)]
        result = client.embed(batch, model=load.model)
        end = time.monotonic()
        sample.rows += load.rows
        sample.latencies.append(end - begin)
        sample.server_timing += result.server_timing
        begin = end
    sample.ended = begin
    return sample
