"""Who is asking: forwarded addresses count only from proxies that a setting names, and keys that
nobody set are nobody's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from support.serving import running
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.http.app import create_app
from vim_embed.http.body.reading import HOLDER
from vim_embed.http.forwarded import ForwardedAddresses, share_of
from vim_embed.settings import Settings


async def _seen(proxies: list[str], peer: str | None, *values: str) -> str:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["client"])

    headers = [(b"x-forwarded-for", value.encode()) for value in values]
    scope = {"type": "http", "headers": headers, "client": None if peer is None else (peer, 4711)}
    await ForwardedAddresses(app, proxies)(scope, None, None)  # type: ignore[arg-type]
    return seen[0][0] if seen[0] else "nobody"


@pytest.mark.parametrize(
    ("proxies", "peer", "values", "client"),
    [
        (["127.0.0.1"], "127.0.0.1", ["203.0.113.7"], "203.0.113.7"),
        (["127.0.0.1"], "127.0.0.1", [], "127.0.0.1"),
        (["127.0.0.1"], "127.0.0.1", ["1.1.1.1, 203.0.113.7"], "203.0.113.7"),  # invented first
        (["127.0.0.1"], "127.0.0.1", ["1.1.1.1", "203.0.113.7"], "203.0.113.7"),  # two lines
        (["127.0.0.1"], "10.0.0.9", ["203.0.113.7"], "10.0.0.9"),  # no proxy of ours
        (["10.0.0.0/24"], "10.0.0.9", ["203.0.113.7, 10.0.0.8"], "203.0.113.7"),  # two of ours
        (["10.0.0.0/24"], "10.0.0.9", ["10.0.0.8, 10.0.0.7"], "10.0.0.8"),  # a client among them
        (["10.0.0.0/24"], "::ffff:10.0.0.9", ["203.0.113.7"], "203.0.113.7"),
        (["127.0.0.1"], "127.0.0.1", ["203.0.113.7:5555"], "203.0.113.7"),
        (["127.0.0.1"], "127.0.0.1", ["[2001:db8::1]:80"], "2001:db8::1"),
        (["127.0.0.1"], "127.0.0.1", ["2001:db8::1"], "2001:db8::1"),
        (["127.0.0.1"], "127.0.0.1", ["unknown"], "127.0.0.1"),
        (["127.0.0.1"], "127.0.0.1", ["203.0.113.7, _hidden"], "127.0.0.1"),
        (["127.0.0.1"], "127.0.0.1", [","], "127.0.0.1"),
        (["unix"], None, ["203.0.113.7"], "203.0.113.7"),
        (["127.0.0.1"], None, ["203.0.113.7"], "nobody"),
        (["unix"], "127.0.0.1", ["203.0.113.7"], "127.0.0.1"),
        (["::1"], "::1", ["203.0.113.7"], "203.0.113.7"),
    ],
)
async def test_only_named_proxies_are_believed(
    proxies: list[str], peer: str | None, values: list[str], client: str
) -> None:
    assert await _seen(proxies, peer, *values) == client


@pytest.mark.parametrize("proxy", ["nginx", "10.0.0.0/33", "*"])
def test_what_is_no_proxy_is_refused_at_start(proxy: str) -> None:
    with pytest.raises(ValueError, match="--trusted-proxies"):
        ForwardedAddresses(lambda *_: None, [proxy])  # type: ignore[arg-type]


def test_the_addresses_of_one_ipv6_network_share() -> None:
    assert share_of("2001:db8:1:2:3::4") == share_of("2001:db8:1:2:ffff::1")
    assert share_of("2001:db8:1:3::1") != share_of("2001:db8:1:2::1")
    assert share_of("::ffff:10.0.0.1") == share_of("10.0.0.1") == "10.0.0.1"
    assert share_of("10.0.0.1") != share_of("10.0.0.2")


@contextmanager
def _asked(settings: Settings) -> Iterator[tuple[httpx.Client, list[str]]]:
    """A client of a service whose route `/whose` notes whose share a request takes."""
    app: FastAPI = create_app(settings, ArithmeticEngine())
    seen: list[str] = []

    @app.get("/whose")
    async def whose(request: Request) -> None:
        seen.append(request.scope["state"][HOLDER].client)

    with running(app, wait=False) as url, httpx.Client(base_url=url) as http:
        yield http, seen


def test_invented_addresses_and_keys_are_one_client() -> None:
    with _asked(Settings()) as (http, seen):
        for number in range(5):
            forged = {
                "X-Forwarded-For": f"203.0.113.{number}",
                "Forwarded": f"for=203.0.113.{number}",
                "X-Real-IP": f"203.0.113.{number}",
                "Authorization": f"Bearer invented-{number}",
            }
            assert http.get("/whose", headers=forged).status_code == 200
    assert set(seen) == {"127.0.0.1"}


def test_behind_a_named_proxy_each_address_is_a_client() -> None:
    with _asked(Settings(trusted_proxies="127.0.0.1")) as (http, seen):
        for number in range(3):
            http.get("/whose", headers={"X-Forwarded-For": f"9.9.9.9, 203.0.113.{number}"})
    assert seen == ["203.0.113.0", "203.0.113.1", "203.0.113.2"]


def test_each_key_that_was_set_is_a_client() -> None:
    with _asked(Settings(api_keys="first-key,second-key")) as (http, seen):
        for key in ("first-key", "second-key", "first-key", "no-key-of-ours"):
            http.get("/whose", headers={"Authorization": f"Bearer {key}"})
    assert len(seen) == 3
    assert seen[0] == seen[2] != seen[1]
