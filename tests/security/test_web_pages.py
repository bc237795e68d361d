"""Web pages of other origins, and names that lead here without being ours: what they may do."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from security.processes import ServerProcess, server_process
from security.raw_http import connect, error, status, until_closed
from support.serving import NPY, npy, running
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.http.app import create_app
from vim_embed.http.auth import Keys
from vim_embed.http.web_pages import WebPages, origins
from vim_embed.settings import Settings

BODY = npy(np.zeros((1, 3, 8, 8), np.uint8))
EVIL = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
APP = "https://app.example.org"
KEY = {"Authorization": "Bearer a-key-of-ours"}
CHANGES = [
    "/models/arithmetic/load",
    "/models/arithmetic/unload",
    "/models/arithmetic/pin",
    "/models/arithmetic/unpin",
    "/models/arithmetic/check",
    "/faults",
]
EMBEDS = ["/embed", "/v2/models/arithmetic/infer", "/v2/models/arithmetic/versions/1/infer"]
HTTP = httpx.Client()  # one for all: each reads the certificates of the system anew


@pytest.fixture(scope="module", params=["1", "2"], ids=["one process", "two HTTP processes"])
def started(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    flags = ["--model-control", "--fault-injection", "--http-processes", request.param]
    with server_process(tmp_path_factory.mktemp("pages"), *flags) as server:
        yield server


def _get(
    server: ServerProcess, *headers: str, version: str = "1.1", target: str = "/models"
) -> bytes:
    lines = [f"GET {target} HTTP/{version}", *headers, "Connection: close", "", ""]
    with connect(server.url) as connection:
        connection.sendall("\r\n".join(lines).encode("latin-1"))
        return until_closed(connection)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:{port}",
        "127.0.0.1:{port}",
        "[::1]:{port}",
        "127.9.8.7",
        "a.localhost",
        "10.1.2.3:80",
        "[fe80::1]",
        "localhost.",
        "localhost:",
        socket.gethostname(),
    ],
)
def test_names_of_this_machine_are_answered(started: ServerProcess, host: str) -> None:
    assert status(_get(started, f"Host: {host.format(port=started.port)}")) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "x",
        "notlocalhost",
        "2130706433",
        "0x7f.1",
        "127.1",
    ],
)
@pytest.mark.parametrize("path", ["/models", "/status", "/metrics", "/", "/health/ready", "/v2"])
def test_a_rebinding_name_reads_nothing(started: ServerProcess, host: str, path: str) -> None:
    answer = _get(started, f"Host: {host.format(port=started.port)}", target=path)
    assert status(answer) == 403
    assert b"--allowed-hosts" in answer
    if path != "/v2":
        assert error(answer)["code"] == "forbidden"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        ["Host: localhost", "Host: localhost"],
        ["Host: localhost", "Host: evil.example"],
        ["Host:"],
        ["Host: a b"],
        ["Host: me@localhost"],
        ["Host: localhost/x"],
        ["Host: localhost:port"],
        ["Host: localhost:1:2"],
        ["Host: [::1"],
        ["Host: höst"],
    ],
)
def test_a_request_has_one_host(started: ServerProcess, headers: list[str]) -> None:
    answer = _get(started, *headers)
    assert (status(answer), error(answer)["code"]) == (400, "malformed_request")


def test_a_client_from_before_the_header_is_answered(started: ServerProcess) -> None:
    assert status(_get(started, version="1.0")) == 200
    assert status(_get(started, "Host: evil.example", version="1.0")) == 403


def test_the_target_s_own_host_counts(started: ServerProcess) -> None:
    """RFC 9112, 3.2.2: with an address in absolute form, Host is ignored."""
    evil = _get(started, "Host: localhost", target="http://evil.example/models")
    assert status(evil) == 403
    own = _get(started, "Host: evil.example", target="http://localhost/models")
    assert status(own) == 200


@pytest.mark.parametrize("path", CHANGES + EMBEDS)
@pytest.mark.parametrize(
    "headers",
    [
        EVIL,
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:1"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://localhost"},
        {"Origin": "file://"},
    ],
    ids=str,
)
def test_a_page_of_another_origin_changes_nothing(
    started: ServerProcess, path: str, headers: dict[str, str]
) -> None:
    for kind in ("text/plain", "application/x-npy", "multipart/form-data; boundary=x"):
        answer = HTTP.post(
            started.url + path, content=BODY, headers={"Content-Type": kind, **headers}
        )
        assert answer.status_code == 403, answer.text
        assert "--cors-origins" in answer.text
        assert answer.headers["x-request-id"]
        assert "access-control-allow-origin" not in answer.headers


def test_pages_of_our_own_and_clients_without_a_page_go_on(started: ServerProcess) -> None:
    own = {"Origin": started.url}
    for headers in ({}, own, {**own, "Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}):
        answer = HTTP.post(f"{started.url}/embed", content=BODY, headers={**NPY, **headers})
        assert answer.status_code == 200
        assert HTTP.post(f"{started.url}/models/arithmetic/pin", headers=headers).status_code == 200
    behind_tls = {"Host": "localhost", "Origin": "https://localhost"}
    assert HTTP.post(f"{started.url}/models/arithmetic/pin", headers=behind_tls).status_code == 200


def test_a_preflight_of_another_origin_is_refused(started: ServerProcess) -> None:
    asks = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answer = HTTP.options(f"{started.url}/embed", headers=asks)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_the_body_of_a_refused_page_is_not_waited_for(started: ServerProcess) -> None:
    with connect(started.url) as connection:
        top = (
            f"POST /embed HTTP/1.1\r\nHost: localhost\r\nOrigin: {APP}\r\nContent-Length: 100000000"
        )
        connection.sendall(f"{top}\r\n\r\n".encode() + b"x" * 10)
        assert status(until_closed(connection)) == 403


def test_named_hosts_and_origins() -> None:
    settings = Settings(
        allowed_hosts="gpu-box, *.lab.example", published_host="box.example", cors_origins=APP
    )
    with running(create_app(settings, ArithmeticEngine())) as url, httpx.Client() as http:
        for host in ("gpu-box:80", "a.lab.example", "box.example", "BOX.example.:443"):
            assert http.get(f"{url}/models", headers={"Host": host}).status_code == 200
        for host in ("lab.example", "evil.example", "xgpu-box", "a.lab.example.evil"):
            assert http.get(f"{url}/models", headers={"Host": host}).status_code == 403
        page = {"Origin": APP, "Sec-Fetch-Site": "cross-site"}
        asks = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,timeout",
        }
        preflight = http.options(f"{url}/embed", headers={**page, **asks})
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == APP
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        assert "POST" in preflight.headers["access-control-allow-methods"]
        answer = http.post(f"{url}/embed", content=BODY, headers={**NPY, **page})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == APP
        assert "Origin" in answer.headers["vary"]
        refused = http.post(f"{url}/embed", content=b"", headers={**NPY, **page})
        assert refused.headers["access-control-allow-origin"] == APP  # the page may read why
        assert http.post(f"{url}/embed", content=BODY, headers={**NPY, **EVIL}).status_code == 403


def test_with_keys_a_page_needs_one_whatever_its_name() -> None:
    settings = Settings(api_keys="a-key-of-ours", cors_origins=APP, model_control=True)
    with (
        running(create_app(settings, ArithmeticEngine()), wait=False) as url,
        httpx.Client() as http,
    ):
        named = {"Host": "gpu-box.example"}
        while http.get(f"{url}/health/ready", headers=named).status_code != 200:
            pass
        assert http.get(f"{url}/models", headers=named).status_code == 401
        assert http.get(f"{url}/models", headers={**named, **KEY}).status_code == 200
        sent = {**NPY, **EVIL}
        assert http.post(f"{url}/embed", content=BODY, headers=sent).status_code == 403
        wrong = {"Authorization": "Bearer another"}
        assert http.post(f"{url}/embed", content=BODY, headers=sent | wrong).status_code == 403
        assert http.post(f"{url}/embed", content=BODY, headers=sent | KEY).status_code == 200
        pin = http.post(f"{url}/models/arithmetic/pin", headers=EVIL | KEY)
        assert pin.status_code == 403  # what changes the service is for no page but its own
        # A preflight never carries a key.
        asks = {"Origin": APP, "Access-Control-Request-Method": "POST"}
        assert http.options(f"{url}/embed", headers=asks).status_code == 200
        answer = http.post(f"{url}/embed", content=BODY, headers={**NPY, "Origin": APP})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (401, APP)


def test_over_a_unix_socket_any_name_will_do(tmp_path: Path) -> None:
    scope = {
        "type": "http", "method": "GET", "path": "/models", "http_version": "1.1",
        "server": ("/run/vim.sock", None), "headers": [(b"host", b"whatever.example")],
    }  # fmt: skip
    pages = WebPages(Settings(), Keys([], None))
    assert pages.refusal(scope) is None
    assert pages.refusal({**scope, "server": ("127.0.0.1", 80)}) is not None


@pytest.mark.parametrize("origin", ["app.example", "https://a.example/path", "ftp://x", "https://"])
def test_what_is_no_origin_is_refused_at_start(origin: str) -> None:
    with pytest.raises(ValueError, match="--cors-origins"):
        origins(Settings(cors_origins=origin))


def test_two_hundred_hosts_are_remembered_and_no_more() -> None:
    pages = WebPages(Settings(), Keys([], None))
    for number in range(1000):
        scope = {
            "type": "http", "method": "GET", "path": "/", "http_version": "1.1",
            "server": ("127.0.0.1", 80), "headers": [(b"host", f"h{number}.example".encode())],
        }  # fmt: skip
        assert pages.refusal(scope) is not None
    assert pages._is_ours.cache_info().currsize <= 256


def test_the_errors_say_nothing_of_the_models(started: ServerProcess) -> None:
    answer = _get(started, "Host: evil.example", target="/models/arithmetic")
    assert b"arithmetic" not in answer
    json.loads(answer.partition(b"\r\n\r\n")[2])
