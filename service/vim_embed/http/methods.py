"""What every route answers beside its own methods: HEAD where there is GET, and OPTIONS."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Mount
from starlette.types import ASGIApp, Receive, Scope, Send

# The methods that routes are asked for.
_ASKED = ("GET", "POST", "PUT", "PATCH", "DELETE")


class HeadAndOptions:
    """Health checks use HEAD; proxies and browsers ask with OPTIONS."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope.get("method")
        if scope["type"] != "http" or method not in ("HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
        elif method == "HEAD":
            # The server knows from its own scope that no body follows the head.
            as_get = {**scope, "method": "GET"}
            try:
                await self.app(as_get, receive, send)
            finally:
                scope["route"] = as_get.get("route")
        elif allowed := allow(scope):
            await Response(status_code=204, headers={"Allow": allowed})(scope, receive, send)
        else:
            await self.app({**scope, "method": "GET"}, receive, send)  # which knows no such route


def allow(scope: Scope) -> str:
    """The value of `Allow` for a request's path; empty where no route has it."""
    routes: Sequence[BaseRoute] = [
        route for route in scope["app"].router.routes if not isinstance(route, Mount)
    ]
    methods = [
        method
        for method in _ASKED
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in routes)
    ]
    if "GET" in methods:
        methods.insert(1, "HEAD")
    return ", ".join([*methods, "OPTIONS"] if methods else [])
