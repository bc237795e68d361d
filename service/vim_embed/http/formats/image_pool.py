"""Decoding of encoded images in processes that can be ended.

The event loop sends a process the images of a request and takes their pixels from shared memory. A
request's timeout, too much CPU time, or the end of the service ends the process, not the wait for
it; the next image gets a new one, and so does the request after an image that failed for want of
memory. Processes start with the first images and stay; each sees one request at a time.
"""

from __future__ import annotations

import asyncio
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
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

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
from vim_embed.http.formats.fits import WEIGHT
from vim_embed.http.formats.image_decoder import Order
from vim_embed.types.pixels import PixelArray
from vim_embed.types.preprocessing import Preprocessing

_LOG = logging.getLogger(__name__)
_PROCESSES = min(8, max(2, os.cpu_count() or 1))
_AHEAD = 2  # images of a request that a process has at once, so that it never waits
_LARGE_PIXELS = 1_000_000  # from here on an image's memory is counted, and
_LARGE_AT_ONCE = 2  # so many are decoded side by side
_PIXEL_BYTES = 20  # of memory that a pixel takes while it is decoded
_SECONDS, _SECONDS_A_MIB = 1.2, 0.5  # of CPU time that an image may take: at all, of its file
_LIFETIME = 10_000  # images that a process decodes, before another takes its place
_MIB = 1024 * 1024
_TOGETHER = 64 * 1024  # bytes of a file that go with the order, in one call
# For the C library of a decoder process, which else gives the memory of each image back to the
# system and asks for it again: 2.5 ms a JPEG of 256 pixels then, and 1.5 with these.
_KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(8 * _MIB),
    "MALLOC_TRIM_THRESHOLD_": str(32 * _MIB),
    "MALLOC_TOP_PAD_": str(4 * _MIB),
}
_BY_CODE = {error.code: error for error in ERRORS}


@dataclass(frozen=True)
class File:
    """An encoded image. name: what it is called in messages. fits: how it is read where it is FITS,
    as FitsOptions tells. several: whether it may hold several images, of which `row` is meant."""

    name: str
    data: memoryview
    fits: dict[str, Any] | None = None
    several: bool = False
    row: int = 0

    def at(self, number: int) -> File:
        """One of its images."""
        return replace(self, name=f"{self.name}, row {number}", row=number)

    @property
    def weight(self) -> int:
        """Memory of a pixel of it, in that of an encoded image's."""
        return 1 if self.fits is None else WEIGHT


