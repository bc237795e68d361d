"""HTTPS by settings, with a certificate chain made for the test."""

from __future__ import annotations

import asyncio
import signal
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import trustme
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization

from security.processes import server_process
from security.raw_http import connect, head
from support.serving import running
from vim_embed.cli import main
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.http.app import create_app
from vim_embed.settings import Settings
from vim_embed_client import AsyncClient, Client, ConfigurationError, ServerUnreachableError

PIXELS = np.zeros((2, 3, 8, 8), np.uint8)


class Chain:
    """A certificate of an intermediate authority, with its files."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.ca, self.cert, self.key = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
        root = trustme.CA()
        root.cert_pem.write_to_path(str(self.ca))
        self.issued = root.create_child_ca().issue_cert("127.0.0.1", "localhost")
        for number, part in enumerate(self.issued.cert_chain_pems):
            part.write_to_path(str(self.cert), append=number > 0)
        self.issued.private_key_pem.write_to_path(str(self.key))

    def settings(self, **others: Any) -> Settings:
        return Settings(tls_cert=str(self.cert), tls_key=str(self.key), **others)

    def encrypt_key(self, password: bytes) -> None:
        key = serialization.load_pem_private_key(self.key.read_bytes(), None)
        self.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(password),
            )
        )


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return Chain(tmp_path / "chain")


@pytest.fixture
def url(chain: Chain) -> Iterator[str]:
    app = create_app(chain.settings(header_timeout=1), ArithmeticEngine())
    with running(app, wait=False) as url:
        yield url


def test_both_clients_with_the_authority_s_file(
    url: str, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(url, ca_file=str(chain.ca)) as client:
        assert client.embed(PIXELS).embeddings.shape == (2, ArithmeticEngine.DIM)
    monkeypatch.setenv("VIM_EMBED_CA_FILE", str(chain.ca))

    async def ask() -> int:
        async with AsyncClient(url) as client:
            return len(await client.embed(PIXELS))

    assert asyncio.run(ask()) == 2


def test_a_certificate_of_somebody_else_is_not_trusted(url: str, tmp_path: Path) -> None:
    other = Chain(tmp_path / "other")
    for ca in (None, str(other.ca)):
        with (
            Client(url, ca_file=ca, max_retries=0) as client,
            pytest.raises(ServerUnreachableError, match="CERTIFICATE_VERIFY_FAILED"),
        ):
            client.models()


def test_a_file_that_holds_no_authority(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    for name in ("empty.pem", "missing.pem"):
        with pytest.raises(ConfigurationError, match="VIM_EMBED_CA_FILE"):
            Client("https://127.0.0.1:1", ca_file=str(tmp_path / name))


def test_old_tls_and_plain_http_are_refused(url: str, chain: Chain) -> None:
    context = ssl.create_default_context(cafile=str(chain.ca))
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with connect(url) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain, server_hostname="127.0.0.1")
    with connect(url) as plain:
        plain.sendall(head("GET", "/health/live"))
        assert not plain.recv(100).startswith(b"HTTP")


def test_the_limits_hold_behind_tls(url: str, chain: Chain) -> None:
    context = ssl.create_default_context(cafile=str(chain.ca))
    with connect(url) as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as wire:
        wire.sendall(b"POST /embed HTTP/1.1\r\n")
        assert wire.recv(100).startswith(b"HTTP/1.1 408")


def test_a_handshake_that_does_not_come(url: str) -> None:
    begin = time.monotonic()
    with connect(url) as silent:
        silent.settimeout(20)
        assert silent.recv(100) == b""
    assert 0.5 < time.monotonic() - begin < 15  # header_timeout is 1 s, the system's default 60 s


def test_an_encrypted_key(chain: Chain, tmp_path: Path) -> None:
    chain.encrypt_key(b"secret words")
    password = tmp_path / "password"
    password.write_text("secret words\n")
    settings = chain.settings(tls_key_password_file=str(password))
    with running(create_app(settings, ArithmeticEngine()), wait=False) as url:
        assert httpx.get(f"{url}/health/live", verify=_trusting(chain)).status_code == 200


def _trusting(chain: Chain) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(chain.ca))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("no key", "private key too"),
        ("no cert", "certificate's file too"),
        ("missing", "cannot be read: No such file"),
        ("folder", "cannot be read: Is a directory"),
        ("mismatch", "do not belong together"),
        ("noise", "PEM form"),
        ("swapped", "PEM form"),
        ("encrypted", "--tls-key-password-file is needed"),
        ("wrong password", "--tls-key-password-file does not open it"),
    ],
)
def test_what_cannot_start_says_why(kind: str, says: str, chain: Chain, tmp_path: Path) -> None:
    noise = tmp_path / "noise"
    noise.write_text("xyzzy")
    cert, key = str(chain.cert), str(chain.key)
    if "password" in kind or kind == "encrypted":
        chain.encrypt_key(b"right")
    flags = {
        "no key": ["--tls-cert", cert],
        "no cert": ["--tls-key", key],
        "missing": ["--tls-cert", str(tmp_path / "none"), "--tls-key", key],
        "folder": ["--tls-cert", cert, "--tls-key", str(tmp_path)],
        "mismatch": ["--tls-cert", cert, "--tls-key", str(Chain(tmp_path / "b").key)],
        "noise": ["--tls-cert", cert, "--tls-key", str(noise)],
        "swapped": ["--tls-cert", key, "--tls-key", cert],
        "encrypted": ["--tls-cert", cert, "--tls-key", key],
        "wrong password": [
            "--tls-cert", cert, "--tls-key", key, "--tls-key-password-file", str(noise),
        ],
    }[kind]  # fmt: skip
    result = CliRunner().invoke(main, ["serve", "--random-weights", "--port", "0", *flags])
    assert result.exit_code == 2, result.output
    assert says in result.output
    assert "xyzzy" not in result.output


@pytest.mark.parametrize("processes", [1, 2])
def test_sighup_reads_keys_and_certificate_again(tmp_path: Path, processes: int) -> None:
    chain = Chain(tmp_path / "chain")
    keys = tmp_path / "keys"
    keys.write_text("old\n")
    flags = ["--tls-cert", str(chain.cert), "--tls-key", str(chain.key)]
    flags += ["--api-keys-file", str(keys), "--http-processes", str(processes)]
    with server_process(tmp_path, *flags) as started:
        old = _trusting(chain)
        assert httpx.get(f"{started.url}/health/live", verify=old).status_code == 200
        renewed = Chain(tmp_path / "chain")
        keys.write_text("new\n")
        started.process.send_signal(signal.SIGHUP)
        end = time.monotonic() + 20
        while started.log.read_text().count("certificate read again") < processes:
            assert time.monotonic() < end
            time.sleep(0.05)
        with Client(started.url, api_key="new", ca_file=str(renewed.ca)) as client:
            assert [model["name"] for model in client.models()["models"]] == ["arithmetic"]
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{started.url}/health/live", verify=old)
        chain.key.write_text("broken")
        started.process.send_signal(signal.SIGHUP)
        while started.log.read_text().count("old certificate stays in force") < processes:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert httpx.get(f"{started.url}/health/live", verify=_trusting(renewed)).is_success
