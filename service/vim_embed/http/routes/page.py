"""`GET /`: the status page, and `GET /status`: the numbers it shows.

The page and its files hold nothing secret and need no key; `/status` and `/embed`, which the page
asks, do where keys are set.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi import Path as PathParameter
from fastapi.openapi.models import Example
from starlette.responses import FileResponse

from vim_embed.errors import InvalidInput, NotFound
from vim_embed.http.openapi import examples
from vim_embed.http.openapi.schemas import StatusAnswer, answers, json_answer
from vim_embed.serving.service import Service

router = APIRouter()
_FOLDER = Path(__file__).parent.parent / "page"
_ASSETS = {
    "page.css": "text/css",
    "api.js": "text/javascript",
    "status.js": "text/javascript",
    "try.js": "text/javascript",
    "icon.svg": "image/svg+xml",
    "example.png": "image/png",
}
PAGE_PATHS = ("/", *(f"/page/{name}" for name in _ASSETS))
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


_NAMES = {name: Example(value=name) for name in _ASSETS}
_Name = Annotated[
    str, PathParameter(openapi_examples={**_NAMES, "not_found": Example(value="other.js")})
]
_FILES = {
    kind: {
        "schema": {"type": "string"},
        "examples": {name: {"summary": name} for name in _ASSETS if _ASSETS[name] == kind},
    }
    for kind in _ASSETS.values()
}


@router.get(
    "/",
    summary="The status page",
    response_class=FileResponse,
    responses=answers({"content": {"text/html": {"schema": {"type": "string"}}}}, open_to_all=True),
)
async def page() -> FileResponse:
    """Models, throughput and the last errors in a browser, and a box to try an image in."""
    return FileResponse(_FOLDER / "page.html", media_type="text/html", headers=_HEADERS)


@router.get(
    "/page/{name}",
    summary="A file of the status page",
    response_class=FileResponse,
    responses=answers({"content": _FILES}, NotFound, InvalidInput),
)
async def asset(name: _Name) -> FileResponse:
    """Style, script, icon, and an example image."""
    if name not in _ASSETS:
        raise NotFound(f"the page has no file {name!r}: it has {', '.join(_ASSETS)}")
    return FileResponse(_FOLDER / name, media_type=_ASSETS[name], headers=_HEADERS)


@router.get(
    "/status",
    summary="What the service is doing now",
    response_model=None,
    responses=answers(json_answer(StatusAnswer, status=examples.STATUS)),
)
async def status(request: Request) -> dict[str, object]:
    """Models, queue, rates and latency of the last minute, and the last errors."""
    service: Service = request.app.state.service
    return service.status()
