"""Answers that clients have not taken yet, counted in the arena of bodies.

A small answer goes to the connection at once. A large one goes piece by piece, as the client takes
it, and counts within `--inflight-bytes` until its last piece. The HTTP processes import this too,
so it imports no numpy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vim_embed.errors import PayloadTooLarge, ServiceError
from vim_embed.http.body.arena import Arena, Holder
from vim_embed.http.body.buffer import no_room
from vim_embed.http.body.reading import HOLDER, RELEASES

# Of an answer that a connection has at once. What is smaller is not counted.
PIECE = 128 * 1024
Refuse = Callable[[ServiceError, Scope], ASGIApp]


class HoldAnswers:
    """Sends an application's large answers piece by piece, counted as long as they last."""

    def __init__(
        self, app: ASGIApp, arena: Arena, refuse: Refuse, client_of: Callable[[Scope], str]
    ) -> None:
        """refuse: the answer where the arena has no room for the right one. client_of: whose share
        a request takes.
        """
        self.app = app
        self.arena = arena
        self.refuse = refuse
        self.client_of = client_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope.setdefault("state", {})[HOLDER] = Holder(self.client_of(scope))
        start: Message | None = None  # not sent before it is clear that there is room
        refused = False

        async def send_held(message: Message) -> None:
            nonlocal start, refused
            if message["type"] == "http.response.start":
                start = message
                return
            if refused:
                return
            body = message.get("body", b"")
            try:
                give_back = self._held(scope, body)
            except ServiceError as error:
                if start is None:
                    raise  # in the midst of a stream
                refused = True
                await self.refuse(error, scope)(scope, receive, send)
                return
            try:
                if start is not None:
                    await send(start)
                    start = None
                await _send_pieces(message, body, send)
            finally:
                give_back()

        await self.app(scope, receive, send_held)

    def _held(self, scope: Scope, body: bytes) -> Callable[[], None]:
        """Count an answer in place of what its request held. Gives what ends that."""
        if len(body) <= PIECE:
            return lambda: None
        for release in scope.get("state", {}).get(RELEASES, ()):
            release()
        return hold(self.arena, len(body), scope["state"][HOLDER])


def hold(arena: Arena, size: int, holder: Holder) -> Callable[[], None]:
    """Count an answer of `size` bytes until the result is called.

    Raises QueueFull, or PayloadTooLarge where it would not fit if it were alone.
    """
    offset = arena.count(size, holder)
    if offset is not None:
        return partial(arena.give_back, offset, size, holder)
    check_answer_fits(arena, size)
    raise no_room(arena, size, holder)


def check_answer_fits(arena: Arena, size: int) -> None:
    """Raise PayloadTooLarge for an answer that would not even fit if it were alone."""
    if size > arena.size:
        raise PayloadTooLarge(
            f"the answer of {size / 1e6:.0f} MB does not fit into the {arena.size / 1e6:.0f} MB "
            "that are kept for bodies and answers: send fewer rows per request, or raise "
            "--inflight-bytes"
        )


async def _send_pieces(message: Message, body: bytes, send: Send) -> None:
    """The server waits with each piece until the client has taken most of the one before."""
    if len(body) <= PIECE:
        await send(message)
        return
    for begin in range(0, len(body), PIECE):
        more = begin + PIECE < len(body) or message.get("more_body", False)
        # A copy, not a view, which would keep the whole answer until its last byte was taken.
        await send({**message, "body": body[begin : begin + PIECE], "more_body": more})
