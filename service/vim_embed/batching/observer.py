"""Who hears of what the queue and its workers do; metrics implement it."""

from __future__ import annotations

from typing import Protocol

from vim_embed.batching.request import BatchKey


class Observer(Protocol):
    """Hears of requests that enter and leave, of batches, of rows that are dropped, of failures
    and of self-checks.
    """

    def entered(self, key: BatchKey) -> None: ...

    def left(self, key: BatchKey) -> None: ...

    def staged(self, key: BatchKey, seconds: float) -> None: ...

    def batch(self, key: BatchKey, rows: int, requests: int, seconds: float) -> None: ...

    def dropped(self, key: BatchKey, rows: int, reason: str) -> None: ...

    def worker_failed(self, device: str, cause: str) -> None: ...

    def checked(self, model: str, ok: bool) -> None: ...


class SilentObserver:
    """Hears and forgets."""

    def entered(self, key: BatchKey) -> None:
        return None

    def left(self, key: BatchKey) -> None:
        return None

    def staged(self, key: BatchKey, seconds: float) -> None:
        return None

    def batch(self, key: BatchKey, rows: int, requests: int, seconds: float) -> None:
        return None

    def dropped(self, key: BatchKey, rows: int, reason: str) -> None:
        return None

    def worker_failed(self, device: str, cause: str) -> None:
        return None

    def checked(self, model: str, ok: bool) -> None:
        return None
