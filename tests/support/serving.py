"""A real server over loopback for tests: uvicorn in a thread, on a free port."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import uvicorn
from fastapi import FastAPI
from numpy.typing import NDArray

from vim_embed.server.sockets import uvicorn_config

NPY = {"Content-Type": "application/x-npy"}


@contextmanager
def running(app: FastAPI, *, wait: bool = True) -> Iterator[str]:
    """Serve `app`; gives the base URL, with `wait` once the models are loaded."""
    service = app.state.service
    refused = service.metrics.connection_refused
    server = uvicorn.Server(uvicorn_config(app, service.settings, on_refused=refused))
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        _wait(lambda: server.started)
        scheme = "https" if service.settings.tls_cert else "http"
        url = f"{scheme}://127.0.0.1:{listening.getsockname()[1]}"
        if wait:
            _wait(lambda: "loading" not in _states(url))
        yield url
    finally:
        server.should_exit = True
        thread.join(timeout=60)
    assert not thread.is_alive()


def npy(array: NDArray[Any]) -> bytes:
    """The array as a .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def from_npy(content: bytes) -> NDArray[Any]:
    """The array of a .npy file."""
    array: NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    return array


def _states(url: str) -> str:
    models = httpx.get(f"{url}/models").json()["models"]
    return " ".join(model["state"] for model in models)


def _wait(condition: Any, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the server did not come up"
        time.sleep(0.02)
