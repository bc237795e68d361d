"""Who hears of what the batcher and its workers do; metrics implement it."""

from __future__ import annotations

from typing import Protocol

from vim_embed.tickets import BatchKey


class Observer(Protocol):
    """Hears of batches, of rows that never reach an engine, of failures and of self-checks."""

    def batch(self, key: BatchKey, rows: int, requests: int, seconds: float) -> None: ...

    def dropped(self, key: BatchKey, rows: int, reason: str) -> None: ...

    def worker_failed(self, device: str, cause: str) -> None: ...

    def checked(self, model: str, ok: bool) -> None: ...


class SilentObserver:
    """Hears and forgets."""

    def batch(self, key: BatchKey, rows: int, requests: int, seconds: float) -> None:
        return None

    def dropped(self, key: BatchKey, rows: int, reason: str) -> None:
        return None

    def worker_failed(self, device: str, cause: str) -> None:
        return None

    def checked(self, model: str, ok: bool) -> None:
        return None
