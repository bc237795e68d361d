"""The fake service as a program, in place of `vim-embed-server`.

`serve` takes the same flags; the first model's name says how it behaves: `dies`, `fails` (to
load), `slow` (to load), `deaf` (to SIGTERM), anything else works. `bare` prints a bare result.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from typing import Any

import click
import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .fake_service import FakeService, entry


class _Loading(FakeService):
    state = "ready"

    async def models(self, request: Request) -> Response:
        shown = entry() | {"state": self.state, "reason": "no such file"}
        return JSONResponse({"models": [shown], "default": "vim-tiny"})


@click.group()
def main() -> None:
    pass


@main.command(context_settings={"ignore_unknown_options": True})
@click.option("--host", required=True)
@click.option("--port", required=True, type=int)
@click.option("--model", "models", multiple=True, required=True)
@click.argument("others", nargs=-1)
def serve(host: str, port: int, models: tuple[str, ...], others: tuple[str, ...]) -> None:
    print("flags:", *models, *others, flush=True)
    service = _Loading()
    kind = models[0]
    if kind == "dies":
        sys.exit("no weights anywhere")
    if kind == "fails":
        service.state = "failed"
    if kind == "slow":
        service.state = "loading"
        threading.Timer(0.5, lambda: setattr(service, "state", "ready")).start()
    config = uvicorn.Config(service.app(), host, port, ws="none", lifespan="off")
    server = uvicorn.Server(config)
    if kind == "deaf":
        server.handle_exit = lambda *_: None  # type: ignore[method-assign]
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    server.run()


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("flags", nargs=-1)
def bare(flags: tuple[str, ...]) -> None:
    if "broken" in flags:
        raise RuntimeError("no such backend")
    print("a line of log")
    result: dict[str, Any] = {"rows_per_s": 100.0, "rows": 8, "flags": flags}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
