"""`vim-embed-server` as it is, but with the engine without torch: the whole server, small."""

from __future__ import annotations

from vim_embed import app, cli
from vim_embed.engine import ArithmeticEngine, Engine
from vim_embed.faults import Faults
from vim_embed.settings import Settings


def arithmetic(settings: Settings, faults: Faults | None = None) -> list[Engine]:
    """In place of the torch engines of the settings."""
    return [ArithmeticEngine()]


if __name__ == "__main__":
    app.build_engines = arithmetic
    cli.main()
