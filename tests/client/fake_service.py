"""A small service that follows docs/http.md, with faults on demand.

The embedding of a row is a plain function of its pixels (`embed_rows`), so that a test can tell
a row that was lost, swapped or changed on the way.
"""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvicorn
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from safetensors.numpy import save
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

Array = NDArray[Any]
Fault = Callable[["FakeService", Request], Awaitable[Response | None]]

SIZE = 16
DIM = 6
LAYERS = ["patch_embed", "blocks.0", "blocks.1", "last_hidden_state"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PROJECTION = np.random.default_rng(7).standard_normal((3, DIM))


def embed_rows(pixels: Array, *, mean: Any = MEAN, std: Any = STD) -> Array:
    """(B, 3, H, W) -> (B, DIM) float32; no two different rows come out alike."""
    values = pixels.astype(np.float64)
    if pixels.dtype == np.uint8:
        values = values / 255 - np.reshape(mean, (1, 3, 1, 1))
        values /= np.reshape(std, (1, 3, 1, 1))
    ramp = np.linspace(1, 2, values[0, 0].size).reshape(values.shape[2:])
    embedded: Array = ((values * ramp).mean(axis=(2, 3)) @ _PROJECTION).astype(np.float32)
    return embedded


def decode(data: bytes) -> Array:
    """An encoded image as (3, SIZE, SIZE) uint8."""
    with Image.open(io.BytesIO(data)) as image:
        resized = image.convert("RGB").resize((SIZE, SIZE))
    return np.asarray(resized).transpose(2, 0, 1)


@dataclass
class Seen:
    """One request as it arrived at /embed."""

    headers: dict[str, str]
    query: dict[str, str]
    rows: int = 0
    dtype: str = ""
    filenames: list[str] = field(default_factory=list)


@dataclass
class FakeService:
    """The service's state: what it saw, and the faults that its next requests meet."""

    faults: deque[Fault] = field(default_factory=deque)
    seen: list[Seen] = field(default_factory=list)
    health_requests: int = 0
    provenance: dict[str, str] = field(
        default_factory=lambda: {
            "Model": "vim-tiny",
            "Revision": "main",
            "Weights-Digest": "sha256:aaaa",
            "Preprocessing-Digest": "sha256:bbbb",
            "Pooling": "mean",
            "Dtype": "float32",
            "Backend": "reference",
            "Device": "cuda:0",
            "Exact": "false",
            "Random-Weights": "true",
            "Version": "0.1.0",
        }
    )
    ready: bool = True
    max_rows: int = 1024
    running: int = 0
    most_running: int = 0
    cancelled: int = 0
    always: Fault | None = None

    async def embed(self, request: Request) -> Response:
        seen = Seen(dict(request.headers), dict(request.query_params))
        self.seen.append(seen)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            fault = self.faults.popleft() if self.faults else self.always
            answer = await fault(self, request) if fault else None
            return answer or await self._answer(request, seen)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def _answer(self, request: Request, seen: Seen) -> Response:
        try:
            pixels = await self._pixels(request, seen)
        except (UnidentifiedImageError, ValueError) as problem:
            return error(415, "unsupported_media_type", str(problem))
        seen.rows, seen.dtype = len(pixels), pixels.dtype.name
        if len(pixels) > self.max_rows:
            return error(413, "payload_too_large", f"at most {self.max_rows} rows")
        if seen.query.get("model", "vim-tiny") not in ("vim-tiny", "hustvl/Vim-tiny-midclstok"):
            return error(404, "unknown_model", "no such model; loaded: vim-tiny")
        options = {k: _triple(seen.query[k]) for k in ("mean", "std") if k in seen.query}
        return self._encode(embed_rows(pixels, **options), request, seen)

    async def _pixels(self, request: Request, seen: Seen) -> Array:
        kind = request.headers["content-type"].split(";")[0]
        if kind == "application/x-npy":
            array: Array = np.load(io.BytesIO(await request.body()), allow_pickle=False)
            return array
        assert kind == "multipart/form-data", kind
        rows = []
        async with request.form() as form:
            for _, part in form.multi_items():
                assert not isinstance(part, str)
                seen.filenames.append(part.filename or "")
                rows.append(decode(await part.read()))
        return np.stack(rows)

    def _encode(self, embedding: Array, request: Request, seen: Seen) -> Response:
        embedding = embedding.astype(seen.query.get("dtype", "float32"))
        accept = request.headers["accept"]
        if "layers" in seen.query:
            tensors = {name: embedding * (i + 1) for i, name in enumerate(LAYERS)}
            content = save(tensors, {"layers": json.dumps(LAYERS)})
            assert accept == "application/vnd.safetensors"
        else:
            buffer = io.BytesIO()
            np.save(buffer, embedding)
            content = buffer.getvalue()
            assert accept == "application/x-npy"
        return Response(content, headers=self.headers(request), media_type=accept)

    def headers(self, request: Request) -> dict[str, str]:
        """The headers of a successful answer."""
        timing = {"Server-Timing": "queue;dur=1.5, forward;dur=20.25, total;dur=22"}
        request_id = {"X-Request-ID": request.headers["x-request-id"]}
        return {f"X-Vim-Embed-{k}": v for k, v in self.provenance.items()} | timing | request_id

    async def models(self, request: Request) -> Response:
        return JSONResponse({"models": [entry()], "default": "vim-tiny"})

    async def model(self, request: Request) -> Response:
        if request.path_params["name"] != "vim-tiny":
            return error(404, "unknown_model", "no such model; loaded: vim-tiny")
        return JSONResponse(entry())

    async def layers(self, request: Request) -> Response:
        assert request.query_params["granularity"] in ("blocks", "leaves")
        return JSONResponse({"layers": LAYERS, "kinds": dict.fromkeys(LAYERS[:-1], "Block")})

    async def live(self, request: Request) -> Response:
        return JSONResponse({"status": "live"})

    async def readiness(self, request: Request) -> Response:
        self.health_requests += 1
        if not self.ready:
            return error(503, "not_ready", "vim-tiny is still loading")
        return JSONResponse({"status": "ready", "models": {"vim-tiny": "ready"}})

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/embed", self.embed, methods=["POST"]),
                Route("/models", self.models),
                Route("/models/{name}", self.model),
                Route("/models/{name}/layers", self.layers),
                Route("/health/live", self.live),
                Route("/health/ready", self.readiness),
            ]
        )


