"""`vim-embed bench`: what it runs and reports; how fast that is, is not tested."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from vim_embed_client import LocalServer, bench
from vim_embed_client.cli import run

from .fake_service import FakeService, refuse

ROOT = str(Path(__file__).parents[2])
SHORT = ["bench", "--clients", "2", "--rows", "3", "--seconds", "0.05"]


@pytest.fixture
def _fake_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    program = (sys.executable, "-m", "tests.client.fake_server")
    env = os.environ | {"PYTHONPATH": ROOT}
    monkeypatch.setenv("PYTHONPATH", ROOT)
    monkeypatch.setattr(bench, "BARE", (*program, "bare", "--json"))
    server = partial(LocalServer, command=(*program, "serve"), env=env)
    monkeypatch.setattr(bench, "LocalServer", server)


@pytest.mark.usefixtures("_fake_programs")
def test_its_own_service_and_the_bare_loop_alternate(capsys: Any) -> None:
    args = [*SHORT, "--rounds", "2", "--random-weights", "--json", "--", "--device", "cpu"]
    assert run(args) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert len(report["rounds"]) == 2
    http = median(r["http_rows_per_s"] for r in report["rounds"])
    assert report["bare_rows_per_s"] == 100.0
    assert report["ratio"] == pytest.approx(http / 100)
    assert report["machine"]["cores"] >= 1
    assert report["versions"]["vim-embed"]
    flags = " ".join(report["rounds"][0]["bare"]["flags"])
    assert flags.endswith(
        "--model vim-tiny --rows 3 --batch-rows 3 --seconds 0.05 --wire uint8 "
        "--random-weights --device cpu"
    )
    steps = [line for line in captured.err.splitlines() if line.startswith("round")]
    assert steps == [f"round {n} of 2: {what}" for n in (1, 2) for what in ("bare loop", "HTTP")]


def test_a_running_service_is_measured_without_a_bare_loop(
    url: str, service: FakeService, capsys: Any
) -> None:
    assert run([*SHORT, "--url", url, "--rounds", "1", "--wire", "float32", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ratio"] is None
    (measured,) = report["rounds"]
    assert measured["server_ms"] == {"queue": 1.5, "forward": 20.25, "total": 22.0}
    assert list(measured["latency_ms"]) == ["p50", "p90", "p99"]
    assert {(seen.rows, seen.dtype) for seen in service.seen} == {(3, "float32")}
    assert len(service.seen) == measured["requests"] + 2


@pytest.mark.usefixtures("_fake_programs")
def test_the_table(capsys: Any) -> None:
    assert run([*SHORT, "--rounds", "1"]) == 0
    shown = capsys.readouterr().out
    assert "2 clients × 3 uint8 rows" in shown
    assert "of the bare loop" in shown


@pytest.mark.usefixtures("_fake_programs")
def test_a_broken_bare_loop_shows_its_end(capsys: Any) -> None:
    assert run([*SHORT, "--", "broken"]) == 1
    assert "RuntimeError: no such backend" in capsys.readouterr().err


def test_a_refusal_ends_the_measurement(url: str, service: FakeService, capsys: Any) -> None:
    service.always = refuse(422, "invalid_input", "not these")
    assert run([*SHORT, "--url", url]) == 1
    assert "Error: not these (HTTP 422 invalid_input" in capsys.readouterr().err


def test_flags_for_a_service_that_runs_already_are_refused(url: str, capsys: Any) -> None:
    assert run([*SHORT, "--url", url, "--random-weights"]) == 2
    assert "no effect" in capsys.readouterr().err
