"""Where a service is, and whether the way there leads through a proxy of the environment."""

from __future__ import annotations

import ipaddress
import re
import socket
from contextlib import suppress
from importlib.util import find_spec
from urllib.request import getproxies_environment

import httpx

from vim_embed_client.errors import ConfigurationError

_SOCKS = ("socks5", "socks5h")
_PROXIES = ("http", "https", *_SOCKS)

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def check_url(base_url: str) -> None:
    """Raise ConfigurationError for what is no URL of a service."""
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ConfigurationError(f"{base_url!r} is not a URL ({error})") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigurationError(
            f"{base_url!r} is not an http:// or https:// URL: check VIM_EMBED_URL"
        )
    if url.query or url.fragment:
        plain = url.copy_with(query=None, fragment=None)
        raise ConfigurationError(
            f"{base_url!r} has more than the address of a service: use {plain}"
        )


def proxy_for(base_url: str) -> httpx.Proxy | None:
    """The proxy that HTTP_PROXY, HTTPS_PROXY or ALL_PROXY name for this URL, if any.

    NO_PROXY may have names, `.example.com`, addresses, `[::1]`, networks such as 10.0.0.0/8, all
    with or without a port, or `*`. A service on this machine is never behind a proxy. Raises
    ConfigurationError for a proxy that cannot be used.
    """
    url = httpx.URL(base_url)
    if is_loopback(url.host):
        return None
    settings = getproxies_environment()
    named = url.scheme if settings.get(url.scheme) else "all"
    text = settings.get(named, "")
    if not text or _bypassed(url, settings.get("no", "")):
        return None
    return _proxy(text, f"{named.upper()}_PROXY", url.host)


def _proxy(text: str, variable: str, host: str) -> httpx.Proxy:
    around = f"or go without it: NO_PROXY={host}"
    try:
        url = httpx.URL(text if "://" in text else f"http://{text}")
    except httpx.InvalidURL as error:
        raise ConfigurationError(f"{variable} is not a URL ({error}): mend it, {around}") from None
    if url.scheme == "socks":  # as GNOME writes it
        url = url.copy_with(scheme="socks5")
    if url.scheme not in _PROXIES or not url.host:
        raise ConfigurationError(
            f"{variable} names a proxy of the kind {url.scheme}://, and only "
            f"{', '.join(_PROXIES)} can be used: change it, {around}"
        )
    if url.scheme in _SOCKS and find_spec("socksio") is None:
        raise ConfigurationError(
            f"{variable} names a SOCKS proxy ({url.scheme}://{url.host}), which needs socksio: "
            f'pip install "httpx[socks]", {around}'
        )
    return httpx.Proxy(url)


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is of this machine by its form."""
    name = host.strip("[]").rstrip(".").lower()
    if name in ("localhost", "ip6-localhost") or name.endswith(".localhost"):
        return True
    address = _address(name)
    return address is not None and (address.is_loopback or address.is_unspecified)


def _address(name: str) -> _Address | None:
    """An address, also in short forms as 127.1; an IPv4 one that is written as IPv6 is that."""
    with suppress(ValueError):
        address = ipaddress.ip_address(name.partition("%")[0])
        return getattr(address, "ipv4_mapped", None) or address
    if re.fullmatch(r"[\dxa-f.]+", name):
        with suppress(OSError):
            return ipaddress.ip_address(socket.inet_aton(name))
    return None


def _bypassed(url: httpx.URL, no_proxy: str) -> bool:
    port = url.port or {"http": 80, "https": 443}[url.scheme]
    return any(_covers(entry, url.host, port) for entry in re.split(r"[,\s]+", no_proxy) if entry)


def _covers(entry: str, host: str, port: int) -> bool:
    """Whether an entry of NO_PROXY is meant for this host and port."""
    entry = entry.rpartition("://")[2].rstrip("/").lower()
    if entry == "*":
        return True
    name, wanted = entry, ""
    if found := re.fullmatch(r"\[(.+)\](?::(\d+))?|([^:]+):(\d+)", entry):
        name, wanted = found[1] or found[3], found[2] or found[4] or ""
    if wanted and int(wanted) != port:
        return False
    host = host.rstrip(".").lower()
    address = _address(host)
    if address is not None:
        with suppress(ValueError):
            return address in ipaddress.ip_network(name, strict=False)
        return False
    suffix = name.lstrip("*").lstrip(".")
    return host == suffix or (bool(suffix) and host.endswith(f".{suffix}"))
