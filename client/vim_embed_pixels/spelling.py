"""What to say of names that are not there: the nearest that is, and which there are."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

_LISTED = 30
_ALIKE = 0.6
_LEAST = 2  # letters


def absent(
    wanted: Sequence[str], names: Sequence[str], what: str = "column", which: str = ""
) -> str:
    """`no column 'RA_deg' (did you mean 'RA'?), but id, RA, DE`, to follow `it has`.

    which: said of them, such as `of numbers`.
    """
    told = [f"{name!r}{_nearest(name, names)}" for name in wanted]
    several = what if len(wanted) == 1 else f"{what}s"
    return f"no {several} {which and f'{which} '}{' and '.join(told)}, but {listed(names)}"


def listed(names: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
    return (", ".join(names[:_LISTED]) or "none at all") + more


def _nearest(name: str, names: Sequence[str]) -> str:
    spelt = {one.lower(): one for one in reversed(names)}
    wanted = name.lower()
    begun = [
        one
        for one in spelt
        if len(one) >= _LEAST and (one.startswith(wanted) or wanted.startswith(one))
    ]
    found = get_close_matches(wanted, spelt, 1, _ALIKE) or sorted(begun, key=len)[-1:]
    return f" (did you mean {spelt[found[0]]!r}?)" if found else ""
