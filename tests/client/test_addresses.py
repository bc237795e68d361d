"""Ways to a service: proxies of the environment, and URLs that lead to something else.

Each table is extended by a line.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from client.fake_service import FakeService
from client.fake_service import serve as serve_fake
from vim_embed_client import AsyncClient, Client, ConfigurationError, VimEmbedError
from vim_embed_client.addresses import is_loopback, proxy_for

FAR = "http://gpu-box.example.org:8000"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxies but the test's own."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


PROXIES: list[tuple[dict[str, str], str, str | None]] = [
    ({}, FAR, None),
    ({"HTTP_PROXY": "http://p:3128"}, FAR, "http://p:3128"),
    ({"http_proxy": "p:3128"}, FAR, "http://p:3128"),
    ({"ALL_PROXY": "http://p:3128"}, FAR, "http://p:3128"),
    ({"HTTPS_PROXY": "http://p:3128"}, FAR, None),
    ({"HTTPS_PROXY": "http://p:3128"}, "https://far.org", "http://p:3128"),
    ({"ALL_PROXY": "http://p", "NO_PROXY": "*"}, FAR, None),
    ({"ALL_PROXY": "http://p", "NO_PROXY": "[::1]"}, FAR, "http://p"),
    ({"ALL_PROXY": "http://p", "NO_PROXY": "[2001:db8::1]"}, "http://[2001:db8::1]", None),
    ({"ALL_PROXY": "http://p", "NO_PROXY": "[2001:db8::1]:80"}, "http://[2001:db8::1]", None),
    ({"ALL_PROXY": "http://p", "NO_PROXY": "2001:db8::/32"}, "http://[2001:db8::1]", None),
    ({"ALL_PROXY": "http://p", "NO_PROXY": "10.0.0.0/8"}, "http://10.1.2.3:8000", None),
    ({"ALL_PROXY": "http://p", "NO_PROXY": "10.0.0.0/8"}, "http://11.1.2.3", "http://p"),
    ({"ALL_PROXY": "http://p", "NO_PROXY": "10.0.0.0/8"}, FAR, "http://p"),
    ({"ALL_PROXY": "http://p", "NO_PROXY": "a, gpu-box.example.org"}, FAR, None),
    ({"ALL_PROXY": "http://p", "NO_PROXY": ".example.org"}, FAR, None),
    ({"ALL_PROXY": "http://p", "NO_PROXY": "*.example.org"}, FAR, None),
    ({"ALL_PROXY": "http://p", "NO_PROXY": "EXAMPLE.org"}, FAR, None),
    ({"ALL_PROXY": "http://p", "NO_PROXY": "box.example.org"}, FAR, "http://p"),
    ({"ALL_PROXY": "http://p", "NO_PROXY": "example.org:8000"}, FAR, None),
    ({"ALL_PROXY": "http://p", "NO_PROXY": "example.org:80"}, FAR, "http://p"),
    ({"ALL_PROXY": "http://p", "NO_PROXY": "http://gpu-box.example.org"}, FAR, None),
    ({"ALL_PROXY": "http://p", "NO_PROXY": "not a [host"}, FAR, "http://p"),
]


@pytest.mark.parametrize(("environment_", "url", "proxy"), PROXIES)
def test_the_proxy_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, environment_: dict[str, str], url: str, proxy: str | None
) -> None:
    for name, value in environment_.items():
        monkeypatch.setenv(name, value)
    found = proxy_for(url)
    assert (None if found is None else str(found.url)) == proxy
    Client(url).close()
    AsyncClient(url)


UNUSABLE: list[tuple[str, str]] = [
    ("socks://p:1080", r"ALL_PROXY names a SOCKS proxy \(socks5://p\).*httpx\[socks\]"),
    ("socks5://u:secret@p:1080", r"SOCKS proxy \(socks5://p\)"),
    ("socks5h://p:1080", r"SOCKS proxy \(socks5h://p\).*NO_PROXY=gpu-box.example.org"),
    ("socks4://p:1080", "of the kind socks4://, and only http, https, socks5"),
    ("ftp://p", "of the kind ftp://"),
    ("http://", "of the kind http://"),
    ("http://p:port", "ALL_PROXY is not a URL"),
]


@pytest.mark.parametrize(("proxy", "message"), UNUSABLE)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_proxy_that_cannot_be_used_is_explained(
    monkeypatch: pytest.MonkeyPatch, kind: Any, proxy: str, message: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(ConfigurationError, match=message) as caught:
        kind(FAR)
    assert "secret" not in str(caught.value)
    kind("http://127.0.0.1:8000")  # needs no proxy


LOOPBACK = [
    "127.0.0.1", "127.8.9.1", "127.1", "::1", "[::1]", "::ffff:127.0.0.1", "localhost", "LOCALHOST",
    "localhost.", "vim.localhost", "0.0.0.0", "::",
]  # fmt: skip


@pytest.mark.parametrize("host", LOOPBACK)
def test_this_machine_is_known_by_its_names(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://p")
    assert is_loopback(host)
    in_url = f"[{host}]" if ":" in host and not host.startswith("[") else host
    assert proxy_for(f"http://{in_url}:8000") is None


@pytest.mark.parametrize("host", ["127.example.org", "10.0.0.1", "localhost.org", "8.8.8.8", "::2"])
def test_other_machines_are_not_this_one(host: str) -> None:
    assert not is_loopback(host)


@contextmanager
def speaking(handler: type[BaseHTTPRequestHandler], tls: ssl.SSLContext | None = None) -> Any:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def saying(banner: bytes) -> Iterator[int]:
    """A server of another protocol: it greets whoever connects."""
    listening = socket.create_server(("127.0.0.1", 0))

    def greet() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                connection.sendall(banner)
                connection.recv(65536)

    threading.Thread(target=greet, daemon=True).start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


class Files(SimpleHTTPRequestHandler):
    """`python -m http.server`."""

    def log_message(self, *_: Any) -> None:
        pass


class Elsewhere(Files):
    """Sends everyone to https, as a proxy would."""

    def do_GET(self) -> None:
        self.send_response(301)
        self.send_header("Location", "https://box.example.org/models")
        self.end_headers()


class Gate(Files):
    """A portal that wants a login."""

    def do_GET(self) -> None:
        self.send_error(403)


def fails(url: str) -> str:
    with Client(url, max_retries=0, timeout=10.0) as client, pytest.raises(VimEmbedError) as caught:
        client.models()
    return str(caught.value)


FOREIGN: list[tuple[type[BaseHTTPRequestHandler], str]] = [
    (Files, "has not the form of a vim-embed service: if another program has this port, check"),
    (Elsewhere, "sends to https://box.example.org/models: set VIM_EMBED_URL to where"),
    (Gate, "wants an API key: .* if another program has this port"),
]


@pytest.mark.parametrize(("handler", "message"), FOREIGN)
def test_a_foreign_server_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handler: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with speaking(handler) as port:
        assert re.search(message, fails(f"http://127.0.0.1:{port}"))


@pytest.mark.parametrize(
    ("banner", "message"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "or has another program this port?"),
        (b"-ERR unknown command\r\n\r\n", "does not speak HTTP"),
        (b"", "Does it want https://, or has another"),
    ],
)
def test_another_protocol_is_named(banner: bytes, message: str) -> None:
    with saying(banner) as port:
        assert message in fails(f"http://127.0.0.1:{port}")


def test_https_to_a_service_that_speaks_http() -> None:
    with speaking(Files) as port:
        assert "does not speak https: use http://" in fails(f"https://127.0.0.1:{port}")


def test_a_certificate_that_is_not_trusted() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with speaking(Files, context) as port:
        assert "is not trusted" in fails(f"https://127.0.0.1:{port}")
        assert "VIM_EMBED_CA_FILE" in fails(f"https://127.0.0.1:{port}")


def test_a_url_with_a_route_s_path_is_explained() -> None:
    with serve_fake(FakeService().app()) as url:
        said = fails(f"{url}/embed")
        assert "has the path /embed: unless a proxy serves it there" in said
        assert f"set VIM_EMBED_URL to {url}/" in said


@pytest.mark.parametrize("url", ["http://h:8000/?model=vim", "http://h:8000/#top"])
def test_a_url_with_more_than_an_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="use http://h:8000/"):
        Client(url)


def test_certificates_of_the_environment_that_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere.pem")
    with pytest.raises(ConfigurationError, match="SSL_CERT_FILE"):
        Client("https://far.org")
    Client(FAR).close()


def test_without_tls_no_certificate_is_trusted() -> None:
    for url, trusted in ((FAR, False), ("https://far.org", True)):
        with Client(url) as client:
            context = client._options.verify()
        assert bool(context.get_ca_certs()) is trusted
        assert context.verify_mode is ssl.CERT_REQUIRED


def test_a_transport_of_one_s_own_needs_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://p")
    answers = httpx.MockTransport(lambda request: httpx.Response(200, json={"status": "live"}))
    with Client(FAR, transport=answers) as client:
        assert client.live() == {"status": "live"}
