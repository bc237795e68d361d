"""What an HTTP process tells the model process of a request, in one internal header.

When the request began, whose connection it came over, and where its body lies in the process's
arena, or what reading it failed with. Only the internal socket takes this header; HTTP processes
never pass on one that a client sent.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from vim_embed.errors import ERRORS, InternalError, ServiceError, ShareFull
from vim_embed.http.body.arena import Arena
from vim_embed.http.body.reading import HANDED_OVER
from vim_embed.http.deadline import BEGUN
from vim_embed.http.web_pages import ADMITTED

HEADER = "x-vim-embed-handover"
_KINDS: tuple[type[ServiceError], ...] = (*ERRORS, ShareFull)
_BY_CODE = {error.reason or error.code: error for error in _KINDS}


@dataclass(frozen=True)
class Handoff:
    """The header's value.

    begun: in `time.monotonic()`. client, server: as ASGI has them. admitted: the HTTP process found
    nothing against Host and Origin. body: arena, offset and size. failed: code (or
    reason), message and `Retry-After` of what reading the body failed with.
    """

    begun: float
    client: tuple[str, int] | None = None
    server: tuple[str, int | None] | None = None
    admitted: bool = False
    body: tuple[int, int, int] | None = None
    failed: tuple[str, str, int | None] | None = None

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, value: bytes) -> Handoff:
        return cls(**json.loads(value))


def failure(error: ServiceError) -> tuple[str, str, int | None]:
    """What `Handoff.failed` is of an error."""
    return error.reason or error.code, error.message, error.retry_after


class BodyHandoff:
    """Puts what the header says into the request, for `read_body` and for whoever asks who sent it.

    The internal socket's own addresses mean nothing to the application.
    """

    def __init__(self, app: ASGIApp, arenas: Sequence[Arena]) -> None:
        self.app = app
        self.arenas = arenas

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            for name, value in scope["headers"]:
                if name == HEADER.encode():
                    self._take_over(scope, Handoff.decode(value))
        await self.app(scope, receive, send)

    def _take_over(self, scope: Scope, handoff: Handoff) -> None:
        state = scope.setdefault("state", {})
        state[BEGUN], state[ADMITTED] = handoff.begun, handoff.admitted
        scope["client"], scope["server"] = _address(handoff.client), _address(handoff.server)
        if handoff.failed is not None:
            code, message, retry_after = handoff.failed
            kind: type[ServiceError] = _BY_CODE.get(code, InternalError)
            state[HANDED_OVER] = kind(message, retry_after=retry_after)
        elif handoff.body is not None:
            arena, offset, size = handoff.body
            state[HANDED_OVER] = self.arenas[arena].view(offset, size)


def _address(of_json: Any) -> tuple[Any, Any] | None:
    return None if of_json is None else (of_json[0], of_json[1])
