"""How many events to expect where few were seen, or none."""

from __future__ import annotations

_NORMAL_95 = 1.96


def most_events(seen: float) -> float:
    """The 97.5 % upper bound on the mean of a Poisson law of which so many events were seen.

    Of none, it is 3.7.

    By Byar's approximation (Rothman and Boice 1979, Epidemiologic analysis with a programmable
    calculator), to 1 % of the exact bound; of 0.35 events as well, as a mean over draws has.
    """
    more = seen + 1
    return float(more * (1 - 1 / (9 * more) + _NORMAL_95 / (3 * more**0.5)) ** 3)
