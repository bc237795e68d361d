"""A fake service over loopback, and clients of both kinds behind one blocking interface."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import pytest
from numpy.typing import NDArray

from vim_embed_client import AsyncClient, Client

from .fake_service import SIZE, FakeService, serve


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VIM_EMBED_URL", "VIM_EMBED_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def _app() -> Iterator[tuple[dict[str, Any], str]]:
    current: dict[str, Any] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await current["app"](scope, receive, send)

    with serve(app) as url:
        yield current, url


@pytest.fixture
def service(_app: tuple[dict[str, Any], str]) -> FakeService:
    """The fake service's state, fresh for each test."""
    service = FakeService()
    _app[0]["app"] = service.app()
    return service


@pytest.fixture
def url(_app: tuple[dict[str, Any], str], service: FakeService) -> str:
    """Where the fake service answers."""
    return _app[1]


class Blocking:
    """An AsyncClient whose methods block, so that one test can try both clients."""

    def __init__(self, client: AsyncClient, runner: asyncio.Runner) -> None:
        self._runner = runner
        self._client = client

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            async def run() -> Any:
                result = method(*args, **kwargs)
                return await result if inspect.isawaitable(result) else result

            outcome = self._runner.run(run())
            return Blocking(outcome, self._runner) if isinstance(outcome, AsyncClient) else outcome

        return call


class MakeClient(Protocol):
    """Builds a client of one of the two kinds for the fake service."""

    def __call__(self, **options: Any) -> Any: ...


@pytest.fixture(params=["sync", "async"])
def make_client(request: pytest.FixtureRequest, url: str) -> Iterator[MakeClient]:
    """A factory of clients; the test runs once per kind."""
    made: list[Any] = []

    def make(**options: Any) -> Any:
        options = dict[str, Any](base_url=url, backoff=0.01) | options
        if request.param == "sync":
            made.append(Client(**options))
        else:
            made.append(Blocking(AsyncClient(**options), runner))
        return made[-1]

    with asyncio.Runner() as runner:
        yield make
        for client in made:
            client.close()


@pytest.fixture
def client(make_client: MakeClient) -> Any:
    """A client of the fake service; the test runs once per kind."""
    return make_client()


@pytest.fixture
def pixels() -> NDArray[np.float32]:
    """Ten distinct float32 rows (10, 3, SIZE, SIZE)."""
    shape = (10, 3, SIZE, SIZE)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)
