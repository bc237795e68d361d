"""What answers and logs must not carry: tracebacks, paths, headers of the caller's making."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from urllib.parse import quote

import httpx
import numpy as np
import pytest

from security.raw_http import connect, head, one_answer, status, until_closed
from support.serving import NPY, npy, running
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.engines.interface import Outputs, Staged
from vim_embed.http.app import create_app
from vim_embed.observability.logs import configure_logging
from vim_embed.settings import Settings

PIXELS = npy(np.zeros((1, 3, 8, 8), np.uint8))
INSIDE = "/srv/private/weights.pth token=hf_abcdefghijkl"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    settings = Settings(model_control=True)
    with running(create_app(settings, ArithmeticEngine())) as url:
        yield url


class Leaking(ArithmeticEngine):
    """Fails with something in its message that is nobody's business."""

    def run(self, staged: Staged) -> Outputs:
        raise RuntimeError(INSIDE)


def test_a_fault_shows_nothing_of_the_inside() -> None:
    own = {"Authorization": "Bearer key"}
    app = create_app(Settings(worker_restarts=1000, api_keys="key"), Leaking())
    with running(app, wait=False) as url:
        while httpx.get(f"{url}/health/ready").status_code != 200:
            time.sleep(0.02)
        found = []
        for _ in range(20):  # until it is asked before the worker has started anew
            found.append(httpx.post(f"{url}/embed", content=PIXELS, headers=NPY | own))
            anonymous = [httpx.get(url + path) for path in ("/health/ready", "/v2/health/ready")]
            operator = httpx.get(f"{url}/health/ready", headers=own)
            if operator.status_code == anonymous[0].status_code == 503:
                break
    assert {answer.status_code for answer in (*found, *anonymous, operator)} <= {400, 500, 503}
    for answer in (*found, *anonymous):
        for secret in ("/srv/private", "hf_abcdefghijkl", "Traceback", ".py"):
            assert secret not in answer.text, answer.text
    assert "/srv/private" in operator.text  # the reason, for whoever runs the service
    assert "hf_abcdefghijkl" not in operator.text


def test_a_fault_in_a_route_shows_nothing_either(monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(Settings(), ArithmeticEngine())

    def broken() -> Mapping[str, object]:
        raise RuntimeError(INSIDE)

    with running(app) as url:
        monkeypatch.setattr(app.state.service, "check_ready", broken)
        answer = httpx.get(f"{url}/health/ready")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "private" not in answer.text
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    "asked",
    [
        "x\r\nX-Evil: 1",
        "x\nX-Evil: 1",
        "\u2028X-Evil: 1",
        "x\0",
        "a" * 5000,
        "é",
        "../../etc/passwd",
    ],
)
def test_names_cannot_make_headers(url: str, asked: str) -> None:
    name = quote(asked, safe="")
    for path in (f"/models/{name}", f"/v2/models/{name}", f"/{name}", f"/models/{name}/load"):
        answer = httpx.request("POST" if path.endswith("load") else "GET", url + path)
        assert answer.status_code in (404, 405)
        assert "x-evil" not in answer.headers
    answer = httpx.post(f"{url}/embed?model={name}&pooling={name}", content=PIXELS, headers=NPY)
    assert answer.status_code in (404, 422)
    assert "x-evil" not in answer.headers


@pytest.mark.parametrize("sent", ["a b", "x;y", "<script>", "é", "a" * 65, "", "a\tb"])
def test_an_odd_request_id_is_replaced(url: str, sent: str) -> None:
    answer = httpx.get(f"{url}/models", headers=[(b"X-Request-ID", sent.encode("latin-1"))])
    assert answer.status_code == 200
    assert answer.headers["X-Request-ID"] != sent
    assert len(answer.headers["X-Request-ID"]) == 32


def test_a_line_break_in_a_header_is_no_request(url: str) -> None:
    with connect(url) as connection:
        connection.sendall(
            b"GET /models HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: a\nb\rc\r\n\r\n"
        )
        assert status(until_closed(connection)) == 400


def test_trailers_are_no_headers(url: str) -> None:
    top = head(Content_Type="application/x-npy", Transfer_Encoding="chunked")
    body = b"%x\r\n%s\r\n0\r\nX-Request-ID: from-a-trailer\r\n\r\n" % (len(PIXELS), PIXELS)
    with connect(url) as connection:
        connection.sendall(top + body)
        answer = one_answer(connection)
    assert status(answer) == 200
    assert b"from-a-trailer" not in answer


