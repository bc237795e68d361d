"""A body's memory is free with its answer, not only after a garbage collection."""

from __future__ import annotations

import gc
import io
import logging
import time
import tracemalloc
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from safetensors.numpy import save

from support.serving import NPY, npy, running
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.engines.interface import Outputs, Staged
from vim_embed.http.app import create_app
from vim_embed.settings import Settings
from vim_embed_client.compression import CompressedBody

REQUESTS = 10
PIXELS = np.full((340, 3, 32, 32), 7, np.uint8)  # 1 MB
BODY = npy(PIXELS)
ZSTD = b"".join(CompressedBody([BODY], "zstd", media_type=""))


class FailingEngine(ArithmeticEngine):
    """Fails on pixels that are all 9, and is slow with 8."""

    def run(self, staged: Staged) -> Outputs:
        outputs = super().run(staged)
        first = outputs["embedding"][0, 0]
        if first == 9:
            raise RuntimeError("nine")
        if first == 8:
            time.sleep(0.3)
        return outputs


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(create_app(Settings(), FailingEngine(image_size=32))) as address:
        yield address


@pytest.fixture
def traced() -> Iterator[None]:
    logging.disable()  # pytest keeps the records, with the frames of their exceptions
    tracemalloc.start(1)
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    tracemalloc.stop()
    logging.disable(logging.NOTSET)


CASES = {
    "npy": (200, BODY, NPY),
    "chunked": (200, BODY, NPY),
    "zstd": (200, ZSTD, NPY | {"Content-Encoding": "zstd"}),
    "safetensors": (
        200,
        save({"pixel_values": PIXELS}),
        {"Content-Type": "application/vnd.safetensors", "Accept": "application/x-npy"},
    ),
    "cut short": (400, ZSTD[:-3], NPY | {"Content-Encoding": "zstd"}),
    "wrong shape": (422, npy(PIXELS.reshape(340, 1, 96, 32)), NPY),
    "late": (504, npy(np.full_like(PIXELS, 8)), NPY | {"Timeout": "0.1"}),
    "failed": (500, npy(np.full_like(PIXELS, 9)), NPY),
}


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_kept(url: str, traced: None, name: str) -> None:
    status, body, headers = CASES[name]
    with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
        held = []
        for _ in range(REQUESTS):
            content = iter([body]) if name == "chunked" else io.BytesIO(body)
            assert client.post("/embed", content=content).status_code == status
            time.sleep(0.3 if name == "late" else 0.02)
            held.append(tracemalloc.get_traced_memory()[0])
    assert held[-1] - held[1] < 2 * len(BODY), [each // 1000 for each in held]
