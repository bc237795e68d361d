"""Which paths are special: open without a key, quiet in the log, counted as embedding."""

from __future__ import annotations

from vim_embed.http.error_shape import V2
from vim_embed.http.routes import page, v2_state

ANONYMOUS = "anonymous"  # in a request's state: it came without a key where one is wanted
HEALTH = ("/health/live", "/health/ready")
V2_HEALTH = tuple(V2 + path for path in HEALTH)
OPEN = (*HEALTH, *V2_HEALTH, *page.PAGE_PATHS)  # need no key
QUIET = (*OPEN, "/metrics", "/status")
EMBEDDING_ROUTES = (
    "/embed",
    f"{v2_state.MODEL}/infer",
    f"{v2_state.VERSIONED}/infer",
)  # shown by `/status`