class Decoded(NamedTuple):
    """A batch (n, 3, S, S) of the spec's size, and how many rows of it each file has."""

    rows: PixelArray
    counts: list[int]


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
    """The decoder processes of a service, for one event loop."""

    def __init__(self, processes: int = _PROCESSES) -> None:
        self.processes = processes
        self._free = asyncio.Semaphore(processes)
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)
        self._lock = threading.Lock()  # `stop` comes from another thread
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
        max_rows: int | None = None,
    ) -> Decoded:
        """The images of all files. Raises ServiceError, for more than `max_rows` too."""
        side, counts = spec.image_size, [1] * len(files)
        several = any(file.several for file in files)
        rows = None if several else _room(len(files), side, workspace)
        async with self._process(budget) as process:
            try:
                async with asyncio.timeout(budget.seconds_left):
                    if rows is None:
                        counts = await self._counts(process, files, max_pixels, workspace)
                        _check_rows(sum(counts), max_rows)
                        rows = _room(sum(counts), side, workspace)
                    of_rows = _of_rows(files, counts)
                    job = _Job(process, of_rows, spec, budget, max_pixels, rows)
                    await self._run(job, workspace)
            except TimeoutError as error:
                raise budget.late() from error
            except ProcessEnded as error:
                raise await asyncio.to_thread(self._why, process, *error.args) from error
            except ServiceError:
                await process.finish(budget.seconds_left)
                raise
        return Decoded(rows, counts)

    async def _counts(
        self,
        process: DecoderProcess,
        files: Sequence[File],
        max_pixels: int,
        workspace: Workspace,
    ) -> list[int]:
        """How many images each file has."""
        with workspace.working(max(len(file.data) for file in files)):
            return [await process.count(file, max_pixels) for file in files]

    async def _run(self, job: _Job, workspace: Workspace) -> None:
        """First what is small, then by turns what is large, with its memory counted."""
        with workspace.working(_AHEAD * max(len(file.data) for file in job.files)):
            large = await job.decode(range(len(job.files)), _LARGE_PIXELS)
        job.budget.take(sum(large.values()))
        for number, pixels in large.items():
            file = job.files[number]
            counted = _PIXEL_BYTES * pixels * file.weight + len(file.data)
            async with self._large:
                with workspace.working(counted):
                    await job.decode([number], pixels)

    def stop(self) -> None:
        """End the processes; what they decode fails with Draining. Once is enough."""
        with self._lock:
            self._stopping = True
            idle, self._idle = self._idle, []
            for process in self._busy:
                process.kill()
        for process in idle:
            process.close()

    @asynccontextmanager
    async def _process(self, budget: DecodeBudget) -> AsyncIterator[DecoderProcess]:
        """One of the processes, for one request. Raises DeadlineExceeded or Draining."""
        try:
            async with asyncio.timeout(budget.seconds_left):
                await self._free.acquire()
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"no process was free to decode within {budget.seconds:g} s"
            ) from error
        try:
            process = await self._taken()
            try:
                yield process
            finally:
                if not self._kept(process):
                    await asyncio.to_thread(process.close)
        finally:
            self._free.release()

    async def _taken(self) -> DecoderProcess:
        with self._lock:
            idle = self._idle.pop() if self._idle else None
        process = await asyncio.to_thread(DecoderProcess) if idle is None else idle
        with self._lock:
            stopping = self._stopping
            if not stopping:
                self._busy.add(process)
        if stopping:
            await asyncio.to_thread(process.close)
            raise _draining()
        return process

    def _kept(self, process: DecoderProcess) -> bool:
        """Whether the process waits for the next request now."""
        with self._lock:
            self._busy.discard(process)
            process.let_go()
            kept = not self._stopping and process.fit
            if kept:
                self._idle.append(process)
        return kept

    def _why(self, process: DecoderProcess, place: str, size: int) -> ServiceError:
        """Why a process ended in the midst of an image of so many bytes."""
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


class ProcessEnded(Exception):
    """A decoder process ended before its reply: (what the image is called, its bytes)."""


class DecoderProcess:
    """One process, its connection and the memory that it writes pixels to."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("vim-embed-pixels")
        self._shared: mmap.mmap | None = None
        self._left = _LIFETIME
        self._sent = 0  # images without a reply
        self._holds: memoryview | None = None  # bytes that it has, and need not be sent again
        self._received = bytearray()
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
        ours.setblocking(False)
        self._connection = ours

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

    async def send(self, order: Order, data: memoryview) -> None:
        """If the process ended, the reply does not come."""
        self._left -= 1
        self._sent += 1
        loop = asyncio.get_running_loop()
        again, self._holds = self._holds is data, None if order.last else data
        line = json.dumps({**vars(order), "again": again}).encode() + b"\n"
        with suppress(ConnectionError):
            if again:
                await loop.sock_sendall(self._connection, line)
            elif len(data) < _TOGETHER:
                await loop.sock_sendall(self._connection, line + data)
            else:
                await loop.sock_sendall(self._connection, line)
                await loop.sock_sendall(self._connection, data)

    async def reply(self) -> dict[str, object] | None:
        """To the oldest order; None if the process ended."""
        loop = asyncio.get_running_loop()
        while (end := self._received.find(b"\n")) < 0:
            try:
                received = await loop.sock_recv(self._connection, _TOGETHER)
            except ConnectionError:
                return None
            if not received:
                return None
            self._received += received
        reply: dict[str, object] = json.loads(self._received[:end])
        del self._received[: end + 1]
        self._sent -= 1
        if reply.get("worn"):
            self._left = 0
        return reply

    async def count(self, file: File, max_pixels: int) -> int:
        """How many images a file has: one, unless it may have several. Raises ServiceError."""
        if not file.several:
            return 1
        order = Order(
            size=len(file.data), side=1, interpolation="", resize_to=1, keep_aspect=False,
            max_pixels=max_pixels, large=_LARGE_PIXELS // file.weight,
            seconds=_cpu_seconds(len(file.data)), place=file.name, slot=0, shared=0,
            fits=file.fits, count=True,
        )  # fmt: skip
        await self.send(order, file.data)
        return int(str(_checked(await self.reply(), file)["rows"]))

    async def finish(self, seconds: float) -> None:
        """Wait for what it was sent, if it does not take longer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._sent and await self.reply() is not None:
                    pass

    def let_go(self) -> None:
        """Forget the bytes that were sent: the next image is sent whole, and takes their place."""
        self._holds = None

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
        self._connection.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        return code


