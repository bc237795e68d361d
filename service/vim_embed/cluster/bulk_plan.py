"""How the rows of a bulk run are cut into parts that engines read by themselves.

The cut follows from the sources and the number of rows alone, so that a run which goes on cuts
the same. Rows are read by the client's readers. Knows neither Ray nor models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from vim_embed_client.bulk.part_files import Part
from vim_embed_client.bulk.pipeline import Cursor, digest_of, read_from
from vim_embed_client.bulk.sources.options import ReadOptions
from vim_embed_client.bulk.sources.reader import Entry, Reader
from vim_embed_client.bulk.sources.registry import open_reader


@dataclass(frozen=True)
class Span:
    """The entries [start, stop) of one source; None is to its end."""

    source: str
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class PlannedPart:
    """Whole sources, or one span of a source that has more rows than a part."""

    number: int
    spans: tuple[Span, ...]

    @property
    def follows(self) -> bool:
        """Whether an earlier part holds the beginning of its source."""
        return self.spans[0].start > 0


def plan(sources: Sequence[str], rows: int, options: ReadOptions) -> list[PlannedPart]:
    """All parts in order, of about `rows` rows each.

    A source whose rows are not counted cheaply, such as a tar file, is a part of its own. The
    last span of a source goes to its end, whatever the count says.
    """
    parts: list[tuple[Span, ...]] = []
    group: list[Span] = []
    held = 0
    for source in sources:
        count = open_reader(source, options).count()
        if count is not None and count <= rows:
            if held + count > rows:
                parts.append(tuple(group))
                group, held = [], 0
            group.append(Span(source))
            held += count
            continue
        if group:
            parts.append(tuple(group))
            group, held = [], 0
        starts = range(0, count or 1, rows) if count is not None else range(1)
        parts += [(Span(source, start, start + rows),) for start in starts[:-1]]
        parts.append((Span(source, starts[-1]),))
    if group:
        parts.append(tuple(group))
    return [PlannedPart(number, spans) for number, spans in enumerate(parts)]


def entries_of(part: PlannedPart, options: ReadOptions) -> Iterator[tuple[Cursor, Entry]]:
    """Every entry of a part; where a source cannot be read (any further), one that says so."""

    def reader(source: str) -> Reader:
        return open_reader(source, options)

    for span in part.spans:
        found = read_from([span.source], reader, Cursor(0, span.start))
        yield from islice(found, None if span.stop is None else span.stop - span.start)


def without_rest(planned: Sequence[PlannedPart], parts: dict[int, Part]) -> dict[int, Part]:
    """The parts but for those of a source behind the place where it could not be read.

    Engines read the spans of a source at the same time, and some formats can be read beyond a
    damaged place. A run that reads one row after the other ends there.
    """
    kept: dict[int, Part] = {}
    failed = False
    for one in planned:
        failed = failed and one.follows
        if not failed:
            kept[one.number] = parts[one.number]
            # `read_from` moves on to the next source (there is none) where this one fails.
            failed = len(one.spans) == 1 and parts[one.number].cursor.source > 0
    return kept


def digest(sources: Sequence[str], options: ReadOptions) -> str:
    """Text that changes when a source may have."""
    end = Cursor(len(sources), 0)
    found = digest_of(sources, lambda source: open_reader(source, options), end)
    return hashlib.sha256(found.encode()).hexdigest()
