"""What the threads of a worker hold: jobs, and how each goes from phase to phase.

    (idle) ── take rows ──▶ staging ──▶ staged ──▶ running ──▶ (idle)
       │                       │           │           ▲
       │                       │           │           └── when the engine has room
       │                       └───────────┴── the worker fails or stops ──▶ (idle)
       └── a check is asked for ──▶ checking ──▶ (idle)

Each thread has one job at most. One job at most is `staging` or `staged`: that is the batch ahead.
`running` and `checking` are in the engine; together they are `engine.at_once` at most.

All jobs of a (re)start make up one WorkerState. When the worker fails, its state is over for good
and the next restart begins another, so that a thread that hangs, and comes back after minutes,
finds its own state over and touches nothing that is newer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vim_embed.batching.request import Slice
from vim_embed.engines.interface import Outputs
from vim_embed.types.model_info import CheckReport, ModelInfo

Phase = Literal["staging", "staged", "running", "checking"]
IN_ENGINE: tuple[Phase, ...] = ("running", "checking")
AHEAD: tuple[Phase, ...] = ("staging", "staged")
_COMPUTES = 0.02


@dataclass(eq=False)
class Job:
    """What one thread is at. slices: the rows it holds. check: who waits for a comparison,
    and of which model.

    since: when the phase began, in `time.monotonic()`. thread: of the system, whose job it is.
    computed: seconds of processor time that the thread had had then.
    """

    phase: Phase
    slices: Sequence[Slice] = ()
    check: Future[CheckReport] | None = None
    model: str = ""
    since: float = field(default_factory=time.monotonic)
    thread: int = field(default_factory=threading.get_native_id)
    computed: float = field(default_factory=time.thread_time)

    def enter(self, phase: Phase) -> None:
        """Called by the thread whose job it is."""
        self.phase, self.since, self.computed = phase, time.monotonic(), time.thread_time()

    def is_computing(self, now: float) -> bool:
        """Whether the thread has had processor time for _COMPUTES of the phase, as one has that
        shares a core with fifty others. False where the system does not tell.
        """
        try:
            told = Path(f"/proc/self/task/{self.thread}/schedstat").read_text()
        except OSError:
            return False
        return int(told.split()[0]) / 1e9 - self.computed >= _COMPUTES * (now - self.since)

    def seconds(self, now: float) -> float:
        """That it has been at work; a staged batch only waits, so that it can never hang."""
        return 0.0 if self.phase == "staged" else now - self.since


class WorkerState:
    """The threads of one (re)start and their jobs by thread id. Used with the queue's lock held."""

    def __init__(self) -> None:
        self.jobs: dict[int, Job] = {}
        self.threads: list[threading.Thread] = []
        self.ending = False  # takes nothing more; what runs may finish
        self.over = False  # abandoned: what it held is answered or given back already
        self._forward_ended = 0.0

    def begin(self, job: Job) -> None:
        """The calling thread is at this job from now on."""
        self.jobs[threading.get_ident()] = job

    def end(self) -> None:
        """The calling thread is idle again."""
        self.jobs.pop(threading.get_ident(), None)

    def holds(self, job: Job) -> bool:
        """Whether the calling thread still has the job: a staged one can be taken back."""
        return not self.over and self.jobs.get(threading.get_ident()) is job

    def in_phase(self, *phases: Phase) -> list[Job]:
        return [job for job in list(self.jobs.values()) if job.phase in phases]

    @property
    def held(self) -> list[Slice]:
        """Rows that are staged or run; none once it is over."""
        jobs = [] if self.over else list(self.jobs.values())
        return [part for job in jobs for part in job.slices]

    @property
    def longest(self) -> float:
        """Seconds that the slowest job has been at work."""
        now = time.monotonic()
        jobs = [] if self.over else list(self.jobs.values())
        return max((job.seconds(now) for job in jobs), default=0.0)

    def hangs(self, limit: float, *, computes: bool) -> bool:
        """Whether a job has been at work for longer than so many seconds.

        computes: whether threads do the computing, which takes longer on a machine with other
        work: one that computes does not hang then.
        """
        now = time.monotonic()
        jobs = [] if self.over else list(self.jobs.values())
        late = [job for job in jobs if job.seconds(now) > limit]
        return any(not (computes and job.is_computing(now)) for job in late)

    @property
    def threads_alive(self) -> bool:
        return bool(self.threads) and all(thread.is_alive() for thread in self.threads)

    def forward_began(self, launched: float, ended: float) -> float:
        """When the device began a forward that was launched and ended then.

        It computes one after the other, so not before the last one's end: else the seconds of two
        that were launched at once would be counted twice.
        """
        began, self._forward_ended = max(launched, self._forward_ended), ended
        return began

    def deliver(
        self,
        slices: Sequence[Slice],
        outputs: Outputs,
        begin: float,
        seconds: float,
        info: ModelInfo | None,
    ) -> None:
        """Give each slice its rows of a batch. Raises RuntimeError for another number of rows.

        begin, seconds: of the forward. info: of the model on the device that computed it.
        """
        expected = sum(part.rows for part in slices)
        if any(len(array) != expected for array in outputs.values()):
            raise RuntimeError(f"the engine did not return {expected} rows")
        first = 0
        for part in slices:
            rows = {name: array[first : first + part.rows] for name, array in outputs.items()}
            first += part.rows
            if not self.over:
                part.give(rows, begin, seconds, info)
