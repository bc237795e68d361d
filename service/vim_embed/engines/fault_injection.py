"""Faults on demand, for tests of how the service recovers. Off unless `--fault-injection` is set.

`POST /faults` arms one; the next forwards meet it. Never use it on a service that people rely on.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from typing import Literal, get_args

from vim_embed.engines.interface import EngineFailed

Kind = Literal["exception", "out_of_memory", "hang", "thread", "engine", "exit"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_EXIT_CODE = 70


class _ThreadEnds(BaseException):
    """Ends a worker's thread: nothing catches it."""


@dataclass
class Fault:
    """What the next `forwards` meet. seconds: how long a hang lasts."""

    kind: Kind
    forwards: int = 1
    seconds: float = 0.0


class Faults:
    """The armed faults, in order. From any thread."""

    def __init__(self) -> None:
        self._armed: list[Fault] = []
        self._lock = threading.Lock()
        self.met = dict.fromkeys(KINDS, 0)

    def arm(self, fault: Fault) -> None:
        with self._lock:
            self._armed.append(fault)

    @property
    def armed(self) -> int:
        """Forwards that will still fail."""
        with self._lock:
            return sum(fault.forwards for fault in self._armed)

    def strike(self, rows: int) -> None:
        """Fail a forward of `rows` rows as the first armed fault says, if there is one."""
        fault = self._next()
        if fault is None:
            return
        if fault.kind == "hang":
            time.sleep(fault.seconds)
        elif fault.kind == "exit":
            os._exit(_EXIT_CODE)
        elif fault.kind == "thread":
            raise _ThreadEnds
        elif fault.kind == "engine":
            raise EngineFailed("an injected fault")
        elif fault.kind == "exception":
            raise RuntimeError("an injected fault")
        elif rows > 1:
            _run_out_of_memory()

    def _next(self) -> Fault | None:
        with self._lock:
            if not self._armed:
                return None
            fault = self._armed[0]
            fault.forwards -= 1
            if fault.forwards <= 0:
                self._armed.pop(0)
            self.met[fault.kind] += 1
            return fault


def _run_out_of_memory() -> None:
    import torch

    raise torch.OutOfMemoryError("an injected fault")
