"""docs/security.md: every threat leads to a test that is there, and the proxy of the page works."""

from __future__ import annotations

import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from generate_docs import ROOT

from docs.test_comparison import names_in
from security.processes import server_process
from support.serving import NPY, from_npy, npy

PAGE = ROOT / "docs" / "security.md"
TEXT = PAGE.read_text()
_LINK = re.compile(r"\]\((\.\./tests/[^)#]+)#([^)]+)\)")
_BLOCK = re.compile(r"```nginx\n(.*?)```", re.DOTALL)
LINKS = sorted({(match[1], match[2]) for match in _LINK.finditer(TEXT)})


def threats() -> list[list[str]]:
    """The cells of each threat: what, answer, tests."""
    table = TEXT.split("## Threats")[1].split("\n\n")[1]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return lines[2:]


@pytest.mark.parametrize(("file", "test"), LINKS)
def test_links_lead_to_tests(file: str, test: str) -> None:
    path = (PAGE.parent / file).resolve()
    assert path.is_relative_to(ROOT / "tests")
    assert test in names_in(path)


def test_each_threat_has_an_answer_and_a_test() -> None:
    assert len(threats()) > 15
    for threat in threats():
        assert len(threat) == 3, threat
        assert all(threat)
        assert _LINK.search(threat[2]) or threat[2].startswith("none: "), threat[0]


def test_the_page_is_in_the_index() -> None:
    assert "(security.md)" in (ROOT / "docs" / "README.md").read_text()


@pytest.mark.skipif(
    not (shutil.which("nginx") and shutil.which("openssl")), reason="needs nginx and openssl"
)
def test_the_proxy_of_the_page_works(tmp_path: Path) -> None:
    """The nginx block as it stands, but for ports, certificate and a smaller limit."""
    pixels = np.random.default_rng(1).integers(0, 256, (5, 3, 8, 8), dtype=np.uint8)
    with server_process(tmp_path, "--log-level", "error") as server:
        direct = httpx.post(f"{server.url}/embed", content=npy(pixels), headers=NPY)
        with proxied(tmp_path, server.port) as (url, trusted), httpx.Client(verify=trusted) as http:
            answer = http.post(f"{url}/embed", content=npy(pixels), headers=NPY)
            assert answer.status_code == 200
            assert np.array_equal(from_npy(answer.content), from_npy(direct.content))
            large = http.post(f"{url}/embed", content=bytes(2_000_000), headers=NPY)
            assert large.status_code == 413
            assert http.get(f"{url}/health/ready").json()["status"] == "ready"


@contextmanager
def proxied(folder: Path, port: int) -> Iterator[tuple[str, ssl.SSLContext]]:
    """nginx with the page's configuration before `port`; its URL, and a context that trusts it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        own: int = probe.getsockname()[1]
    certificate, key = folder / "box.pem", folder / "box.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    block = _BLOCK.search(TEXT)
    assert block is not None
    server = block[1]
    for old, new in {
        "listen 443 ssl": f"listen 127.0.0.1:{own} ssl",
        "gpu-box.example.org": "localhost",
        "/etc/ssl/gpu-box.pem": str(certificate),
        "/etc/ssl/gpu-box.key": str(key),
        "127.0.0.1:8000": f"127.0.0.1:{port}",
        "512m": "1m",
    }.items():
        assert old in server
        server = server.replace(old, new)
    config = folder / "nginx.conf"
    temporary = "\n".join(
        f"{kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config.write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{temporary}\n{server}}}\n"
    )
    command = ["nginx", "-p", str(folder), "-c", str(config), "-e", f"{folder}/error.log"]
    process = subprocess.Popen(command, env={**os.environ, "LC_ALL": "C"})
    try:
        _wait_for(own, process, folder / "error.log")
        yield f"https://localhost:{own}", ssl.create_default_context(cafile=str(certificate))
    finally:
        process.terminate()
        process.wait(10)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("nginx did not come up")
