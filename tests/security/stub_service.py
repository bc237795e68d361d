"""`vim-embed-server` as it is, but with the engine without torch: the whole server, small.

The device is the CPU, since torch would be imported to look for others.
"""

from __future__ import annotations

import os

import numpy as np

from vim_embed import cli
from vim_embed.engines import build
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.engines.fault_injection import Faults
from vim_embed.engines.interface import Engine, Outputs, Staged
from vim_embed.settings import Settings

# How often a row has its embedding, for tests that need large answers.
WIDTH = int(os.environ.get("STUB_WIDTH", "1"))


class FaultyEngine(ArithmeticEngine):
    """Meets the faults that are armed, as the torch engine does."""

    def __init__(self, faults: Faults | None) -> None:
        super().__init__()
        self._faults = faults

    def run(self, staged: Staged) -> Outputs:
        if self._faults is not None:
            self._faults.strike(staged.rows)
        outputs = super().run(staged)
        return {name: np.tile(array, (1, WIDTH)) for name, array in outputs.items()}


def arithmetic(settings: Settings, faults: Faults | None = None) -> list[Engine]:
    """In place of the torch engines of the settings."""
    return [FaultyEngine(faults)]


if __name__ == "__main__":
    build.build_engines = arithmetic
    os.environ.setdefault("VIM_EMBED_DEVICE", "cpu")
    cli.main()
