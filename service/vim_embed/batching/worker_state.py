"""What a worker's threads hold, from a (re)start to a failure, and how rows are handed back."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future

from vim_embed.batching.request import Prepared, Slice
from vim_embed.engines.interface import Outputs
from vim_embed.types.model_info import CheckReport


class Shift:
    """The threads and what they hold, from a (re)start to a failure."""

    def __init__(self) -> None:
        self.prepared: Prepared | None = None
        self.staging: Sequence[Slice] = ()
        self.running: dict[int, Sequence[Slice]] = {}  # by thread
        self.probing: dict[int, Future[CheckReport]] = {}  # by thread
        self.since: dict[int, float] = {}  # when what is under way began, by thread
        self.finished = 0.0  # when a forward last ended
        self.ending = False  # take nothing more
        self.over = False  # abandoned: what it held is answered already
        self.threads: list[threading.Thread] = []

    @property
    def held(self) -> list[Slice]:
        prepared = self.prepared.slices if self.prepared is not None else ()
        running = [part for slices in list(self.running.values()) for part in slices]
        return [*self.staging, *prepared, *running]

    def forward_began(self, launched: float, ended: float) -> float:
        """When the device began a forward: it computes one after the other."""
        began, self.finished = max(launched, self.finished), ended
        return began


def deliver(
    shift: Shift, slices: Sequence[Slice], outputs: Outputs, begin: float, seconds: float
) -> None:
    """Give each slice its rows of a batch. Raises RuntimeError for another number of rows."""
    expected = sum(part.rows for part in slices)
    if any(len(array) != expected for array in outputs.values()):
        raise RuntimeError(f"the engine did not return {expected} rows")
    first = 0
    for part in slices:
        rows = {name: array[first : first + part.rows] for name, array in outputs.items()}
        first += part.rows
        if not shift.over:
            part.give(rows, begin, seconds)
