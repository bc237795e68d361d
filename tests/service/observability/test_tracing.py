"""Traces, received by a small OTLP endpoint on loopback."""

from __future__ import annotations

import gzip
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from support.fixtures_vim import DATA
from support.serving import NPY, npy, running
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.engines.interface import Outputs, Staged
from vim_embed.http.app import create_app
from vim_embed.observability.tracing import ENDPOINTS, NoTraces, traces_of_environment
from vim_embed.settings import Settings

PIXELS = np.arange(3 * 3 * 8 * 8, dtype=np.uint8).reshape(3, 3, 8, 8)
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Receiver(ThreadingHTTPServer):
    """Keeps every span that is sent to it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.spans: list[Any] = []
        self.resources: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def keep(self, request: ExportTraceServiceRequest) -> None:
        for part in request.resource_spans:
            self.resources.append(attributes(part.resource))
            for scope in part.scope_spans:
                self.spans += scope.spans

    def named(self, name: str) -> Any:
        (span,) = [span for span in self.spans if span.name == name]
        return span


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.keep(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return None


def attributes(of: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in of.attributes}


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
        yield server
        server.shutdown()
        thread.join()


class SlowEngine(ArithmeticEngine):
    """Takes 50 ms for a batch."""

    def run(self, staged: Staged) -> Outputs:
        time.sleep(0.05)
        return super().run(staged)


def post(url: str, **headers: str) -> httpx.Response:
    return httpx.post(f"{url}/embed", content=npy(PIXELS), headers={**NPY, **headers})


def test_a_request_and_its_parts(receiver: Receiver) -> None:
    with running(create_app(Settings(), SlowEngine())) as url:
        before = time.time_ns()
        answer = post(url, traceparent=f"00-{TRACE}-{PARENT}-01", **{"X-Request-ID": "galaxy-7"})
        after = time.time_ns()
        assert answer.status_code == 200
    request = receiver.named("POST /embed")
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    told = attributes(request)
    assert told["vim_embed.request_id"] == "galaxy-7"
    assert told["http.route"] == told["url.path"] == "/embed"
    assert (told["http.request.method"], told["http.response.status_code"]) == ("POST", 200)
    parts = [receiver.named(name) for name in ("read", "queue", "forward")]
    for part in parts:
        assert (part.trace_id, part.parent_span_id) == (request.trace_id, request.span_id)
        assert attributes(part) == {"vim_embed.model": "arithmetic", "vim_embed.rows": 3}
    slack = 5_000_000  # between the two clocks of a span
    times = [before, request.start_time_unix_nano]
    times += [t for p in parts for t in (p.start_time_unix_nano, p.end_time_unix_nano)]
    times += [request.end_time_unix_nano, after]
    assert all(late >= early - slack for early, late in pairwise(times))
    forward = parts[2]
    assert forward.end_time_unix_nano - forward.start_time_unix_nano >= 50_000_000
    assert receiver.resources[0]["service.name"] == "vim-embed"


def test_v2_errors_and_quiet_routes(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "sky")

    class Broken(ArithmeticEngine):
        def run(self, staged: Staged) -> Outputs:
            raise RuntimeError("broken")

    with running(create_app(Settings(), Broken())) as url:
        for path in ("/health/live", "/health/ready", "/v2/health/live", "/metrics"):
            assert httpx.get(url + path).status_code == 200
        ready = httpx.get(f"{url}/v2/models/arithmetic/ready")
        broken = post(url)
        missing = httpx.get(f"{url}/v2/models/none", headers={b"traceparent": b"00-\xff-zz"})
    assert (ready.status_code, broken.status_code, missing.status_code) == (200, 500, 404)
    names = [span.name for span in receiver.spans]
    assert not [name for name in names if "health" in name or "metrics" in name]
    assert "GET /v2/models/{model:path}/ready" in names
    error = receiver.named("POST /embed")
    assert attributes(error)["error.type"] == "internal_error"
    assert error.status.code == 2
    unknown = receiver.named("GET /v2/models/{model:path}")
    assert attributes(unknown)["http.response.status_code"] == 404
    assert unknown.status.code == 0  # the caller's fault is no error of this service
    assert receiver.resources[0]["service.name"] == "sky"


def test_unsampled_requests_are_not_sent(receiver: Receiver) -> None:
    with running(create_app(Settings(), ArithmeticEngine())) as url:
        assert post(url, traceparent=f"00-{TRACE}-{PARENT}-00").status_code == 200
    assert "POST /embed" not in [span.name for span in receiver.spans]


def test_nobody_listening_disturbs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with running(create_app(Settings(), ArithmeticEngine())) as url:
        assert post(url).status_code == 200
        begin = time.monotonic()
    assert time.monotonic() - begin < 20


def test_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    assert isinstance(traces_of_environment(), NoTraces)
    code = (
        "import sys; from vim_embed.http.app import create_app;"
        "from vim_embed.settings import Settings;"
        "from vim_embed.engines.arithmetic import ArithmeticEngine;"
        "create_app(Settings(), ArithmeticEngine());"
        "sys.exit(any(name.startswith('opentelemetry.sdk') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    monkeypatch.setenv(ENDPOINTS[0], "http://127.0.0.1:9/v1/traces")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert isinstance(traces_of_environment(), NoTraces)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINTS[1], "http://127.0.0.1:9")
    monkeypatch.delitem(sys.modules, "vim_embed.observability.tracing_otel", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ValueError, match=r"pip install 'vim-embed\[otel\]'"):
        create_app(Settings(), ArithmeticEngine())


def test_a_server_sends_what_waits_before_it_ends(receiver: Receiver, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve = [sys.executable, "-m", "vim_embed.cli", "serve", "--port", str(port)]
    model = [
        "--device",
        "cpu",
        "--log-format",
        "json",
        "--model",
        f"micro={DATA / 'vim_micro.pth'}",
    ]
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen([*serve, *model, "--log-format", "json"], stderr=out)
    try:
        end = time.monotonic() + 120
        ready = False
        while not ready:
            assert time.monotonic() < end
            assert process.poll() is None
            with suppress(httpx.TransportError):
                ready = httpx.get(f"http://127.0.0.1:{port}/health/ready").status_code == 200
            time.sleep(0.1)
        pixels = np.zeros((2, 3, 64, 64), np.uint8)
        answer = httpx.post(f"http://127.0.0.1:{port}/embed", content=npy(pixels), headers=NPY)
        assert answer.status_code == 200
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait(30)
    span = receiver.named("POST /embed")
    assert attributes(receiver.named("forward"))["vim_embed.model"] == "micro"
    assert f'"trace_id": "{span.trace_id.hex()}"' in log.read_text()
