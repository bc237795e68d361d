"""When a request began, and after how many seconds its answer is of no use."""

from __future__ import annotations

import math
import time

from starlette.requests import Request

from vim_embed.errors import InvalidInput
from vim_embed.http.one_header import one_header

HEADER = "timeout"
BEGUN = "begun"  # key of a request's state: when its head arrived, in `time.monotonic()`


def begun(request: Request) -> float:
    """When the request began, in whichever process of this machine its head arrived."""
    value: float = request.scope["state"].get(BEGUN, time.monotonic())
    return value


def seconds_left(request: Request, parameter: float | None) -> float | None:
    """The smaller of the header `Timeout` and the route's own parameter; None without both.

    Raises InvalidInput or MalformedRequest.
    """
    header = one_header(request, HEADER)
    given = [] if header is None else [_seconds(header)]
    return min([*given, *([] if parameter is None else [parameter])], default=None)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidInput(
            f"the header Timeout is {text[:40]!r}: give seconds over 0, as 2.5, or leave it out"
        )
    return seconds
