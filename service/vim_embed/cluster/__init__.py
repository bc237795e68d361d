"""The service and bulk runs on a Ray cluster: `serve run vim_embed.cluster:app`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vim_embed.cluster.deployment import app

__all__ = ["app"]


def __getattr__(name: str) -> Any:
    if name == "app":
        from vim_embed.cluster.deployment import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
