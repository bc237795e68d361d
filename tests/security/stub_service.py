"""`vim-embed-server` as it is, but with the engine without torch: the whole server, small."""

from __future__ import annotations

from vim_embed import cli
from vim_embed.engines.fault_injection import Faults
from vim_embed.engines.interface import ArithmeticEngine, Engine, Outputs, Staged
from vim_embed.http import app
from vim_embed.settings import Settings


class FaultyEngine(ArithmeticEngine):
    """Meets the faults that are armed, as the torch engine does."""

    def __init__(self, faults: Faults | None) -> None:
        super().__init__()
        self._faults = faults

    def run(self, staged: Staged) -> Outputs:
        if self._faults is not None:
            self._faults.strike(staged.rows)
        return super().run(staged)


def arithmetic(settings: Settings, faults: Faults | None = None) -> list[Engine]:
    """In place of the torch engines of the settings."""
    return [FaultyEngine(faults)]


if __name__ == "__main__":
    app.build_engines = arithmetic
    cli.main()
