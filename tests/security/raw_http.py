"""Raw sockets against a server: requests that no HTTP library would send."""

from __future__ import annotations

import json
import re
import socket
import time
from typing import Any
from urllib.parse import urlsplit


def connect(url: str, timeout: float = 60) -> socket.socket:
    parts = urlsplit(url)
    assert parts.hostname is not None
    return socket.create_connection((parts.hostname, parts.port), timeout=timeout)


def head(method: str = "POST", path: str = "/embed", **headers: str) -> bytes:
    """A request's head; `_` in the names of headers stands for `-`."""
    named = {
        "Host": "localhost",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def one_answer(connection: socket.socket) -> bytes:
    """Head and body of an answer that has a Content-Length; the connection may stay open."""
    received, length = b"", None
    while length is None or len(received) < length:
        part = connection.recv(65536)
        assert part, f"closed within an answer: {received!r}"
        received += part
        top, end, _ = received.partition(b"\r\n\r\n")
        if end:
            told = re.search(rb"content-length: (\d+)", top.lower())
            assert told is not None, top
            length = len(top + end) + int(told[1])
    return received


def until_closed(connection: socket.socket, seconds: float = 60) -> bytes:
    """All that comes until the server closes; fails if it does not."""
    received, end = b"", time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            part = connection.recv(65536)
        except ConnectionResetError:
            return received
        if not part:
            return received
        received += part
    raise AssertionError("the connection was left open")


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


def error(answer: bytes) -> dict[str, Any]:
    """The error of an answer, after a check of its shape."""
    top, _, body = answer.partition(b"\r\n\r\n")
    content = json.loads(body)
    assert set(content) == {"error"}
    found: dict[str, Any] = content["error"]
    assert {"code", "message", "request_id"} <= set(found) <= {
        "code", "message", "request_id", "detail"
    }  # fmt: skip
    assert f"x-request-id: {found['request_id']}".encode() in top.lower()
    return found
