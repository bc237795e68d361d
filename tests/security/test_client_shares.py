"""One client, by its key or its address, never fills the memory for bodies and answers alone."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import httpx
import numpy as np
import pytest

from security.processes import MIB
from security.raw_http import connect, head, status, until_closed
from support.serving import NPY, from_npy, npy, running
from support.waiting import until
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.errors import PayloadTooLarge, QueueFull, ShareFull
from vim_embed.http.app import create_app
from vim_embed.http.body.arena import Arena, Holder
from vim_embed.http.body.buffer import BodyBuffer
from vim_embed.settings import Settings

ROOM, BODY = 8 * MIB, MIB
PIXELS = np.random.default_rng(5).integers(0, 256, (2, 3, 8, 8), dtype=np.uint8)


def test_requests_of_one_client_have_its_share_together() -> None:
    arena = Arena.private(ROOM, 0.75)
    greedy = [BodyBuffer(arena, Holder("greedy")) for _ in range(7)]
    for each in greedy[:6]:
        each.allocate(MIB)
    with pytest.raises(ShareFull, match="--client-share of --inflight-bytes"):
        greedy[6].allocate(1)
    with pytest.raises(ShareFull):
        greedy[5].append(bytes(MIB + 1))  # grows within no share either
    modest, nobody = BodyBuffer(arena, Holder("modest")), BodyBuffer(arena)
    modest.allocate(MIB)
    nobody.allocate(MIB)
    with pytest.raises(QueueFull, match="raise --inflight-bytes") as full:
        nobody.append(bytes(MIB + 1))
    assert not isinstance(full.value, ShareFull)
    for each in (*greedy, modest, nobody):
        each.release()
    greedy[6].allocate(ROOM)
    assert arena.held == ROOM


def test_a_client_s_only_request_may_have_all() -> None:
    """In pieces too: none of them waits for another of its own."""
    arena, one = Arena.private(ROOM, 0.25), Holder("one")
    buffer = BodyBuffer(arena, one)
    for _ in range(8):
        buffer.append(bytes(MIB))
    with pytest.raises(PayloadTooLarge):
        buffer.append(b"x")
    buffer.release()
    buffer.allocate(ROOM - MIB)
    with buffer.working(MIB):
        assert one.held == arena.held == ROOM
    buffer.release()
    assert one.held == arena.held == 0


def promise(url: str, key: str, size: int = BODY) -> socket.socket:
    """A request whose body is announced, and so has its memory, and does not come."""
    connection = connect(url)
    known = {"Authorization": f"Bearer {key}", "Content-Length": str(size), **NPY}
    connection.sendall(head(**known) + b"x")
    return connection


def share_refusals(url: str, key: str) -> float:
    text = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {key}"}).text
    line = next(x for x in text.splitlines() if 'refusals_total{reason="client_share"}' in x)
    return float(line.split()[-1])


def test_a_greedy_client_starves_nobody() -> None:
    """It sends twice the room that there is, again and again; another is served all the while."""
    keys = {"api_keys": "greedy-key,modest-key", "inflight_bytes": ROOM, "max_body_bytes": ROOM}
    app = create_app(Settings(**keys), ArithmeticEngine())  # type: ignore[arg-type]
    modest = {"Authorization": "Bearer modest-key", **NPY}
    with running(app, wait=False) as url, ExitStack() as greedy:
        until(lambda: httpx.get(f"{url}/health/ready").status_code == 200)
        for _ in range(6):
            greedy.enter_context(promise(url, "greedy-key"))
        until(lambda: app.state.arena.held == 6 * MIB)
        for _ in range(10):
            with promise(url, "greedy-key") as connection:
                answer = until_closed(connection)
            assert status(answer) == 429
            assert b"--client-share" in answer
            assert b"Retry-After" in answer.title()
        for rows in (PIXELS, np.zeros((1, 3, 800, 800), np.uint8)):  # the second has 1.9 MB
            embedded = httpx.post(f"{url}/embed", content=npy(rows), headers=modest)
            assert embedded.status_code == 200, embedded.text
            assert np.allclose(from_npy(embedded.content)[:, :3], rows.mean(axis=(2, 3)))
        assert share_refusals(url, "modest-key") == 10
        greedy.close()
