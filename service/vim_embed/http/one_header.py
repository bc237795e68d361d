"""A header that a request has once: of two, one would have no effect."""

from __future__ import annotations

from starlette.requests import Request

from vim_embed.errors import MalformedRequest


def one_header(request: Request, name: str) -> str | None:
    """The header's value; None without it. Raises MalformedRequest where it is there twice."""
    values = request.headers.getlist(name)
    if len(values) > 1:
        raise MalformedRequest(f"the header {name} is there twice: which one is meant?")
    return values[0] if values else None
