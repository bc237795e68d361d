"""Whose rows come next. Pure: who calls it holds the queue's lock."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vim_embed.batching.request import BatchKey


def next_group(
    groups: Sequence[BatchKey],
    *,
    ahead: bool,
    fills_batch: Callable[[BatchKey], bool],
    idle_elsewhere: Callable[[BatchKey], bool],
) -> BatchKey | None:
    """The group that a device takes its next batch from, or None if it had better wait.

    groups: those that this device can run, the one that has waited longest for its turn first.
    ahead: the device is busy and would only stage the batch. That pays once some group fills a
    batch (more rows may come until the device is free), and never takes rows from a device that
    is idle.
    """
    if ahead:
        groups = [key for key in groups if not idle_elsewhere(key)]
        if not any(fills_batch(key) for key in groups):
            return None
    # The first, not the full one: else small groups would wait until the full ones are empty.
    return groups[0] if groups else None


def shares_of_batch(wanted: Sequence[int], budget: int) -> list[int]:
    """Rows of the next batch for each waiting request, in order of arrival.

    First come, first served, whole requests one after the other: cutting all of them up would
    make all wait for the last. Requests larger than a batch get half of it while smaller ones
    wait, so that a small one is not stuck behind 512 rows: [512, 1, 4] with 32 gives [27, 1, 4],
    and [8, 8] with 8 gives [8, 0].
    """
    large = [want > budget for want in wanted]
    of_large = sum(want for want, is_large in zip(wanted, large, strict=True) if is_large)
    of_small = sum(wanted) - of_large
    for_large = min(of_large, max(-(-budget // 2), budget - of_small))
    left = {True: for_large, False: budget - for_large}
    shares = []
    for want, is_large in zip(wanted, large, strict=True):
        shares.append(min(want, left[is_large]))
        left[is_large] -= shares[-1]
    return shares
