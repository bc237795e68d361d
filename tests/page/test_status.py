"""`GET /status` and the files of the page, over a real server, and the numbers behind them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from support.serving import NPY, npy, running
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.engines.interface import Outputs, Staged
from vim_embed.http.app import create_app
from vim_embed.http.auth import Keys
from vim_embed.http.routes.page import PAGE_PATHS
from vim_embed.observability.activity import WINDOW, Activity, quantile
from vim_embed.observability.redaction import without_secrets
from vim_embed.settings import Settings

FOLDER = Path(__file__).parents[2] / "service" / "vim_embed" / "http" / "page"
PIXELS = npy(np.zeros((3, 3, 8, 8), np.uint8))
KEY = "only-the-owner-knows-this"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(create_app(Settings(), ArithmeticEngine())) as url:
        yield url


def test_status_counts_rows_batches_and_latency(url: str) -> None:
    before = httpx.get(f"{url}/status").json()
    for _ in range(4):
        httpx.post(f"{url}/embed", content=PIXELS, headers=NPY).raise_for_status()
    after = httpx.get(f"{url}/status").json()
    assert after["ready"]
    assert after["batches"]["count"] - before["batches"]["count"] == 4
    assert after["batches"]["mean_rows"] == 3
    assert after["latency"]["count"] - before["latency"]["count"] == 4
    assert 0 < after["latency"]["p50_ms"] <= after["latency"]["p99_ms"]
    assert after["queue"] == {"waiting_rows": 0, "capacity_rows": Settings().queue_rows}
    assert after["models"] == httpx.get(f"{url}/models").json()["models"]


def test_equal_errors_are_one_line_with_a_count(url: str) -> None:
    answers = [httpx.get(f"{url}/models/nope") for _ in range(3)]
    httpx.post(f"{url}/embed", content=b"x", headers=NPY)
    first, second = httpx.get(f"{url}/status").json()["errors"][:2]
    assert (first["code"], first["status"], first["route"]) == (
        "malformed_request",
        400,
        "POST /embed",
    )
    assert (second["code"], second["count"]) == ("unknown_model", 3)
    assert second["message"] == answers[-1].json()["error"]["message"]
    assert second["request_id"] == answers[-1].headers["x-request-id"]


def test_a_fault_of_the_engine_is_listed_without_its_inside() -> None:
    class Faulty(ArithmeticEngine):
        def run(self, staged: Staged) -> Outputs:
            raise RuntimeError("password=hunter2 at 0x7f")

    with running(create_app(Settings(), Faulty())) as url:
        assert httpx.post(f"{url}/embed", content=PIXELS, headers=NPY).status_code == 500
        (error,) = httpx.get(f"{url}/status").json()["errors"]
        assert error["code"] == "internal_error"
        assert "hunter2" not in error["message"]


def test_the_page_is_open_but_the_numbers_want_the_key() -> None:
    app = create_app(Settings(api_keys=KEY), ArithmeticEngine())
    with running(app, wait=False) as url, httpx.Client(base_url=url) as http:
        for path in PAGE_PATHS:
            assert http.get(path).status_code == 200, path
        for path in ("/status", "/page/other", "/page/", "/docs"):
            assert http.get(path).status_code == 401, path
        bearer = {"Authorization": f"Bearer {KEY}"}
        http.get(f"/models/{KEY}", headers=bearer)
        http.get(f"/embed?model={KEY}", headers=bearer)
        answer = http.get("/status", headers=bearer)
        assert answer.status_code == 200
        assert KEY not in answer.text
        assert "no model '[hidden]' is loaded" in answer.text


@pytest.mark.parametrize("path", PAGE_PATHS)
def test_the_page_s_files_carry_the_security_headers(url: str, path: str) -> None:
    headers = httpx.get(url + path).headers
    policy = dict(
        part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


def test_the_page_refers_to_nothing_that_is_not_there(url: str) -> None:
    texts = [path.read_text() for path in FOLDER.iterdir() if path.suffix != ".png"]
    for text in texts:
        addresses = set(re.findall(r"https?://[^\s\"']+", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}
        assert not re.search(r"\son\w+=|style=|innerHTML|eval\(", text), "the policy refuses that"
    page = (FOLDER / "page.html").read_text()
    for reference in re.findall(r'(?:src|href)="([^#"]+)"', page):
        assert httpx.get(f"{url}/{reference}").status_code == 200, reference
    assert {f"/page/{path.name}" for path in FOLDER.iterdir()} - {"/page/page.html"} == set(
        PAGE_PATHS[1:]
    )


def test_an_unknown_file_of_the_page_is_not_found(url: str) -> None:
    answer = httpx.get(f"{url}/page/other.js")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_rates_are_of_whole_seconds_and_are_forgotten() -> None:
    clock = Clock()
    activity = Activity(clock)
    for second in range(20):
        clock.now = 1000.0 + second
        activity.batch(6)
        activity.batch(4)
        activity.answered(0.1)
    clock.now = 1020.5
    summary = activity.summary()
    assert summary["throughput"] == {
        "rows_per_second": 10,
        "rows_each_second": [0] * (WINDOW - 20) + [10] * 20,
    }
    assert summary["batches"] == {"count": 40, "mean_rows": 5}
    assert summary["latency"] == {"count": 20, "p50_ms": 100, "p99_ms": 100}
    clock.now += 2 * WINDOW
    summary = activity.summary()
    assert summary["batches"] == {"count": 0, "mean_rows": None}
    assert summary["latency"] == {"count": 0, "p50_ms": None, "p99_ms": None}
    assert summary["throughput"] == {"rows_per_second": 0, "rows_each_second": [0] * WINDOW}


def test_what_is_remembered_is_bounded() -> None:
    activity = Activity()
    for number in range(5000):
        activity.answered(number)
        activity.failed("not_found", 404, f"no route {number}", "GET /", "id")
    summary = activity.summary()
    assert isinstance(summary["errors"], list)
    assert [error["message"] for error in summary["errors"]][:1] == ["no route 4999"]
    assert len(summary["errors"]) == 20
    assert isinstance(summary["latency"], dict)
    assert summary["latency"]["count"] == 2048


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("no model 'my-key' is loaded", "no model '[hidden]' is loaded"),
        ("https://me:pass@hub/x failed", "https://[hidden]@hub/x failed"),
        ("hf_abcdefghij was refused", "[hidden] was refused"),
        ("Authorization: Bearer abc", "Authorization: Bearer [hidden]"),
        ("at /x?api_key=abc&token=def", "at /x?api_key=[hidden]&token=[hidden]"),
        ("two\nlines", "two lines"),
        ("plain words: stay, as they are (all)", "plain words: stay, as they are (all)"),
        ("x" * 1000, "x" * 400),
    ],
)
def test_secrets_are_hidden(message: str, shown: str) -> None:
    assert without_secrets(message, Keys(["my-key"], None)) == shown


def test_quantiles_are_the_nearest_rank() -> None:
    values = [float(v) for v in range(100, 0, -1)]
    assert quantile(values, 0.5) == 50
    assert quantile(values, 0.99) == 99
    assert quantile([7.0], 0.99) == 7
    assert quantile([], 0.5) is None
