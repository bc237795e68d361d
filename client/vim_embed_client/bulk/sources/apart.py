"""Cut-outs of a catalogue, made in a process of their own.

To cut out a galaxy takes many short calls, each of which gives Python's lock away and waits for it
again. Among the threads that make and send the other rows, that costs more than the work itself;
in another process, it runs beside them. The rows are the same to the bit.

The two speak in pickles, through pipes that nobody else has; a file's bytes are never unpickled.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TypeAlias

from vim_embed_client.bulk.sources.options import ReadOptions
from vim_embed_client.bulk.sources.reader import Entry, Item, Reader, ReaderOver, Skipped
from vim_embed_client.bulk.sources.registry import open_reader
from vim_embed_client.errors import InputError, VimEmbedError
from vim_embed_client.formats import Array

LEAST_ROWS = 2000  # for which it is worth the second or two that another process takes to start
_GROUP_BYTES = 1 << 18  # of what entries were made of, that go together
_ENTRY_BYTES = 1 << 10  # that an entry counts at least
_PIPE_BYTES = 1 << 20  # that the other process may be ahead

_START = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    f"from {__name__} import serve; serve()"
)
_Group: TypeAlias = list[Entry | VimEmbedError]


@dataclass(frozen=True, slots=True)
class Made:
    """Pixels that are made already, and what to note of them."""

    pixels: Array
    note: str

    def __call__(self) -> Array:
        return self.pixels


class ReaderApart(ReaderOver):
    """A reader of a source, the rows of which another process reads where there are many."""

    def __init__(self, source: str, options: ReadOptions) -> None:
        super().__init__(open_reader(source, options))
        self._source, self._options = source, options

    def read(self, start: int) -> Iterator[Entry]:
        """As of the reader. Raises VimEmbedError where the other process is ended."""
        if (self.count() or 0) - start < LEAST_ROWS:
            yield from self._reader.read(start)
            return
        with _process() as process:
            _order(process, self._source, self._options, start)
            for group in _groups(process):
                for one in group:
                    if isinstance(one, VimEmbedError):
                        raise one
                    yield one


def open_reader_apart(source: str, options: ReadOptions) -> Reader:
    """As `open_reader`, but many cut-outs of a catalogue are made in another process."""
    return (open_reader if options.sky is None else ReaderApart)(source, options)


@contextmanager
def _process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is about to `serve`, and is ended afterwards."""
    with subprocess.Popen(
        [sys.executable, "-c", _START],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for this process to handle
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _order(process: subprocess.Popen[bytes], *order: object) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin as orders:  # that it ended, its answers tell
        pickle.dump(sys.path, orders)
        pickle.dump(order, orders)


def _groups(process: subprocess.Popen[bytes]) -> Iterator[_Group]:
    """What the process answers, to its end. Raises VimEmbedError where it ends before."""
    assert process.stdout is not None
    _widen(process.stdout.fileno())
    while True:
        try:
            group: _Group = pickle.load(process.stdout)
        except (EOFError, pickle.UnpicklingError):
            raise VimEmbedError(
                f"the process that makes the cut-outs ended (exit code {process.wait()}), as where "
                "memory runs out: the same command goes on from the rows that are finished"
            ) from None
        if not group:
            return
        yield group


def _widen(pipe: int) -> None:
    """Let a pipe hold more, on Linux; the process waits oftener elsewhere."""
    try:
        from fcntl import F_SETPIPE_SZ, fcntl

        fcntl(pipe, F_SETPIPE_SZ, _PIPE_BYTES)
    except (ImportError, OSError):  # a user's pipes may hold only so much together
        pass


def serve() -> None:
    """The other process: reads its order from the standard input, and writes groups of entries.

    An empty group is the end; an error that ended the reading is the last one before it.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    source, options, start = pickle.load(sys.stdin.buffer)
    with suppress(BrokenPipeError), answers:  # nobody wants them any more
        for group in _grouped(_made_or_why_not(source, options, start)):
            pickle.dump(group, answers, pickle.HIGHEST_PROTOCOL)
            answers.flush()


def _made_or_why_not(
    source: str, options: ReadOptions, start: int
) -> Iterator[Entry | VimEmbedError]:
    try:
        yield from map(_made, open_reader(source, options).read(start))
    except VimEmbedError as error:
        yield error


def _made(entry: Entry) -> Entry:
    if isinstance(entry, Skipped) or not callable(entry.data):
        return entry
    try:
        return replace(entry, data=Made(entry.data(), entry.note))
    except InputError as error:
        return Skipped(id=entry.id, reason=error.message)


def _grouped(entries: Iterable[Entry | VimEmbedError]) -> Iterator[_Group]:
    group: _Group = []
    size = 0
    for entry in entries:
        group.append(entry)
        size += max(_ENTRY_BYTES, entry.size if isinstance(entry, Item) else 0)
        if size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group
    yield []
