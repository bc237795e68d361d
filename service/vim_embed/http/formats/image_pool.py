"""Decoding of encoded images in processes that can be ended.

A thread of the pool drives one process: it sends the images of a request and takes their pixels
from shared memory. A request's timeout, too much CPU time, or the end of the service ends the
process, not the wait for it; the next image gets a new one. Processes start with the first images
and stay; each sees one request at a time.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import numpy as np

from vim_embed.errors import (
    ERRORS,
    DeadlineExceeded,
    Draining,
    InternalError,
    MalformedRequest,
    PayloadTooLarge,
    ServiceError,
    WorkerFailed,
)
from vim_embed.http.body.workspace import Workspace
from vim_embed.http.formats.image_decoder import Order
from vim_embed.types.pixels import PixelArray
from vim_embed.types.preprocessing import Preprocessing

_LOG = logging.getLogger(__name__)
_PROCESSES = min(8, max(2, os.cpu_count() or 1))
_AHEAD = 2  # images of a request that a process has at once, so that it never waits
_LARGE_PIXELS = 1_000_000  # from here on an image's memory is counted, and
_LARGE_AT_ONCE = 2  # so many are decoded side by side
_PIXEL_BYTES = 20  # of memory that a pixel takes while it is decoded
_SECONDS, _SECONDS_A_MIB = 1.5, 0.5  # of CPU time that an image may take: at all, of its file
_LIFETIME = 10_000  # images that a process decodes, before another takes its place
_MIB = 1024 * 1024
# For the C library of a decoder process, which else gives the memory of each image back to the
# system and asks for it again: 2.5 ms a JPEG of 256 pixels then, and 1.5 with these.
_KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(8 * _MIB),
    "MALLOC_TRIM_THRESHOLD_": str(32 * _MIB),
    "MALLOC_TOP_PAD_": str(4 * _MIB),
}
_BY_CODE = {error.code: error for error in ERRORS}
File = tuple[str, memoryview]  # what it is called in messages, and its bytes


class DecodeBudget:
    """Pixels and seconds that the images of one request may take together."""

    def __init__(self, pixels: int, seconds: float) -> None:
        self._pixels = pixels
        self._left = pixels
        self.seconds = seconds
        self._until = time.monotonic() + seconds

    @property
    def seconds_left(self) -> float:
        return max(0.0, self._until - time.monotonic())

    def take(self, pixels: int) -> None:
        """Raises PayloadTooLarge."""
        self._left -= pixels
        if self._left < 0:
            raise PayloadTooLarge(
                f"the images have more than {self._pixels} pixels together: send fewer per request"
            )

    def late(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"decoding the images took longer than {self.seconds:.3g} s")


class DecoderPool:
    """The decoder processes of a service."""

    def __init__(self, processes: int = _PROCESSES) -> None:
        self.processes = processes
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="decode")
        self._large = threading.BoundedSemaphore(_LARGE_AT_ONCE)
        self._lock = threading.Lock()
        self._idle: list[DecoderProcess] = []
        self._busy: set[DecoderProcess] = set()
        self._stopping = False

    async def decode(
        self,
        files: Sequence[File],
        spec: Preprocessing,
        budget: DecodeBudget,
        workspace: Workspace,
        *,
        max_pixels: int,
    ) -> PixelArray:
        """The images as one batch (n, 3, S, S) of the spec's size. Raises ServiceError."""
        if self._stopping:
            raise _draining()
        job = _Job(self, files, spec, budget, workspace, max_pixels)
        running = self._threads.submit(contextvars.copy_context().run, job.run)
        answer = asyncio.wrap_future(running)
        await asyncio.wait({answer}, timeout=budget.seconds_left)
        if not answer.done() and running.cancel():
            raise DeadlineExceeded(f"no process was free to decode within {budget.seconds:g} s")
        return await answer

    def stop(self) -> None:
        """End the processes; what they decode fails with Draining. Once is enough."""
        with self._lock:
            self._stopping = True
            idle, self._idle = self._idle, []
            for process in self._busy:
                process.kill()
        for process in idle:
            process.close()
        self._threads.shutdown(wait=False)

    @contextmanager
    def process(self) -> Iterator[DecoderProcess]:
        """One of the processes, for one request. Raises Draining."""
        with self._lock:
            if self._stopping:
                raise _draining()
            process = self._idle.pop() if self._idle else DecoderProcess()
            self._busy.add(process)
        try:
            yield process
        finally:
            with self._lock:
                self._busy.discard(process)
                kept = not self._stopping and process.fit
                if kept:
                    self._idle.append(process)
            if not kept:
                process.close()

    @contextmanager
    def turn(self, budget: DecodeBudget) -> Iterator[None]:
        """One of the few large images that are decoded at once. Raises DeadlineExceeded."""
        if not self._large.acquire(timeout=budget.seconds_left):
            raise budget.late()
        try:
            yield
        finally:
            self._large.release()

    def ended(self, process: DecoderProcess, place: str, size: int) -> ServiceError:
        """Why a process ended in the midst of an image."""
        code = process.close()
        if self._stopping:
            return _draining()
        if code == -signal.SIGPROF:
            return PayloadTooLarge(
                f"{place} takes over {_cpu_seconds(size):.1f} s of CPU time to decode: save it anew"
            )
        _LOG.error("a decoder process ended", extra={"code": code, "image_bytes": size})
        if code == -signal.SIGKILL:
            return WorkerFailed(f"the process that decoded {place} was killed: retry")
        if code < 0:
            return MalformedRequest(f"{place} is damaged: its decoder crashed")
        return InternalError(f"the process that decoded {place} failed: retry")


