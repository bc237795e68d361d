"""HEAD, OPTIONS, 405 with Allow, and paths with a slash too many, in both modes."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from security.processes import ServerProcess, server_process
from security.raw_http import connect, head, status, until_closed

GETS = ["/", "/models", "/models/arithmetic", "/status", "/metrics", "/health/live", "/docs"]
GETS += ["/health/ready", "/v2", "/v2/health/ready", "/v2/models/arithmetic", "/page/icon.svg"]
GETS += ["/openapi.json", "/models/arithmetic/layers"]
ALLOWED = {
    "/models": "GET, HEAD, OPTIONS",
    "/embed": "POST, OPTIONS",
    "/v2/models/arithmetic/infer": "GET, HEAD, POST, OPTIONS",
    "/models/arithmetic/check": "GET, HEAD, POST, OPTIONS",  # a model's name may hold a slash
    "/": "GET, HEAD, OPTIONS",
}


@pytest.fixture(scope="module", params=["1", "2"], ids=["one process", "two HTTP processes"])
def started(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("methods")
    with server_process(folder, "--http-processes", request.param) as server:
        yield server


@pytest.fixture(scope="module")
def http(started: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=started.url) as client:
        yield client


@pytest.mark.parametrize("path", GETS)
def test_head_is_get_without_the_body(http: httpx.Client, path: str) -> None:
    whole, top = http.get(path), http.head(path)
    assert top.status_code == whole.status_code == 200
    assert top.content == b""
    assert top.headers["content-type"] == whole.headers["content-type"]
    if path not in ("/metrics", "/status"):  # these change from one to the next
        assert top.headers["content-length"] == whole.headers["content-length"]


def test_a_connection_goes_on_after_head(started: ServerProcess) -> None:
    with connect(started.url) as connection:
        last = head("GET", "/health/live", Connection="close")
        connection.sendall(head("HEAD", "/models") + head("HEAD", "/no/such") + last)
        answers = until_closed(connection).split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"200", b"404", b"200"]
    assert answers[-1].endswith(b'{"status":"live"}')


@pytest.mark.parametrize(("path", "allowed"), ALLOWED.items())
def test_options_says_what_a_path_takes(http: httpx.Client, path: str, allowed: str) -> None:
    answer = http.options(path)
    assert (answer.status_code, answer.headers["allow"], answer.content) == (204, allowed, b"")


def test_options_of_the_server_itself(started: ServerProcess) -> None:
    with connect(started.url) as connection:
        connection.sendall(head("OPTIONS", "*", Connection="close"))
        answer = until_closed(connection)
    assert status(answer) == 204
    assert b"allow: get, head, options" in answer.lower()


def test_an_old_health_check_of_haproxy(started: ServerProcess) -> None:
    with connect(started.url) as connection:
        connection.sendall(b"OPTIONS / HTTP/1.0\r\n\r\n")
        assert status(until_closed(connection)) == 204


@pytest.mark.parametrize(("path", "allowed"), ALLOWED.items())
def test_405_says_what_a_path_takes(http: httpx.Client, path: str, allowed: str) -> None:
    for method in ("PUT", "DELETE", "PATCH", "TRACE"):
        answer = http.request(method, path)
        assert answer.status_code == 405
        assert answer.headers["allow"] == allowed
        assert answer.headers["x-request-id"]
    if "GET" not in allowed:
        assert http.head(path).status_code == 405
        assert http.get(path).headers["allow"] == allowed


@pytest.mark.parametrize("path", ["/embed/", "/v2/", "/health/ready/", "/status/"])
def test_a_slash_too_many_leads_nowhere(http: httpx.Client, path: str) -> None:
    for method in ("GET", "POST", "HEAD", "OPTIONS"):
        answer = http.request(method, path, headers={"Host": "localhost"})
        assert answer.status_code in (404, 405)
        assert "location" not in answer.headers
    if path in ("/embed/", "/status/"):
        assert f"did you mean {path[:-1]}?" in http.get(path).text


def test_unknown_paths_have_no_methods(http: httpx.Client) -> None:
    answer = http.options("/no/such/path")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
