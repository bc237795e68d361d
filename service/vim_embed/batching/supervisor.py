"""Looks after the workers: notices those that hang or lost a thread, and lets them begin anew.

A worker that failed loads its engine anew in a thread of its own, after a pause that doubles with
each failure in a row; after too many, or where the engine says that it cannot recover, it is lost.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vim_embed.batching.worker import Worker
from vim_embed.engines.interface import EngineFailed

_LOG = logging.getLogger(__name__)
_INTERVAL = 0.1  # seconds between two looks at the workers
_SLOW = 0.1  # of the seconds that a forward may take: from then on it is reported as slow


@dataclass(frozen=True)
class RestartPolicy:
    """What a worker is given: seconds for one forward, failures in a row, seconds between them.

    restart: seconds for loading the engine anew.
    """

    forward: float = 120.0
    failures: int = 5
    first_pause: float = 0.1
    longest_pause: float = 10.0
    restart: float = 600.0

    @property
    def slow(self) -> float:
        """Seconds after which a forward is reported as slow, long before it counts as a hang."""
        return _SLOW * self.forward

    def pause(self, failures: int) -> float:
        """Seconds before the restart that follows this many failures in a row."""
        return min(self.longest_pause, self.first_pause * 2.0 ** (failures - 1))


class Supervisor:
    """Watches the workers a few times a second, in a thread of its own."""

    def __init__(
        self,
        workers: Sequence[Worker],
        policy: RestartPolicy,
        *,
        after_each_look: Callable[[], None],
        on_all_lost: Callable[[], None],
    ) -> None:
        self.policy = policy
        self._workers = workers
        self._after_each_look = after_each_look
        self._on_all_lost = on_all_lost
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="vim-embed-supervise", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Nothing is restarted any more."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=5)

    def worker_failed(self, worker: Worker) -> None:
        """Let it begin anew; called by the worker."""
        threading.Thread(
            target=self._restart, args=(worker,), name="vim-embed-restart", daemon=True
        ).start()

    def slow(self, worker: Worker) -> str | None:
        """What is to be said of a forward that takes long, or None if none does."""
        seconds = worker.state.longest
        if seconds <= self.policy.slow:
            return None
        limit, taken = self.policy.forward, f"a forward has taken {seconds:.1f} s so far"
        if seconds > limit:
            return f"{taken}, and still computes: smaller batches (--batch-rows) take less"
        return f"{taken}; at {limit:g} s it counts as a hang"

    def _watch(self) -> None:
        while not self._stopping.wait(_INTERVAL):
            try:
                for worker in self._workers:
                    self._look_at(worker)
                self._after_each_look()
            except Exception:
                _LOG.exception("the supervision recovered from a fault of its own")

    def _look_at(self, worker: Worker) -> None:
        state = worker.state  # the one that is looked at is the one that fails
        if worker.status == "up":
            limit = self.policy.forward
            if state.hangs(limit, computes=worker.engine.device.startswith("cpu")):
                worker.fail(state, "hang", f"no end of a forward within {limit:g} s")
            elif not state.threads_alive and not state.ending:
                worker.fail(state, "thread", "a worker thread ended")
        elif worker.status == "restarting" and self._restart_hangs(worker):
            limit = self.policy.restart
            self._lose(worker, f"its restart did not end within {limit:.0f} s")

    def _restart_hangs(self, worker: Worker) -> bool:
        """Loading anew can hang too, and it runs in a thread that nobody can end."""
        return time.monotonic() - worker.failed_at > self.policy.restart

    def _restart(self, worker: Worker) -> None:
        while worker.status == "restarting":
            worker.failures += 1
            if worker.failures > self.policy.failures:
                self._lose(worker, f"{worker.reason}; it failed {worker.failures} times in a row")
                return
            if self._stopping.wait(self.policy.pause(worker.failures)):
                return
            try:
                worker.engine.restart()
            except EngineFailed as error:
                self._lose(worker, f"{worker.reason}; {error}")
            except Exception as error:
                _LOG.exception("restart failed")
                worker.reason = f"{type(error).__name__} while loading anew: {error}"
            else:
                worker.return_to_work()

    def _lose(self, worker: Worker, reason: str) -> None:
        worker.lose(reason)
        if all(other.status == "lost" for other in self._workers):
            self._on_all_lost()
