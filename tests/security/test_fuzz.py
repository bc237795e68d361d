"""Mutated requests against a real server: always the error shape or a right 200, and no growth."""

from __future__ import annotations

import os
from email.message import Message
from pathlib import Path

import httpx
import pytest
from fuzz import FLAGS, GROWTH, Report, fuzz

from security.oracle import check_answer
from security.processes import server_process
from security.requests import make


def run(folder: Path, inputs: int, seed: int) -> Report:
    with server_process(folder, *FLAGS) as server:
        report = fuzz(server, inputs=inputs, seed=seed)
        assert httpx.get(f"{server.url}/health/ready").status_code == 200
        log = server.log.read_text()
    print(report.summary())
    assert not report.faults, report.faults
    assert "Traceback" not in log, log[-3000:]
    assert report.growth < GROWTH
    return report


def test_fuzz(tmp_path: Path) -> None:
    report = run(tmp_path, 800, seed=1)
    assert report.inputs == 800
    assert len(report.kinds) >= 13
    assert min(report.statuses[status] for status in ("200", "400", "404", "415", "422")) > 12


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_fuzz_for_long(tmp_path: Path) -> None:
    inputs = int(os.environ.get("VIM_EMBED_FUZZ_INPUTS", "100000"))
    assert run(tmp_path, inputs, seed=2).inputs == inputs


def test_the_same_number_is_the_same_request() -> None:
    assert make(3, 17) == make(3, 17)
    assert len({make(3, number).content for number in range(50)}) > 30


def test_the_oracle_finds_wrong_answers(tmp_path: Path) -> None:
    """A row of another request, a plain-text error and an undocumented code are noticed."""
    numbers = (n for n in range(500) if make(0, n).kind == "npy")
    with server_process(tmp_path, *FLAGS) as server:
        for number in numbers:
            request = make(0, number)
            answer = httpx.post(
                server.url + request.path, content=request.content, headers=request.headers
            )
            if answer.status_code == 200:
                break
    headers = _message(answer.headers)
    assert check_answer(request, 200, headers, answer.content) is None
    broken = answer.content.replace(answer.content[-20:-16], b"\0\0\x80\x41")
    assert "wrong rows" in str(check_answer(request, 200, headers, broken))
    assert "not JSON" in str(check_answer(request, 400, headers, b"Bad Request"))
    shape = b'{"error": {"code": "internal_error", "message": "m", "request_id": "r"}}'
    assert "not documented" in str(check_answer(request, 500, headers, shape))


def _message(headers: httpx.Headers) -> Message:
    message = Message()
    for name, value in headers.items():
        message[name] = value
    return message
