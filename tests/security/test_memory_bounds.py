"""No body makes the process grow by more than a stated multiple of its bytes: docs/data-path.md."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator

import httpx
import numpy as np
import pytest

from security.processes import MIB, ServerProcess, server_process
from security.test_bodies import SLACK, watching
from support.serving import NPY, npy

SIZE = 2 * MIB
MULTIPLE = 32
JSON = {"Content-Type": "application/json"}
V2 = {"Content-Type": "application/octet-stream"}
FLAGS = ("--log-level", "error")
EMBED, INFER = "/embed", "/v2/models/arithmetic/infer"


def filled(piece: bytes, last: bytes = b"0", size: int = SIZE) -> bytes:
    """`{"inputs": [piece, piece, …, last]}`."""
    return b'{"inputs": [' + piece * (size // len(piece)) + last + b"]}"


def v2(data: bytes) -> bytes:
    tensor = b'{"name": "pixel_values", "shape": [1, 3, 8, 8], "datatype": "FP32", "data": %b}'
    return b'{"inputs": [' + tensor % data + b"]}"


def text_among_many() -> bytes:
    """The kind of body that asked for 24 GB: one long text makes a fixed-width array of all."""
    return filled(b'"",', b'"' + b"x" * (SIZE // 2) + b'"', SIZE // 2)


def safetensors_of_many() -> bytes:
    entry = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    text = json.dumps({f"t{n}": entry for n in range(15_000)}, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text


def form_of_parts() -> tuple[bytes, dict[str, str]]:
    part = b'--b\r\nContent-Disposition: form-data; name="i"; filename="i"\r\n\r\n\r\n'
    return part * (SIZE // len(part)) + b"--b--\r\n", {
        "Content-Type": "multipart/form-data; boundary=b"
    }


BODIES: dict[str, Callable[[], tuple[str, bytes, dict[str, str]]]] = {
    "zeros": lambda: (EMBED, filled(b"0,"), JSON),
    "numbers": lambda: (EMBED, filled(b"-9.25,"), JSON),
    "objects": lambda: (EMBED, filled(b"{},"), JSON),
    "lists": lambda: (EMBED, filled(b"[],"), JSON),
    "nested": lambda: (EMBED, filled(b"[[[]]],"), JSON),
    "texts": lambda: (EMBED, filled(b'"",'), JSON),
    "a text among many": lambda: (EMBED, text_among_many(), JSON),
    "escapes": lambda: (EMBED, b'{"a": "' + b"\\ud83d\\ude00" * (SIZE // 12) + b'"}', JSON),
    "wide text": lambda: (EMBED, '{{"a": "{}"}}'.format("x" * SIZE + "\U0001f600").encode(), JSON),
    "keys": lambda: (EMBED, json.dumps({str(n): 0 for n in range(SIZE // 12)}).encode(), JSON),
    "brackets": lambda: (EMBED, b"[" * SIZE, JSON),
    "commas": lambda: (EMBED, b"," * SIZE, JSON),
    "base64": lambda: (
        EMBED, json.dumps({"inputs": {"base64": base64.b64encode(bytes(SIZE)).decode(),
                                      "shape": [SIZE], "dtype": "uint8"}}).encode(), JSON
    ),
    "v2 zeros": lambda: (INFER, v2(b"[" + b"0," * (SIZE // 2) + b"0]"), V2),
    "v2 texts": lambda: (INFER, v2(b"[" + b'"",' * (SIZE // 3) + b'"' + b"x" * SIZE + b'"]'), V2),
    "v2 objects": lambda: (INFER, v2(b"[" + b"{}," * (SIZE // 3) + b"0]"), V2),
    "v2 inputs": lambda: (INFER, filled(b"[],"), V2),
    "v2 outputs": lambda: (
        INFER, b'{"inputs": [], "outputs": [' + b'{"name":"a"},' * (SIZE // 13) + b"{}]}", V2
    ),
    "safetensors": lambda: (
        EMBED, safetensors_of_many(), {"Content-Type": "application/vnd.safetensors"}
    ),
    "form": lambda: (EMBED, *form_of_parts()),
    "npy of another order": lambda: (
        EMBED, npy(np.asfortranarray(np.zeros((4, 3, 256, 256), ">f8"))[..., :84]), NPY
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server_process(tmp_path_factory.mktemp("server"), *FLAGS) as running:
        for make in BODIES.values():  # so that what is loaded at first use is loaded
            path, body, headers = make()
            httpx.post(running.url + path, content=body[:1000], headers=headers, timeout=60)
        yield running


@pytest.mark.parametrize("kind", BODIES)
def test_memory_grows_by_a_multiple_of_the_body_at_most(server: ServerProcess, kind: str) -> None:
    path, body, headers = BODIES[kind]()
    before = server.cpu
    with watching(server) as watch:
        answer = httpx.post(server.url + path, content=body, headers=headers, timeout=60)
    seconds = server.cpu - before
    times = watch.growth / len(body)
    print(f"{kind}: {answer.status_code}, {times:.1f} times its bytes, {seconds:.2f} s of CPU")
    assert answer.status_code < 500
    assert watch.growth < MULTIPLE * len(body) + SLACK
    assert seconds < 2 * max(1, len(body) / MIB)
