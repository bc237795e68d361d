"""Ids that rows of several sources have in common, as two catalogues of one survey have them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from vim_embed_client.bulk.part_files import PartContent, printable
from vim_embed_client.bulk.reasons import Reasons
from vim_embed_client.bulk.sources.options import ReadOptions
from vim_embed_client.bulk.sources.reader import Skipped

_REPEATED = "its id is that of an earlier row too, of this or another source"


class DistinctIds:
    """Tells which ids an earlier row had. Memory: an int for each row.

    seen: ids of rows that an earlier attempt finished.
    """

    def __init__(self, seen: Iterable[str] = ()) -> None:
        self._seen = {hash(one) for one in seen}

    def repeated(self, row_id: str) -> Skipped | None:
        """The fault of a row whose id an earlier one had."""
        name = printable(row_id)
        if hash(name) in self._seen:
            return Skipped(id=row_id, reason=_REPEATED)
        self._seen.add(hash(name))
        return None


def may_repeat(sources: Sequence[str], options: ReadOptions) -> bool:
    """Whether rows might have one id, which `path#row` excludes."""
    return options.id_header is not None or (options.id_column is not None and len(sources) > 1)


def repeats(contents: Callable[[], Iterable[PartContent]]) -> Reasons:
    """A remark on each finished row that shares its id with another.

    contents: gives the parts anew each time it is called. Memory: 8 bytes a row.
    """
    values = np.fromiter((hash(row_id) for row_id in _ids(contents)), np.int64)
    unique, counts = np.unique(values, return_counts=True)
    several = set(unique[counts > 1].tolist())
    found = Reasons()
    for row_id in _ids(contents) if several else ():
        if hash(row_id) in several:
            found.add(row_id, "its id is that of another row too")
    return found


def _ids(contents: Callable[[], Iterable[PartContent]]) -> Iterator[str]:
    for content in contents():
        yield from content.ids
