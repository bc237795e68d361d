"""A TCP proxy on loopback that spoils exchanges: each POST that passes draws its own fault.

Other requests pass as they are. What was drawn is counted, so that a test can see that its faults
happened.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from random import Random

FAULTS = ("reset", "upload", "head", "body", "body reset", "429", "503", "slow")
FINE = "fine"
_CHUNK = 64 * 1024
_PIECE = 48  # bytes that a slow answer comes in
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST
_REFUSALS = {"429": ("429 Too Many Requests", "queue_full"), "503": ("503 Busy", "not_ready")}


@dataclass
class _Exchange:
    """One connection: the fault of its present request, and what may still pass upwards."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    fault: str = FINE
    upload: int = 0

    def close(self, *, reset: bool = False) -> None:
        if reset:
            connection = self.client.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.client.transport.abort()
        self.client.close()
        self.server.close()


class FlakyProxy:
    """Passes connections to a port of loopback; `share` of the POSTs draw one of `faults`."""

    def __init__(self, port: int, *, faults: Sequence[str], share: float, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.url = ""
        self._target = port
        self._faults = tuple(faults)
        self._share = share
        self._random = Random(seed)
        self._stop: asyncio.Event | None = None
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self) -> None:
        """Serve until `stop`."""
        asyncio.run(self._serve())

    def wait(self) -> None:
        assert self._started.wait(10)

    def stop(self) -> None:
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        exchanges: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._writers.append(writer)
            task = asyncio.ensure_future(self._exchange(reader, writer))
            exchanges.add(task)
            task.add_done_callback(exchanges.discard)
            task.add_done_callback(lambda _: writer.close())

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._started.set()
        await self._stop.wait()
        self._loop.remove_reader(server.sockets[0])
        await asyncio.sleep(0.01)  # one that was just accepted is never closed if `close` comes now
        server.close()
        if exchanges:  # a connection that is cancelled while it is made is never closed
            await asyncio.wait(exchanges, timeout=2)
        for task in list(exchanges):
            task.cancel()
        await asyncio.gather(*exchanges, return_exceptions=True)
        for writer in self._writers:  # one that still has to send would never be closed
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            answers, server = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.append(server)
            exchange = _Exchange(writer, server)
            ways = [self._up(reader, exchange), self._down(answers, exchange)]
            tasks = [asyncio.ensure_future(way) for way in ways]
            try:
                await asyncio.wait(tasks, return_when="FIRST_COMPLETED")
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                exchange.close()

    async def _up(self, reader: asyncio.StreamReader, exchange: _Exchange) -> None:
        while chunk := await reader.read(_CHUNK):
            if chunk.startswith(b"POST "):
                self._draw(exchange)
            if exchange.fault == "reset":
                return exchange.close(reset=True)
            if exchange.fault in _REFUSALS:
                return await self._refuse(reader, exchange)
            if exchange.fault == "upload":
                chunk, exchange.upload = chunk[: exchange.upload], exchange.upload - len(chunk)
            exchange.server.write(chunk)
            await exchange.server.drain()
            if exchange.fault == "upload" and exchange.upload <= 0:
                return exchange.close(reset=True)
        return None

    def _draw(self, exchange: _Exchange) -> None:
        spoil = self._random.random() < self._share
        exchange.fault = self._random.choice(self._faults) if spoil else FINE
        exchange.upload = self._random.randrange(20, 900)
        self.counts[exchange.fault] += 1

    async def _refuse(self, reader: asyncio.StreamReader, exchange: _Exchange) -> None:
        status, code = _REFUSALS[exchange.fault]
        body = f'{{"error": {{"code": "{code}", "message": "busy", "request_id": "x"}}}}'
        exchange.client.write(
            f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nRetry-After: 0\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()
        )
        await exchange.client.drain()
        while await asyncio.wait_for(reader.read(_CHUNK), 5):  # else its rest would reset this
            pass

    async def _down(self, answers: asyncio.StreamReader, exchange: _Exchange) -> None:
        while chunk := await answers.read(_CHUNK):
            if exchange.fault in ("head", "body", "body reset"):
                await self._cut(chunk, answers, exchange)
                return
            if exchange.fault == "stall":
                await asyncio.sleep(60)
            if exchange.fault == "slow":
                await _dribble(chunk, exchange.client)
            else:
                exchange.client.write(chunk)
                await exchange.client.drain()

    async def _cut(self, chunk: bytes, answers: asyncio.StreamReader, exchange: _Exchange) -> None:
        """Pass an answer up to somewhere in its head or body, and close."""
        while b"\r\n\r\n" not in chunk:
            chunk += await answers.read(_CHUNK)
        head = chunk.index(b"\r\n\r\n") + 4
        length = _LENGTH.search(chunk[:head])
        if exchange.fault == "head":
            end = self._random.randrange(1, head)
        else:
            end = head + self._random.randrange(int(length[1]) if length else 1)
        while len(chunk) < end:
            chunk += await answers.read(_CHUNK)
        exchange.client.write(chunk[:end])
        await exchange.client.drain()
        if exchange.fault == "body reset":
            await asyncio.sleep(0.01)  # else the reset may overtake what was written
            exchange.close(reset=True)


async def _dribble(chunk: bytes, out: asyncio.StreamWriter) -> None:
    for start in range(0, len(chunk), _PIECE):
        out.write(chunk[start : start + _PIECE])
        await out.drain()
        await asyncio.sleep(0.001)


@contextmanager
def flaky_proxy(
    port: int, *, faults: Sequence[str] = FAULTS, share: float = 0.5, seed: int = 0
) -> Iterator[FlakyProxy]:
    """A running proxy before `port` of loopback."""
    proxy = FlakyProxy(port, faults=faults, share=share, seed=seed)
    thread = threading.Thread(target=proxy.run)
    thread.start()
    try:
        proxy.wait()
        yield proxy
    finally:
        proxy.stop()
        thread.join(20)
    assert not thread.is_alive()
