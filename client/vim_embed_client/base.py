"""What both clients share: options, and the reading of a failed attempt."""

from __future__ import annotations

import copy
from typing import Self, Unpack

from vim_embed_client.errors import FROM_HTTPX, VimEmbedError, error_from_httpx
from vim_embed_client.options import OptionChanges, Options
from vim_embed_client.requests import Request
from vim_embed_client.retries import retry_delay

HTTPX_ERRORS = tuple(FROM_HTTPX)


class BaseClient:
    """Base of Client and AsyncClient."""

    _options: Options
    _owns_connections = True

    @property
    def base_url(self) -> str:
        """Where the service is."""
        return self._options.base_url

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r})"

    def with_options(self, **changes: Unpack[OptionChanges]) -> Self:
        """A client with other options over the same connections, which stay this one's to close."""
        twin = copy.copy(self)
        twin._options = self._options.changed(changes)
        twin._owns_connections = False
        return twin

    def _failure(self, error: Exception, request: Request) -> VimEmbedError:
        return error_from_httpx(error, url=self.base_url, request_id=request.request_id)

    def _delay(self, error: VimEmbedError, request: Request, attempt: int, elapsed: float) -> float:
        """Seconds until the next attempt; raises `error` where there is to be none."""
        delay = retry_delay(error, attempt=attempt, options=self._options, elapsed=elapsed)
        if delay is None or not request.may_retry:
            raise error
        return delay