@pytest.mark.parametrize(
    "path",
    [
        "/static/..%2f..%2f..%2fetc/passwd",
        "/static-offline-docs/../../../../etc/passwd",
        "/static-offline-docs/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/static-offline-docs//etc/passwd",
        "/static-offline-docs/..%5c..%5cetc%5cpasswd",
        "/models/%2fetc%2fpasswd",
        "/models/..%2f..%2fetc%2fpasswd/layers",
        "/v2/models/..%2f..%2fetc%2fpasswd/config",
        "/v2/models//etc/passwd/ready",
    ],
)
def test_no_file_is_reached_by_a_path(url: str, path: str) -> None:
    with connect(url) as connection:
        connection.sendall(head("GET", path, Connection="close"))
        answer = until_closed(connection)
    assert status(answer) in (400, 404)
    assert b"root:" not in answer


@pytest.mark.parametrize("action", ["load", "unload", "pin", "unpin", "check"])
@pytest.mark.parametrize(
    "name", ["/etc/passwd", "org/repo", "mine=/etc/passwd", "x=org/repo:file", "../x", "vim-tiny"]
)
def test_control_takes_configured_names_alone(url: str, action: str, name: str) -> None:
    answer = httpx.post(f"{url}/models/{quote(name, safe='')}/{action}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_model")


@pytest.mark.parametrize("field", sorted(set(Settings.model_fields) - {"dtype", "exact"}))
def test_no_setting_is_reached_by_a_request(url: str, field: str) -> None:
    value = {field: "/etc/passwd"}
    answer = httpx.post(f"{url}/embed", params=value, content=PIXELS, headers=NPY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_input")
    before = httpx.get(f"{url}/models").json()
    httpx.post(f"{url}/embed", json={"inputs": [[[[0]]]], **value})
    assert httpx.get(f"{url}/models", params=value).json() == before


def test_a_log_line_stays_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        for form in ("json", "console"):
            configure_logging("info", form)
            logging.getLogger("x").info("request", extra={"path": "/a\nb\r\x1b[31m c"})
        first, second = capsys.readouterr().err.rstrip("\n").split("\n")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert json.loads(first)["path"].startswith("/a\nb")
    assert "\x1b[31m c" not in second
    assert "\r" not in second


LONG = "x" * 200_000
V2 = "/v2/models/arithmetic/infer"


def _v2(**changes: object) -> dict[str, object]:
    tensor = {"name": "pixel_values", "shape": [1, 3, 8, 8], "datatype": "UINT8", "data": [0] * 192}
    of_tensor = {name: changes.pop(name) for name in ("name", "datatype") if name in changes}
    return {"inputs": [{**tensor, **of_tensor}], **changes}


LONG_TEXTS = {
    "dtype": ("/embed", {"inputs": [1], "dtype": LONG}),
    "dtype of base64": ("/embed", {"inputs": {"base64": "", "shape": [1], "dtype": LONG}}),
    "a key": ("/embed", {LONG: 1}),
    "v2 id": (V2, _v2(id=LONG)),
    "v2 name": (V2, _v2(name=LONG)),
    "v2 datatype": (V2, _v2(datatype=LONG)),
    "v2 output": (V2, _v2(outputs=[{"name": LONG}])),
    "v2 parameter": (V2, _v2(parameters={LONG: 1})),
    **{
        f"v2 {name}": (V2, _v2(parameters={name: LONG}))
        for name in ("pooling", "layers", "mean", "std", "dtype", "sequence_id")
    },
    "v2 mean of many": (V2, _v2(parameters={"mean": "0.5," * 50_000 + "0.5"})),
}


@pytest.mark.parametrize("name", LONG_TEXTS)
def test_no_answer_is_as_long_as_a_text_of_its_request(url: str, name: str) -> None:
    path, body = LONG_TEXTS[name]
    answer = httpx.post(url + path, json=body)
    assert answer.status_code in (400, 422)
    assert len(answer.content) < 5000


@pytest.mark.parametrize("path", ["/embed", "/preview"])
def test_a_parameter_that_is_there_twice_is_refused(url: str, path: str) -> None:
    twice = "?model=arithmetic&hdu=0&model=other"
    answer = httpx.post(url + path + twice, content=PIXELS, headers=NPY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_input")
    assert "'model' is there twice" in answer.text