@dataclass(frozen=True)
class _Job:
    """The images of one request, and the rows that they become."""

    process: DecoderProcess
    files: Sequence[File]
    spec: Preprocessing
    budget: DecodeBudget
    max_pixels: int
    rows: PixelArray

    async def decode(self, numbers: Sequence[int], large: int) -> dict[int, int]:
        """Decode these images, but for those of more than `large` pixels: theirs, by number."""
        left: dict[int, int] = {}
        for place in range(len(numbers) + _AHEAD - 1):
            if place < len(numbers):
                await self._send(numbers[place], large)
            if place >= _AHEAD - 1:
                number = numbers[place - _AHEAD + 1]
                pixels = await self._receive(number, large)
                if pixels is not None:
                    left[number] = pixels
        return left

    async def _send(self, number: int, large: int) -> None:
        file = self.files[number]
        side = self.spec.image_size
        order = Order(
            size=len(file.data),
            side=side,
            interpolation=self.spec.interpolation,
            resize_to=self.spec.resize_to,
            keep_aspect=self.spec.keep_aspect,
            max_pixels=self.max_pixels,
            large=large // file.weight if large == _LARGE_PIXELS else large,
            seconds=_cpu_seconds(len(file.data)),
            place=file.name,
            slot=number % _AHEAD,
            shared=self.process.shared(_AHEAD * 3 * side * side),
            row=file.row,
            fits=file.fits,
            last=not self._follows(number),
        )
        await self.process.send(order, file.data)

    def _follows(self, number: int) -> bool:
        """Whether the next image is of the same file."""
        following = self.files[number + 1 : number + 2]
        return any(file.data is self.files[number].data for file in following)

    async def _receive(self, number: int, large: int) -> int | None:
        """Take over an image's pixels; how many it has in its file, if it needs leave."""
        reply = _checked(await self.process.reply(), self.files[number])
        if "large" in reply:
            return int(str(reply["large"]))
        if large == _LARGE_PIXELS:  # the others are taken off already
            self.budget.take(int(str(reply["pixels"])))
        self.rows[number] = self.process.pixels(number % _AHEAD, self.spec.image_size)
        return None


def _of_rows(files: Sequence[File], counts: Sequence[int]) -> list[File]:
    """A file for each image."""
    return [
        file.at(number) if file.several else file
        for file, count in zip(files, counts, strict=True)
        for number in range(count)
    ]


def _room(count: int, side: int, workspace: Workspace) -> PixelArray:
    whole = np.frombuffer(workspace.allocate(count * 3 * side * side), np.uint8)
    return whole.reshape(count, 3, side, side)


def _check_rows(rows: int, most: int | None) -> None:
    """Raise PayloadTooLarge for a batch of more rows than a request may have."""
    if most is not None and rows > most:
        raise PayloadTooLarge(
            f"the files have {rows} images, over the limit of {most} rows: send fewer per request"
        )


def _checked(reply: dict[str, object] | None, file: File) -> dict[str, object]:
    """A process's reply. Raises ProcessEnded or ServiceError."""
    if reply is None:
        raise ProcessEnded(file.name, len(file.data))
    if "code" in reply:
        raise _BY_CODE.get(str(reply["code"]), InternalError)(str(reply["message"]))
    return reply


def _cpu_seconds(size: int) -> float:
    """That decoding a file of so many bytes may take."""
    return _SECONDS + _SECONDS_A_MIB * size / _MIB


def _draining() -> Draining:
    return Draining("the service is shutting down: retry against another, or later")
