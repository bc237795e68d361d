"""Whose share of the queue and of the memory for bodies a request takes."""

from __future__ import annotations

import hashlib

from starlette.datastructures import Headers
from starlette.types import Scope

from vim_embed.http.auth import Keys, bearer
from vim_embed.http.forwarded import share_of


def client_of(keys: Keys, scope: Scope) -> str:
    """Its key's (as a digest), else its address's; "" where it has none, as on a Unix socket.

    A key that is not accepted is nobody's: callers could invent one for each request.
    """
    if keys:
        key = bearer(Headers(scope=scope).getlist("authorization"))
        if keys.allow(key):
            return hashlib.sha256(key.encode()).hexdigest()
    return share_of(scope["client"][0]) if scope.get("client") else ""