def _triple(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def entry() -> dict[str, Any]:
    """The catalogue entry of the one model."""
    return {
        "name": "vim-tiny",
        "aliases": ["hustvl/Vim-tiny-midclstok"],
        "kind": "vim",
        "state": "ready",
        "reason": None,
        "dim": DIM,
        "dtype": "float32",
        "device": "cpu",
        "backend": "reference",
        "backend_reason": "no CUDA device",
        "weights": {
            "source": "random",
            "revision": None,
            "file": None,
            "digest": "sha256:aaaa",
            "random": True,
        },
        "preprocessing": {
            "image_size": SIZE,
            "interpolation": "bicubic",
            "mean": list(MEAN),
            "std": list(STD),
            "channels": "RGB",
            "digest": "sha256:bbbb",
        },
        "poolings": ["mean", "cls", "patch-mean"],
        "channels": 3,
        "granularities": ["blocks", "residual", "leaves", "all"],
        "limits": {"max_rows": 1024, "max_body_bytes": 1 << 28, "batch_rows": 64},
    }


def error(status: int, code: str, message: str, **headers: str) -> Response:
    """An answer in the service's error shape; header names with _ for -."""
    body = {"error": {"code": code, "message": message, "request_id": "from-the-service"}}
    return JSONResponse(body, status, {k.replace("_", "-"): v for k, v in headers.items()})


def refuse(status: int, code: str, message: str = "no", **headers: str) -> Fault:
    """A fault that answers with an error, after reading the body."""

    async def fault(service: FakeService, request: Request) -> Response:
        await request.body()
        return error(status, code, message, **headers)

    return fault


def answer(content: bytes, media_type: str, status: int = 200) -> Fault:
    """A fault that answers with these bytes."""

    async def fault(service: FakeService, request: Request) -> Response:
        await request.body()
        return Response(content, status, service.headers(request), media_type)

    return fault


def wait_for(event: threading.Event) -> Fault:
    """A fault that only delays its request until `event` is set or the client leaves."""

    async def fault(service: FakeService, request: Request) -> Response | None:
        await request.body()
        while not event.is_set():
            await asyncio.sleep(0.005)
        return None

    return fault


async def break_off(service: FakeService, request: Request) -> Response:
    """A fault: the connection closes in the middle of the answer's body."""
    await request.body()
    headers = service.headers(request) | {"Content-Length": "1000"}
    return _Truncated(b"x" * 10, headers=headers, media_type="application/x-npy")


class _Truncated(Response):
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})


@contextmanager
def serve(app: Any) -> Iterator[str]:
    """Run an ASGI app on a free port in a thread; yields its URL."""
    config = uvicorn.Config(app, port=0, log_level="critical", ws="none", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        thread.join(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
        server.force_exit = True  # what a failed test left unanswered
        thread.join()
