"""nginx and haproxy that keep connections to the service open longer than the service does."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from hostile.load import Load, expected, wait
from hostile.machine import needs
from security.processes import server_process
from support.server_process import free_port
from support.serving import NPY, from_npy, npy
from vim_embed_client import Client

pytestmark = pytest.mark.hostile
KEEP_ALIVE_S = 1
ROUNDS = 6


def nginx(folder: Path, own: int, port: int) -> list[str]:
    temporary = "\n".join(
        f"{kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    config.write_text(f"""
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    {temporary}
    upstream service {{ server 127.0.0.1:{port}; keepalive 32; keepalive_timeout 60s; }}
    server {{
        listen 127.0.0.1:{own};
        location / {{
            proxy_pass http://service;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_request_buffering off;
            proxy_buffering off;
        }}
    }}
}}
""")
    return ["nginx", "-p", str(folder), "-c", str(config), "-e", f"{folder}/error.log"]


def haproxy(folder: Path, own: int, port: int) -> list[str]:
    config = folder / "haproxy.cfg"
    config.write_text(f"""
defaults
    mode http
    timeout connect 10s
    timeout client 60s
    timeout server 60s
    http-reuse always
frontend front
    bind 127.0.0.1:{own}
    default_backend service
backend service
    server one 127.0.0.1:{port} pool-purge-delay 60s
""")
    return ["haproxy", "-f", str(config)]


PROXIES = [
    pytest.param(nginx, marks=needs("nginx")),
    pytest.param(haproxy, marks=needs("haproxy")),
]


@contextmanager
def proxied(made: Callable[[Path, int, int], list[str]], folder: Path, port: int) -> Iterator[str]:
    own = free_port()
    environment = {**os.environ, "LC_ALL": "C"}
    process = subprocess.Popen(
        made(folder, own, port), env=environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait(lambda: _answers(own), "the proxy did not come up")
        yield f"http://localhost:{own}"
    finally:
        process.terminate()
        process.wait(20)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("made", PROXIES)
@pytest.mark.parametrize("processes", ["1", "2"])
def test_requests_in_the_moment_of_the_end(
    tmp_path: Path, made: Callable[[Path, int, int], list[str]], processes: str
) -> None:
    """Kept connections end at the service just as the proxy uses them again. A request may meet
    502 then, which the client sends again; none is wrong, and none reaches another's answer.
    """
    flags = ("--keep-alive-timeout", str(KEEP_ALIVE_S), "--http-processes", processes)
    statuses: list[int] = []
    with (
        server_process(tmp_path, *flags) as server,
        proxied(made, tmp_path, server.port) as url,
    ):

        def ask(seed: int) -> None:
            random = np.random.default_rng(seed)
            with httpx.Client(timeout=60) as http, Client(url, max_retries=8) as client:
                for _ in range(ROUNDS):
                    pixels = random.integers(0, 256, (2, 3, 8, 8), dtype=np.uint8)
                    answer = http.post(f"{url}/embed", content=npy(pixels), headers=NPY)
                    statuses.append(answer.status_code)
                    right = expected(pixels)
                    assert answer.status_code != 200 or np.array_equal(
                        from_npy(answer.content), right
                    )
                    assert np.array_equal(client.embed(pixels).embeddings, right)
                    time.sleep(KEEP_ALIVE_S + random.uniform(-0.02, 0.02))

        failures: list[BaseException] = []

        def guarded(seed: int) -> None:
            try:
                ask(seed)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=guarded, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(200)
        assert not failures, failures[0]
        print(f"{made.__name__}: {statuses.count(200)} of {len(statuses)} at once")
        assert set(statuses) <= {200, 502, 503}
        assert statuses.count(200) > len(statuses) // 2


@pytest.mark.parametrize("made", PROXIES)
def test_load_through_a_proxy_while_the_service_stops(
    tmp_path: Path, made: Callable[[Path, int, int], list[str]]
) -> None:
    """What was taken is answered; the rest is refused by the service or by the proxy."""
    with server_process(tmp_path) as server, proxied(made, tmp_path, server.port) as url:
        with Load(url) as load:
            server.process.terminate()
            server.process.wait(60)
        load.only("503 draining", "502 ?", "503 ?", "502 bad_gateway", "ReadError")
