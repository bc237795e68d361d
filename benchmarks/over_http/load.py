"""One process with several connections that sends prebuilt bodies and checks every answer."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]
TIMEOUT_S = 60.0


class WrongAnswer(Exception):
    """A server's answer is an error, or not the rows that were asked for."""


@dataclass(frozen=True)
class Body:
    """A request's body and the rows that must come back."""

    content: bytes
    expected: Rows


class Connection:
    """One connection, kept open; opened again after `close`."""

    def __init__(
        self, port: int, headers: Mapping[str, str], decode: Callable[[bytes], Rows]
    ) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
        self._headers = dict(headers)
        self._decode = decode

    def send(self, body: Body) -> None:
        """One request. Raises WrongAnswer, OSError or HTTPException."""
        self._http.request("POST", "/embed", body.content, self._headers)
        response = self._http.getresponse()
        content = response.read()
        if response.status != 200:
            raise WrongAnswer(f"HTTP {response.status}: {content[:500].decode(errors='replace')}")
        if not np.array_equal(self._decode(content), body.expected):
            raise WrongAnswer("the rows that came back are not those that were sent")

    def close(self) -> None:
        self._http.close()


def drive(connections: Sequence[Connection], bodies: Sequence[Body], seconds: float) -> int:
    """Send `bodies` in turn over every connection at once, each at least one; gives the rows."""

    def work(number: int) -> int:
        rows, sent, end = 0, 0, time.monotonic() + seconds
        while not sent or time.monotonic() < end:
            body = bodies[(number + sent) % len(bodies)]
            connections[number].send(body)
            rows += len(body.expected)
            sent += 1
        return rows

    for connection in connections:
        connection.close()  # servers close those that were idle during the others' rounds
    with ThreadPoolExecutor(len(connections)) as pool:
        return sum(pool.map(work, range(len(connections))))
