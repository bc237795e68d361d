"""uvicorn's server, stopped from outside and with a bounded end of its requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import FrameType

import uvicorn

# Seconds in which requests that are told to end give their last answer.
_LAST_ANSWERS = 2.0


class UvicornServer(uvicorn.Server):
    """uvicorn that goes on listening at the first signal, and ends at the second."""

    def __init__(self, config: uvicorn.Config, on_signal: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_signal = on_signal
        self._signals = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals > 1:
            self.should_exit = self.force_exit = True
        self._on_signal()

    async def end_requests(self, seconds: float) -> None:
        """Wait so long for the requests in flight, then cancel what is left.

        The application answers a request that is cancelled; uvicorn alone would send a plain text.
        """
        tasks = set(self.server_state.tasks)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=max(0.0, seconds))
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=_LAST_ANSWERS)
