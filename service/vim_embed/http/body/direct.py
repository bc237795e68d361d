"""How a server offers to fill a body's memory straight from the socket; an ASGI extension."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

RECEIVE_INTO = "vim_embed.receive_into"
# From bytes so far to the seconds in which the next part has to come.
BodyTimeout = Callable[[int], float]
# (memory of the whole body's length, body_timeout); raises TimeoutError when that ends and
# ClientDisconnect when the client leaves
ReceiveInto = Callable[[memoryview, BodyTimeout], Awaitable[None]]
