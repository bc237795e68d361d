"""Large answers go piece by piece and count in the arena; small ones go as they are."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import numpy as np
import pytest
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Message, Scope

from vim_embed.errors import PayloadTooLarge, QueueFull, ServiceError
from vim_embed.http.body.arena import Arena
from vim_embed.http.body.held_answers import PIECE, HoldAnswers
from vim_embed.http.body.reading import RELEASES
from vim_embed.http.formats.answers import render, rendering_bytes
from vim_embed.http.formats.json_numbers import number_pieces
from vim_embed.http.formats.v2_wire import Output, infer_answer

SIZE = 5 * PIECE + 7
BODY = np.random.default_rng(1).bytes(SIZE)


def refuse(error: ServiceError, scope: Scope) -> Response:
    return PlainTextResponse(error.code, error.status)


async def sent(
    answer: Response,
    arena: Arena,
    *,
    scope: Scope | None = None,
    waiting: Callable[[Message], Awaitable[None]] | None = None,
) -> list[Message]:
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)
        if waiting is not None:
            await waiting(message)

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    app = HoldAnswers(answer, arena, refuse, lambda _: "")
    await app({"type": "http", "method": "GET", **(scope or {})}, receive, send)
    return messages


def whole(messages: list[Message]) -> bytes:
    assert [m["type"] for m in messages].count("http.response.start") == 1
    assert [m.get("more_body", False) for m in messages[1:]] == [True] * (len(messages) - 2) + [
        False
    ]
    return b"".join(message["body"] for message in messages[1:])


@pytest.mark.parametrize("size", [0, 1, PIECE, PIECE + 1, 2 * PIECE, SIZE])
async def test_an_answer_comes_whole_in_pieces(size: int) -> None:
    messages = await sent(Response(BODY[:size]), Arena.private(2 * SIZE))
    assert whole(messages) == BODY[:size]
    assert len(messages) == 1 + max(1, -(-size // PIECE))
    assert dict(messages[0]["headers"])[b"content-length"] == str(size).encode()


async def test_it_counts_until_its_last_piece_is_sent() -> None:
    arena, held = Arena.private(2 * SIZE), list[int]()

    async def look(message: Message) -> None:
        held.append(arena.held)

    await sent(Response(BODY), arena, waiting=look)
    assert min(held) >= SIZE
    assert arena.held == 0


async def test_a_client_that_leaves_ends_the_count() -> None:
    arena, reached = Arena.private(2 * SIZE), asyncio.Event()

    async def stand_still(message: Message) -> None:
        if message.get("body"):
            reached.set()
            await asyncio.Event().wait()

    sending = asyncio.ensure_future(sent(Response(BODY), arena, waiting=stand_still))
    await reached.wait()
    assert arena.held >= SIZE
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert arena.held == 0


async def test_it_takes_the_place_of_its_request() -> None:
    arena = Arena.private(SIZE)
    offset = arena.take(SIZE)
    assert offset is not None
    releases = [lambda: arena.give_back(offset, SIZE)]
    messages = await sent(Response(BODY), arena, scope={"state": {RELEASES: releases}})
    assert whole(messages) == BODY


@pytest.mark.parametrize(
    ("room", "error"), [(SIZE + 4096, QueueFull), (SIZE // 2, PayloadTooLarge)]
)
async def test_without_room_the_answer_is_a_refusal(room: int, error: type[ServiceError]) -> None:
    arena = Arena.private(room)
    arena.take(4097)
    messages = await sent(Response(BODY), arena)
    assert messages[0]["status"] == error.status
    assert whole(messages) == error.code.encode()


async def test_a_stream_goes_on() -> None:
    """Of pieces of any size, as static files have them."""

    async def parts() -> object:
        for begin in range(0, SIZE, 3 * PIECE // 2):
            yield BODY[begin : begin + 3 * PIECE // 2]

    arena = Arena.private(2 * SIZE)
    messages = await sent(StreamingResponse(parts()), arena)  # type: ignore[arg-type]
    assert b"".join(message["body"] for message in messages[1:]) == BODY
    assert arena.held == 0


@pytest.mark.parametrize(
    "shape", [(0, 8), (3, 8), (5, 4096), (2, 20_000), (1, 50_000), (3, 90, 90)]
)
def test_lists_in_pieces_are_what_json_makes_of_them(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    outputs, origin = {"embedding": array, "other": -array}, {"model": "é"}
    assert "".join(number_pieces(array)) == json.dumps(array.tolist())
    flat = np.ascontiguousarray(array).reshape(-1)
    assert "".join(number_pieces(flat)) == json.dumps(flat.tolist())
    for layers in (True, False):
        answer = render(
            outputs, "application/json", origin=origin, dtype="float32", encoding="float",
            layers=layers, timing="",
        )  # fmt: skip
        lists = {name: value.tolist() for name, value in outputs.items()}
        expected = {**({"layers": lists} if layers else lists), "provenance": origin}
        assert answer.body == json.dumps(expected).encode()
        assert len(answer.body) <= rendering_bytes(outputs, "application/json", "float32") + 200
    tensors = [Output(name, value, binary=False) for name, value in outputs.items()]
    content, _ = infer_answer({"id": "7"}, tensors)
    assert json.loads(content)["outputs"][1] == {
        "name": "other", "shape": list(shape), "datatype": "FP32", "data": (-flat).tolist(),
    }  # fmt: skip


def test_no_number_is_no_number() -> None:
    for size in (3, 40_000):
        with pytest.raises(ValueError, match="not JSON compliant"):
            list(number_pieces(np.full(size, np.nan, np.float32)))
