"""How far a long run is: a bar on a terminal, else a line a minute for logs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from vim_embed_client.bulk.run import OnProgress
from vim_embed_client.cli.common import rate

_LOG_EVERY_S = 60.0


@contextmanager
def showing_progress(console: Console, *, quiet: bool) -> Iterator[OnProgress]:
    """Yield a function that shows the progress reported to it."""
    if quiet:
        yield lambda done, resumed, total: None
    elif console.is_terminal:
        with _bar(console) as report:
            yield report
    else:
        yield _Log(console).report


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
    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = self._last = time.monotonic()

    def report(self, done: int, resumed: int, total: int | None) -> None:
        now = time.monotonic()
        if now - self._last >= _LOG_EVERY_S:
            self._last = now
            self._console.print(pace(done, resumed, total, now - self._started), soft_wrap=True)


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
