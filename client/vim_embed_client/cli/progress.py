"""How far a long run is: a bar on a terminal, else a line a minute for logs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from vim_embed_client.bulk.run import OnProgress
from vim_embed_client.bulk.waiting import Waiting
from vim_embed_client.cli.common import rate

_LOG_EVERY_S = 60.0
_LEAST_S = 1.0


@contextmanager
def showing_progress(
    console: Console, *, quiet: bool, waiting: Waiting | None = None
) -> Iterator[OnProgress]:
    """Yield a function that shows the progress reported to it.

    waiting: for what the run waits, which a log says in a minute in which nothing finished.
    """
    if quiet:
        yield lambda done, resumed, total: None
    elif console.is_terminal:
        with _bar(console) as report:
            yield report
    else:
        with _Log(console, waiting or Waiting()).watching() as report:
            yield report


@contextmanager
def _bar(console: Console) -> Iterator[OnProgress]:
    columns = (TextColumn("Embedding"), BarColumn(bar_width=None), _Pace(Column(no_wrap=True)))
    with Progress(*columns, console=console, transient=True, expand=True) as progress:
        task = progress.add_task("", total=None, resumed=0)
        yield lambda done, resumed, total: progress.update(
            task, completed=done, total=total, resumed=resumed
        )


class _Pace(ProgressColumn):
    def render(self, task: Task) -> Text:
        total = None if task.total is None else int(task.total)
        done = int(task.completed)
        return Text(pace(done, task.fields["resumed"], total, task.elapsed or 0.0))


class _Log:
    """A line a minute, also while nothing is reported."""

    def __init__(self, console: Console, waiting: Waiting) -> None:
        self._console, self._waiting = console, waiting
        self._started = self._last = time.monotonic()
        self._known: tuple[int, int, int | None] = (0, 0, None)
        self._told: int | None = None  # rows in the last line
        self._over = threading.Event()
        self._lock = threading.Lock()

    @contextmanager
    def watching(self) -> Iterator[OnProgress]:
        """Yield what takes reports; until the end, a thread tells what is waited for."""
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield self.report
        finally:
            self._over.set()
            thread.join()

    def report(self, done: int, resumed: int, total: int | None) -> None:
        self._known = done, resumed, total
        self._tell()

    def _watch(self) -> None:
        while not self._over.wait(max(_LOG_EVERY_S, _LEAST_S)):
            self._tell()

    def _tell(self) -> None:
        with self._lock:
            now, (done, resumed, total) = time.monotonic(), self._known
            if now - self._last < _LOG_EVERY_S:
                return
            self._last = now
            line = pace(done, resumed, total, now - self._started)
            if done == self._told or not done:
                line += f" · waiting for {self._waiting}"
            self._told = done
            self._console.print(line, soft_wrap=True)


def pace(done: int, resumed: int, total: int | None, seconds: float) -> str:
    """`12,000 of 100,000 rows · 195 rows/s · 0:07:31 left`, as far as it can be said.

    seconds: since the start; the rows of an earlier attempt do not count towards the rate.
    """
    known = [f"{done:,} rows" if total is None else f"{done:,} of {max(done, total):,} rows"]
    if seconds and done > resumed:
        speed = (done - resumed) / seconds
        known.append(rate(speed))
        if total is not None:
            known.append(f"{timedelta(seconds=round(max(0, total - done) / speed))} left")
    return " · ".join(known)