class DecoderProcess:
    """One process, its connection and the memory that it writes pixels to."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("vim-embed-pixels")
        self._shared: mmap.mmap | None = None
        self._left = _LIFETIME
        self._sent = 0  # images without a reply
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "vim_embed.http.formats.image_decoder", str(self._fd)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                pass_fds=[self._fd],
                env={**os.environ, **_KEEP_MEMORY},
                start_new_session=True,  # Ctrl-C is the service's to handle
            )
        self._connection = ours
        self._replies = ours.makefile("rb")

    @property
    def fit(self) -> bool:
        """Whether another request may have it."""
        return self._left > 0 and not self._sent and self._process.poll() is None

    def shared(self, size: int) -> int:
        """Make the shared memory at least `size` bytes; how many it has."""
        if self._shared is None or len(self._shared) < size:
            os.ftruncate(self._fd, size)
            self._shared = mmap.mmap(self._fd, size)
        return len(self._shared)

    def send(self, order: Order, data: memoryview, seconds: float) -> None:
        """Raises TimeoutError or another OSError."""
        self._left -= 1
        self._sent += 1
        self._connection.settimeout(max(0.001, seconds))
        self._connection.sendall(json.dumps(vars(order)).encode() + b"\n")
        self._connection.sendall(data)

    def reply(self, seconds: float) -> dict[str, object] | None:
        """To the oldest order; None if the process ended. Raises TimeoutError."""
        self._connection.settimeout(max(0.001, seconds))
        try:
            line = self._replies.readline()
        except ConnectionError:
            return None
        if not line.endswith(b"\n"):
            return None
        self._sent -= 1
        reply: dict[str, object] = json.loads(line)
        return reply

    def finish(self, seconds: float) -> None:
        """Wait for what it was sent, if it does not take longer."""
        with suppress(OSError):
            while self._sent and self.reply(seconds) is not None:
                pass

    def pixels(self, slot: int, side: int) -> PixelArray:
        """What was written to a slot, as a view."""
        assert self._shared is not None, "an order was sent"
        flat = np.frombuffer(self._shared, np.uint8, 3 * side * side, slot * 3 * side * side)
        return flat.reshape(3, side, side)

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> int:
        """End it and give back what it holds; its exit code. Once is enough."""
        if self._sent:
            self._process.kill()
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # it reads the end
        try:
            code = self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._replies.close()
        self._connection.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        return code


class _Job:
    """The images of one request."""

    def __init__(
        self,
        pool: DecoderPool,
        files: Sequence[File],
        spec: Preprocessing,
        budget: DecodeBudget,
        workspace: Workspace,
        max_pixels: int,
    ) -> None:
        self._pool = pool
        self._files = files
        self._spec = spec
        self._budget = budget
        self._workspace = workspace
        self._max_pixels = max_pixels

    def run(self) -> PixelArray:
        """In a thread of the pool."""
        side, count = self._spec.image_size, len(self._files)
        whole = np.frombuffer(self._workspace.allocate(count * 3 * side * side), np.uint8)
        rows = whole.reshape(count, 3, side, side)
        copies = _AHEAD * max(len(data) for _, data in self._files)
        with self._pool.process() as process:
            with self._workspace.working(copies):
                large = self._decode(process, rows, range(count), _LARGE_PIXELS)
            self._budget.take(sum(large.values()))
            for number, pixels in large.items():
                counted = _PIXEL_BYTES * pixels + len(self._files[number][1])
                with self._pool.turn(self._budget), self._workspace.working(counted):
                    self._decode(process, rows, [number], pixels)
        return rows

    def _decode(
        self, process: DecoderProcess, rows: PixelArray, numbers: Sequence[int], large: int
    ) -> dict[int, int]:
        """Decode these images, but for those that are larger: their pixels, by number."""
        left: dict[int, int] = {}
        try:
            for place in range(len(numbers) + _AHEAD - 1):
                if place < len(numbers):
                    self._send(process, numbers[place], large)
                if place >= _AHEAD - 1:
                    number = numbers[place - _AHEAD + 1]
                    pixels = self._receive(process, rows, number, large)
                    if pixels is not None:
                        left[number] = pixels
        except ServiceError:
            process.finish(self._budget.seconds_left)
            raise
        return left

    def _send(self, process: DecoderProcess, number: int, large: int) -> None:
        place, data = self._files[number]
        side = self._spec.image_size
        order = Order(
            size=len(data),
            side=side,
            interpolation=self._spec.interpolation,
            resize_to=self._spec.resize_to,
            keep_aspect=self._spec.keep_aspect,
            max_pixels=self._max_pixels,
            large=large,
            seconds=_cpu_seconds(len(data)),
            place=place,
            slot=number % _AHEAD,
            shared=process.shared(_AHEAD * 3 * side * side),
        )
        try:
            process.send(order, data, self._budget.seconds_left)
        except TimeoutError as error:
            raise self._budget.late() from error
        except OSError:
            pass  # it ended: the reply that does not come tells at which image

    def _receive(
        self, process: DecoderProcess, rows: PixelArray, number: int, large: int
    ) -> int | None:
        """Take over an image's pixels; how many it has, if it needs leave."""
        place, data = self._files[number]
        try:
            reply = process.reply(self._budget.seconds_left)
        except TimeoutError as error:
            raise self._budget.late() from error
        if reply is None:
            raise self._pool.ended(process, place, len(data))
        if "code" in reply:
            raise _BY_CODE.get(str(reply["code"]), InternalError)(str(reply["message"]))
        if "large" in reply:
            return int(str(reply["large"]))
        if large == _LARGE_PIXELS:  # the others are taken off already
            self._budget.take(int(str(reply["pixels"])))
        rows[number] = process.pixels(number % _AHEAD, self._spec.image_size)
        return None


def _cpu_seconds(size: int) -> float:
    """That decoding a file of so many bytes may take."""
    return _SECONDS + _SECONDS_A_MIB * size / _MIB


def _draining() -> Draining:
    return Draining("the service is shutting down: retry against another, or later")
