"""What one request may hold in the arena beside its body: while it is read, and while its answer is
made. Both count within `--inflight-bytes`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import Request

from vim_embed.errors import QueueFull
from vim_embed.http.body.held_answers import PIECE, hold
from vim_embed.http.body.reading import HOLDER, RELEASES
from vim_embed.http.body.workspace import Workspace


@contextmanager
def request_memory(request: Request, body_bytes: int = 0) -> Iterator[Workspace]:
    """Memory for what a request's body becomes; it is given back with the answer.

    body_bytes: what the request holds already.
    """
    state = request.scope["state"]
    workspace = Workspace(request.app.state.arena, body_bytes, state[HOLDER])
    state.setdefault(RELEASES, []).append(workspace.release)
    with _asking_for_patience(request):
        yield workspace


@contextmanager
def answer_memory(request: Request, size: int) -> Iterator[None]:
    """Count `size` bytes for the making of an answer, in place of what the request held until now.

    Raises QueueFull or PayloadTooLarge.
    """
    if size <= PIECE:
        yield
        return
    for release in request.scope["state"].get(RELEASES, ()):
        release()
    with _asking_for_patience(request):
        give_back = hold(request.app.state.arena, size, request.scope["state"][HOLDER])
    try:
        yield
    finally:
        give_back()


@contextmanager
def _asking_for_patience(request: Request) -> Iterator[None]:
    """Whoever keeps the memory does not know how fast rows are done."""
    try:
        yield
    except QueueFull as error:
        error.retry_after = request.app.state.service.queue.retry_after
        raise
