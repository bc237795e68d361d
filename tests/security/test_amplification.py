"""Answers of layers may be hundreds of times their request: they are counted before any forward."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from support.fixtures_vim import DATA
from support.serving import NPY, npy, running
from support.waiting import until
from vim_embed.engines.build import build_engines
from vim_embed.http.app import create_app
from vim_embed.settings import Settings
from vim_embed.types.model_info import GRANULARITIES

PIXELS = np.random.default_rng(2).integers(0, 256, (64, 3, 16, 16), dtype=np.uint8)
ROW = 4 * 2592  # bytes of all layers, of 768 bytes of pixels
LIMIT, ROOM = 60 * ROW, 8 * 1024**2


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[FastAPI, str]]:
    micro = f"micro={DATA / 'vim_micro.pth'}"
    settings = Settings(
        models=(micro,), device="cpu", max_body_bytes=LIMIT, inflight_bytes=ROOM
    )  # fmt: skip
    app = create_app(settings, build_engines(settings))
    with running(app) as url:
        yield app, url


def ask(url: str, rows: int, accept: str = "*/*", **query: str) -> httpx.Response:
    headers = {**NPY, "Accept": accept}
    return httpx.post(f"{url}/embed", content=npy(PIXELS[:rows]), headers=headers, params=query)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_what_layers_take_is_known(service: tuple[FastAPI, str], granularity: str) -> None:
    app, url = service
    answer = ask(url, 3, layers=granularity).raise_for_status()
    length = int.from_bytes(answer.content[:8], "little")
    tensors = json.loads(answer.content[8 : 8 + length])
    found = sum(prod(tensor["shape"]) for name, tensor in tensors.items() if name[0] != "_")
    info = app.state.service.ready_model("micro")
    assert found == 3 * info.layer_numbers[granularity]
    assert 4 * info.layer_numbers["all"] == ROW


def test_what_is_too_much_meets_no_forward(service: tuple[FastAPI, str]) -> None:
    app, url = service
    arena, metrics = app.state.arena, app.state.service.metrics
    before = metrics.totals("micro").batches
    answer = ask(url, 61, layers="all")
    assert answer.status_code == 413
    assert f"{61 * ROW} bytes, over the limit of {LIMIT}: send 60 at once" in answer.text
    answer = ask(url, 60, "application/json", layers="all")
    assert answer.status_code == 413
    assert "the answer of 10 MB does not fit into the 8 MB" in answer.text
    held = arena.take(ROOM - 60 * ROW)
    assert held is not None
    answer = ask(url, 60, layers="all")
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
    arena.give_back(held, ROOM - 60 * ROW)
    assert metrics.totals("micro").batches == before
    assert ask(url, 60, layers="all").status_code == 200
    until(lambda: arena.held == 0)
