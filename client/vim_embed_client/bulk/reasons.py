"""What was left out or remarked on, counted by its reason."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from vim_embed_client.bulk.sources.reader import Skipped

_NAMED = 10
_GROUPS = 100
_OTHER = "other reasons"
_SHOWN = 3
_ONE = r"(?:0x[0-9a-f]+|(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?|\d+(?:\.\d+)?)"
_NUMBER = re.compile(rf"({_ONE})(?: to ({_ONE}))?")


@dataclass
class Group:
    """Rows or files with one reason in common. first: the ids of the first of them.

    reason: as the only one has it; of several, `it` is each of them, and where their numbers
    differ there is the range of these, as in `29.2 to 61.3% are off the edge`.
    """

    reason: str
    count: int = 0
    first: list[str] = field(default_factory=list)

    @property
    def plain(self) -> str:
        """The reason without the name of the first."""
        return _without_name(self.reason, self.first[0] if self.first else "")

    @property
    def ids(self) -> str:
        """`a.png, b.png, c.png and 3 more`."""
        return named(self.first, self.count)

    @property
    def shown(self) -> bool:
        """Whether `ids` names all of them."""
        return self.count <= _SHOWN

    def take(self, other: Group) -> None:
        """Take in a group of the same reason."""
        if self.reason != _OTHER:
            self.reason = _ranges(self.plain, other.plain)
        self.count += other.count
        self.first += other.first[: _NAMED - len(self.first)]


def named(first: Sequence[str], count: int) -> str:
    """`a.png, b.png, c.png and 3 more`, of so many."""
    shown = list(first[:_SHOWN])
    more = f" and {count - len(shown):,} more" if count > len(shown) else ""
    return ", ".join(shown) + more


def _ranges(one: str, other: str) -> str:
    """Two reasons that differ in their numbers alone, as one with ranges of these."""
    others = (found.groups() for found in _NUMBER.finditer(other))

    def ranged(found: re.Match[str]) -> str:
        ends = [text for text in (*found.groups(), *next(others)) if text]
        low, high = min(ends, key=_value), max(ends, key=_value)
        return low if _value(low) == _value(high) else f"{low} to {high}"

    return _NUMBER.sub(ranged, one)


def _value(text: str) -> float:
    return int(text, 16) if text.startswith("0x") else float(text)


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
            self._take(Group(other["reason"], other["count"], list(other["first"])))

    def _take(self, other: Group) -> None:
        key = _NUMBER.sub("#", other.plain)
        if key not in self._groups and len(self._groups) >= _GROUPS:
            key, other = _OTHER, replace(other, reason=_OTHER)
        if key in self._groups:
            self._groups[key].take(other)
        else:
            self._groups[key] = other

    @property
    def count(self) -> int:
        return sum(group.count for group in self._groups.values())

    def __iter__(self) -> Iterator[Group]:
        """The groups, the largest first."""
        return iter(sorted(self._groups.values(), key=lambda group: -group.count))

    def as_json(self) -> list[dict[str, Any]]:
        """For each group its fields."""
        return [asdict(group) for group in self]


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
    """`it` for the name. One that is a number may be any number of the reason."""
    for name in (row_id, os.path.basename(row_id)):
        if name and not re.fullmatch(_ONE, name):
            reason = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "it", reason)
    return reason


def first_reason(left_out: LeftOut) -> str:
    """`: name: why it was left out`, or nothing."""
    for group in (*left_out.skipped, *left_out.passed_over):
        return f": {group.ids}: {group.reason}"
    return ""


def all_reasons(left_out: LeftOut) -> str:
    """The same of all groups, as far as three."""
    groups = [*left_out.skipped, *left_out.passed_over]
    told = [f"{group.ids}: {group.reason}" for group in groups[:_SHOWN]]
    more = [f"{len(groups) - _SHOWN:,} other reasons"] if len(groups) > _SHOWN else []
    return f": {'; '.join([*told, *more])}" if told else ""
