"""Finds rows whose input was the same to the byte, such as a file that is there twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from vim_embed_client.bulk.part_files import PartContent
from vim_embed_client.formats import Array

_NAMED = 10
_GROUPS = 1000


def identical_rows(contents: Callable[[], Iterable[PartContent]]) -> dict[str, Any]:
    """How many rows have the input of another row, and the groups that they form.

    {"rows": 5, "groups": [{"count": 3, "ids": ["a.png", "b.png", "c.png"]}, ...]}: at most 1,000
    groups, of each the first ten ids. contents: gives the parts anew each time it is called.
    Memory: 8 bytes a row, and the sorting of these.
    """
    prints = [content.row_fingerprints for content in contents()]
    repeated = _repeated(np.concatenate(prints)) if prints else np.empty(0, "<u8")
    if not len(repeated):
        return {"rows": 0, "groups": []}
    groups: dict[int, dict[str, Any]] = {}
    rows = 0
    for content in contents():
        of_rows = content.row_fingerprints
        places = np.flatnonzero(np.isin(of_rows, repeated))
        rows += len(places)
        for place in places.tolist():
            key = int(of_rows[place])
            if key not in groups and len(groups) == _GROUPS:
                continue
            group = groups.setdefault(key, {"count": 0, "ids": []})
            group["count"] += 1
            if len(group["ids"]) < _NAMED:
                group["ids"].append(content.ids[place])
    return {"rows": rows, "groups": list(groups.values())}


def _repeated(values: Array) -> Array:
    """The values that are there more than once."""
    unique, counts = np.unique(values, return_counts=True)
    found: Array = unique[counts > 1]
    return found
