"""Whose address a request has: a proxy's word counts only where a setting names the proxy."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from contextlib import suppress

from starlette.types import ASGIApp, Receive, Scope, Send

_UNIX = "unix"  # stands for whoever comes over the Unix socket
_HEADER = b"x-forwarded-for"
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class ForwardedAddresses:
    """Puts the address that a trusted proxy names in `X-Forwarded-For` into the scope.

    Every proxy appends who asked it, so the list is read from its end: behind the proxies that are
    trusted stands the client, and what the client wrote itself, further ahead, counts for nothing.
    """

    def __init__(self, app: ASGIApp, proxies: Sequence[str]) -> None:
        """proxies: addresses, networks, or "unix". Raises ValueError that names the fix."""
        self.app = app
        self._unix = _UNIX in proxies
        self._networks = [_network(each) for each in proxies if each != _UNIX]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._trusts_peer(scope):
            named = [value for name, value in scope["headers"] if name == _HEADER]
            client = self._client(b",".join(named).decode("latin-1").split(","))
            if client is not None:
                scope["client"] = (client, 0)
        await self.app(scope, receive, send)

    def _trusts_peer(self, scope: Scope) -> bool:
        client = scope.get("client")
        return self._unix if client is None else self._trusts(_address(client[0]))

    def _trusts(self, address: _Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)

    def _client(self, named: Sequence[str]) -> str | None:
        """The last address that is no trusted proxy's; None where that is none at all."""
        found = None
        for text in reversed(named):
            address = _address(_without_port(text.strip()))
            if address is None:
                break  # who wrote this knows no addresses: the one behind it is the best known
            found = str(address)
            if not self._trusts(address):
                break
        return found


def share_of(address: str) -> str:
    """Whose share of the queue an address takes: of IPv6 its network's, of which one host has all
    2^64 addresses.
    """
    found = _address(address)
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found or address)


def _address(text: str) -> _Address | None:
    with suppress(ValueError):
        found = ipaddress.ip_address(text)
        mapped = getattr(found, "ipv4_mapped", None)
        return mapped or found
    return None


def _without_port(text: str) -> str:
    """`1.2.3.4:5` and `[::1]:5`, as some proxies write addresses."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text.strip("[]"), strict=False)
    except ValueError as error:
        raise ValueError(
            f"--trusted-proxies {text!r} is no address: write one as 10.0.0.5, a network as "
            "10.0.0.0/24, or unix for whoever comes over the Unix socket"
        ) from error
