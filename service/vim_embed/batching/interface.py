"""Where rows go to be embedded: the interface of the queue."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Protocol

from vim_embed.batching.request import EmbedRequest
from vim_embed.types.model_info import CheckReport


class RowQueue(Protocol):
    """Where rows go to be embedded: a BatchQueue, or what passes them on (cluster)."""

    @property
    def up(self) -> bool:
        """Whether anything takes rows."""
        ...

    @property
    def problems(self) -> dict[str, str]:
        """By device, why it takes none."""
        ...

    def degraded(self, model: str) -> dict[str, str]:
        """By device, why it gives less of the model than it should, or soon will."""
        ...

    @property
    def devices(self) -> dict[str, str]:
        """The state of every device's worker: up, restarting or lost."""
        ...

    @property
    def waiting_rows(self) -> int: ...

    @property
    def waiting_bytes(self) -> int: ...

    @property
    def retry_after(self) -> int:
        """Seconds after which who was refused may try again."""
        ...

    def start(self) -> None: ...

    def submit(self, request: EmbedRequest) -> EmbedRequest:
        """Queue a request and give it back, or raise QueueFull, PayloadTooLarge or Draining."""
        ...

    def check(self, model: str) -> list[Future[CheckReport]]:
        """Compare the model's golden sample, on each device."""
        ...

    def why_unavailable(self, model: str) -> str | None:
        """Why nobody runs the model, now or after a restart; None if somebody does."""
        ...

    def busy_with(self, model: str) -> bool:
        """Whether rows of the model are under way."""
        ...

    def stop_accepting(self) -> None: ...

    def drain(self, timeout: float) -> bool:
        """Refuse new rows and wait for the rest; False if time ran out."""
        ...
