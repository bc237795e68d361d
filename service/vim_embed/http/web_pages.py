"""Which web pages may use the service: what a browser says of them in Host and Origin.

A browser lets any page send requests to any address, a service on loopback included. Two headers,
which no page can forge, tell them from requests of the service's own users:

- Host: the name that the page asked for. A page that lets its own name lead to this address (DNS
  rebinding) would otherwise read every answer as its own.
- Origin and Sec-Fetch-Site: where the page comes from. A page of another origin may not change
  anything here, nor have the models work for it.

Clients that are no browsers send neither Origin nor Sec-Fetch-Site. Imports no FastAPI: the HTTP
processes use it too.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from contextlib import suppress
from functools import lru_cache
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from vim_embed.errors import Forbidden, MalformedRequest, ServiceError
from vim_embed.http.auth import Keys, bearer
from vim_embed.settings import Settings

# Key of a request's state: that an HTTP process has found nothing against it.
ADMITTED = "admitted"
_SAFE = ("GET", "HEAD", "OPTIONS")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._~-]+)(?::(\d{0,5}))?", re.IGNORECASE)
_PORTS = {"http": 80, "https": 443}
# Hosts whose verdict is remembered.
_KNOWN_HOSTS = 256


class WebPages:
    """The rule for the settings: names of the service, and origins beside its own."""

    def __init__(self, settings: Settings, keys: Keys) -> None:
        """Raises ValueError for an origin that cannot be one."""
        names = [settings.host, *listed(settings.published_host), socket.gethostname()]
        self._names = {name.strip("[]").lower() for name in names}
        self._allowed = [name.lower() for name in listed(settings.allowed_hosts)]
        self._origins = origins(settings)
        self._keys = keys
        self._is_ours = lru_cache(_KNOWN_HOSTS)(self._looked_up)

    def refusal(self, scope: Scope) -> ServiceError | None:
        """Why a request must not be answered; None if it may."""
        hosts, sites, pages, keys = [], [], [], []
        for name, value in scope["headers"]:
            if name == b"host":
                hosts.append(value.decode("latin-1"))
            elif name == b"sec-fetch-site":
                sites.append(value.decode("latin-1").lower())
            elif name == b"origin":
                pages.append(value.decode("latin-1").lower())
            elif name == b"authorization":
                keys.append(value.decode("latin-1"))
        if _over_a_unix_socket(scope):
            return None  # no browser comes that way, and the name means nothing
        return self._of_host(hosts, scope["http_version"]) or self._of_page(
            scope, hosts, sites, pages, bearer(keys)
        )

    def _of_host(self, hosts: list[str], version: str) -> ServiceError | None:
        if not hosts and version == "1.0":
            return None  # older than the header; browsers are not
        if len(hosts) != 1 or _split(hosts[0]) is None:
            return MalformedRequest("a request needs one Host header, as Host: name:port")
        # Where keys are wanted, a page under a foreign name has none, so any name will do.
        if (self._keys and not self._allowed) or self._is_ours(hosts[0]):
            return None
        return Forbidden(
            f"this service does not know itself as {hosts[0][:100]!r}: ask it as localhost or by "
            "its address, or name it in --allowed-hosts (without keys) or --published-host"
        )

    def _of_page(
        self, scope: Scope, hosts: list[str], sites: list[str], pages: list[str], key: str
    ) -> ServiceError | None:
        if not (sites or pages) or all(self.allows(page) for page in pages or [""]):
            return None
        if scope["method"] in _SAFE and not _is_preflight(scope):
            return None  # changes nothing, and the browser does not show the page the answer
        if sites:
            own = all(site in ("same-origin", "none") for site in sites)
        else:
            own = all(_place(page) == _split(hosts[0]) for page in pages) if hosts else False
        if own or (embeds(scope["path"]) and self._keys and self._keys.allow(key)):
            return None
        return Forbidden(
            f"a web page of another origin ({', '.join(pages)[:100] or 'unnamed'}) may not do "
            "this: name the origin in --cors-origins if it may"
        )

    def allows(self, origin: str) -> bool:
        """Whether the settings name this origin."""
        return bool(origin) and ("*" in self._origins or origin in self._origins)

    def _looked_up(self, host: str) -> bool:
        split = _split(host)
        name = "" if split is None else split[0]
        with suppress(ValueError):
            ipaddress.ip_address(name)
            return True  # nobody's DNS leads from a name to it
        if name == "localhost" or name.endswith(".localhost") or name in self._names:
            return True
        return any(_matches(name, each) for each in self._allowed)


class OnlyOwnPages:
    """Refuses what `WebPages` refuses, before anything of the request is looked at."""

    def __init__(self, app: ASGIApp, pages: WebPages) -> None:
        self.app = app
        self.pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = None
        if scope["type"] == "http" and not scope["state"].get(ADMITTED):
            error = self.pages.refusal(scope)
        if error is None:
            await self.app(scope, receive, send)
            return
        from vim_embed.http.error_answers import error_response  # FastAPI's, not for HTTP processes

        response = error_response(error, scope)
        response.headers["Connection"] = "close"  # the body is not read
        await response(scope, receive, send)


def listed(setting: str) -> list[str]:
    """The parts of a setting with commas between."""
    return [part.strip() for part in setting.split(",") if part.strip()]


def origins(settings: Settings) -> list[str]:
    """The origins of `--cors-origins`. Raises ValueError for what is none."""
    found = [origin.lower().rstrip("/") for origin in listed(settings.cors_origins)]
    for origin in found:
        parts = urlsplit(origin)
        if origin != "*" and (parts.scheme not in _PORTS or parts.path or not parts.hostname):
            raise ValueError(
                f"--cors-origins {origin!r} is no origin: write https://name:port, or *"
            )
    return found


def embeds(path: str) -> bool:
    """Whether a path is one that embeds images."""
    return path == "/embed" or path.endswith("/infer")


def _over_a_unix_socket(scope: Scope) -> bool:
    server = scope.get("server")
    return server is not None and server[1] is None


def _is_preflight(scope: Scope) -> bool:
    return scope["method"] == "OPTIONS" and any(
        name == b"access-control-request-method" for name, _ in scope["headers"]
    )


def _split(host: str) -> tuple[str, int | None] | None:
    """Name and port of a Host header; None if it is none."""
    found = _HOST.fullmatch(host)
    if found is None:
        return None
    port = int(found[2]) if found[2] else None
    return found[1].lower().strip("[]").rstrip("."), None if port in _PORTS.values() else port


def _place(origin: str) -> tuple[str, int | None] | None:
    """The same of an origin, whatever its scheme: a proxy may end TLS before this."""
    scheme, _, host = origin.partition("://")
    return _split(host) if scheme in _PORTS else None


def _matches(name: str, allowed: str) -> bool:
    if allowed == "*":
        return True
    if allowed.startswith("*."):
        return name.endswith(allowed[1:])
    return name == allowed.strip("[]")
