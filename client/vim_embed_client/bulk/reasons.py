"""What was left out or remarked on, counted by its reason."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from vim_embed_client.bulk.sources.reader import Skipped

_NAMED = 10
_GROUPS = 100
_OTHER = "other reasons"
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+(\.\d+)?")


@dataclass
class Group:
    """Rows or files with one reason in common. reason: as the first of them has it.

    varies: others have other numbers in it.
    """

    reason: str
    count: int = 0
    first: list[str] = field(default_factory=list)
    varies: bool = False

    @property
    def told(self) -> str:
        """The reason, which is not said of all where it is that of the first."""
        varies = self.varies and self.reason != _OTHER
        return f"{self.reason} (the first of them)" if varies else self.reason

    @property
    def plain(self) -> str:
        """The reason without the name of the first."""
        return _without_name(self.reason, self.first[0] if self.first else "")


class Reasons:
    """Groups by reason; two reasons that differ only in their numbers or names are one.

    The first ten of each group are named, and there are at most a hundred groups, so that memory
    stays flat whatever is added.
    """

    def __init__(self, groups: Iterable[Mapping[str, Any]] = ()) -> None:
        self._groups: dict[str, Group] = {}
        self.merge(groups)

    def add(self, row_id: str, reason: str, *, count: int = 1) -> None:
        self._take(Group(reason, count, [row_id]))

    def merge(self, groups: Iterable[Mapping[str, Any]]) -> None:
        """Take over what `as_json` gave."""
        for other in groups:
            self._take(Group(**{**other, "first": list(other["first"])}))

    def _take(self, other: Group) -> None:
        key = _NUMBER.sub("#", other.plain)
        if key not in self._groups and len(self._groups) >= _GROUPS:
            key, other = _OTHER, replace(other, reason=_OTHER)
        group = self._groups.setdefault(key, other)
        if group is not other:
            group.varies |= other.varies or group.plain != other.plain
            group.count += other.count
            group.first += other.first[: _NAMED - len(group.first)]

    @property
    def count(self) -> int:
        return sum(group.count for group in self._groups.values())

    def __iter__(self) -> Iterator[Group]:
        """The groups, the largest first."""
        return iter(sorted(self._groups.values(), key=lambda group: -group.count))

    def as_json(self) -> list[dict[str, Any]]:
        """For each group its fields; `varies` only where it is true."""
        return [
            {name: value for name, value in asdict(group).items() if value or name != "varies"}
            for group in self
        ]


class LeftOut:
    """What became no row: skipped (at fault) and passed over (no row in the first place)."""

    def __init__(self) -> None:
        self.skipped, self.passed_over = Reasons(), Reasons()

    def add(self, one: Skipped) -> None:
        (self.skipped if one.fault else self.passed_over).add(one.id, one.reason)

    def add_all(self, others: LeftOut) -> None:
        self.skipped.merge(others.skipped.as_json())
        self.passed_over.merge(others.passed_over.as_json())


def _without_name(reason: str, row_id: str) -> str:
    for name in (row_id, os.path.basename(row_id)):
        if name:
            reason = reason.replace(name, "it")
    return reason


def first_reason(left_out: LeftOut) -> str:
    """`: name: why it was left out`, or nothing."""
    for group in (*left_out.skipped, *left_out.passed_over):
        return f": {group.first[0]}: {group.reason}"
    return ""
