"""`vim-embed bench`: what it runs and reports; how fast that is, is not tested."""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from starlette.requests import Request
from starlette.responses import Response

from client.fake_service import SIZE, FakeService, Fault, refuse
from support.figure_layout import assert_apart_and_within
from support.serving import running
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.http.app import create_app
from vim_embed.settings import Settings
from vim_embed_client import Client, LocalServer
from vim_embed_client.bench import load_generator as load
from vim_embed_client.bench.load_generator import Sender, Task
from vim_embed_client.cli import bench
from vim_embed_client.cli.main import run
from vim_embed_client.figures.throughput import throughput_figure

ROOT = str(Path(__file__).parents[3])
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
    assert list(measured["latency_ms"]) == ["p50", "p90", "p99", "p99.9"]
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


@pytest.mark.usefixtures("_fake_programs")
def test_a_sweep_measures_every_combination_in_every_round(capsys: Any) -> None:
    sweep = ["bench", "--clients", "1,2", "--rows", "1,3", "--seconds", "0.05", "--rounds", "2"]
    assert run([*sweep, "--json"]) == 0
    captured = capsys.readouterr()
    cases = json.loads(captured.out)["cases"]
    assert [(c["clients"], c["rows"]) for c in cases] == [(1, 1), (2, 1), (1, 3), (2, 3)]
    for case in cases:
        assert len(case["rounds"]) == 2
        assert case["requests"] == sum(r["requests"] for r in case["rounds"]) >= 2 * case["clients"]
        assert case["http_rows_per_s"] == median(r["http_rows_per_s"] for r in case["rounds"])
        assert case["ratio"] == pytest.approx(case["http_rows_per_s"] / 100)
        assert case["latency_ms"]["p99.9"] >= case["latency_ms"]["p50"] > 0
    flags = " ".join(cases[0]["rounds"][0]["bare"]["flags"])
    assert "--rows 3 --batch-rows 3" in flags
    steps = [line for line in captured.err.splitlines() if line.startswith("round 1")]
    assert steps[:2] == ["round 1 of 2: bare loop", "round 1 of 2: HTTP, 1 client × 1 row"]
    assert len(steps) == 5


@pytest.mark.parametrize("counts", ["0", "1,,2", "two", "1,-2"])
def test_what_is_no_list_of_counts_is_refused(counts: str, capsys: Any) -> None:
    assert run(["bench", "--clients", counts]) == 2
    assert "is not a list of whole numbers from 1, as 1,2,4" in capsys.readouterr().err


def test_a_real_service_tells_its_batches(capsys: Any) -> None:
    with running(create_app(Settings(), ArithmeticEngine())) as url:
        command = ["bench", "--url", url, "--clients", "2", "--rows", "3", "--wire", "float16"]
        assert run([*command, "--seconds", "0.2", "--rounds", "1", "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert run([*command, "--seconds", "0.2", "--rounds", "1"]) == 0
    batch = report["batch"]
    assert 3 <= batch["rows"] <= 6
    assert batch["forward_ms"] > 0
    assert batch["stage_ms"] > 0
    assert report["failures"] == {}
    shown = capsys.readouterr().out
    assert "2 clients × 3 float16 rows" in shown
    assert "batch" in shown


def _all_but_the_first(failing: Fault, first: int) -> Fault:
    """Lets the first requests through and every second one after them."""

    async def fault(service: FakeService, request: Request) -> Response | None:
        number = len(service.seen)
        return await failing(service, request) if number > first and number % 2 else None

    return fault


def test_refusals_and_errors_are_counted_apart(url: str, service: FakeService, capsys: Any) -> None:
    once = ["bench", "--clients", "1", "--rows", "1", "--rounds", "1", "--url", url]
    service.always = _all_but_the_first(refuse(429, "queue_full", Retry_After="0.01"), 1)
    assert run([*once, "--seconds", "0.3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["refused"] == report["failures"]["queue_full"] > 0
    assert report["errors"] == 0
    assert len(service.seen) == 1 + report["requests"] + report["refused"]  # none is tried again
    service.seen.clear()
    service.always = _all_but_the_first(refuse(500, "internal_error"), 1)
    assert run([*once, "--seconds", "0.3"]) == 0
    shown = capsys.readouterr().out
    assert "0 requests refused" in shown
    assert "failed (internal_error" in shown


def test_a_refused_client_waits_as_long_as_it_is_told(url: str, service: FakeService) -> None:
    service.always = _all_but_the_first(refuse(429, "queue_full", Retry_After="0.2"), 0)
    with Client(url, max_retries=0) as client:
        sample = _sender(client).run(Task(rows=1, seconds=0.5))
    assert 1 <= sample.failures["queue_full"] <= 3
    assert sample.ended - sample.started >= 0.5


def test_arrivals_are_a_poisson_process() -> None:
    due = np.array(list(Task(rows=1, seconds=50, rate=100).arrivals()))
    gaps = np.diff(due)
    assert len(due) == pytest.approx(5000, abs=300)
    assert gaps.mean() == pytest.approx(0.01, rel=0.1)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)  # as an exponential has it
    assert not np.array_equal(due, list(Task(rows=1, seconds=50, rate=100, seed=1).arrivals()))


def test_the_open_loop_counts_from_the_intended_time(
    url: str, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slowly(service: FakeService, request: Request) -> Response | None:
        await request.body()
        time.sleep(0.05)  # in the event loop: one request after the other
        return None

    service.always = slowly
    monkeypatch.setattr(load, "OPEN_REQUESTS", 4)
    task = Task(rows=1, seconds=0.5, rate=100)
    with Client(url, max_retries=0) as client:
        sample = _sender(client).run(task)
    assert len(sample.latencies) + sample.unsent == len(list(task.arrivals()))
    assert sample.unsent > 0
    # 100 a second are asked for and 20 answered: the last to leave waited for half a second
    assert max(sample.latencies) > 0.4
    assert min(sample.latencies) < 0.2


def test_the_open_loop_keeps_its_rate(url: str, service: FakeService, capsys: Any) -> None:
    command = ["bench", "--url", url, "--clients", "2", "--rows", "1", "--rate", "40"]
    assert run([*command, "--seconds", "0.5", "--rounds", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rate"] == 40
    expected = [
        sum(
            1
            for client in (0, 1)
            for _ in Task(rows=1, seconds=0.5, rate=20, seed=seed + client).arrivals()
        )
        for seed in (1000, 2000)
    ]
    assert [r["requests"] for r in report["rounds"]] == expected
    assert report["unsent"] == 0


@pytest.mark.usefixtures("_fake_programs")
def test_the_plot(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "bench.svg"
    sweep = ["bench", "--clients", "1,2", "--rows", "1,3", "--seconds", "0.05", "--rounds", "1"]
    assert run([*sweep, "--plot", str(file)]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines()[1:-2])) <= 80
    assert "…" not in shown
    drawn = file.read_text()
    assert "rows per second" in drawn
    for words in ("clients at once", "bare loop", "3 rows a request", "p99, 3 rows"):
        assert words in drawn
    assert run([*sweep, "--plot", str(tmp_path / "bench.txt")]) == 2
    assert "does not end in one of" in capsys.readouterr().err


@pytest.mark.usefixtures("_fake_programs")
def test_nothing_leaves_the_plot_or_covers_another(capsys: Any) -> None:
    args = ["bench", "--clients", "1,2", "--rows", "1,2,3,4", "--seconds", "0.05", "--rounds", "1"]
    assert run([*args, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    for case in report["cases"]:
        case["rows"] = 1024 * case["rows"]
    figure = throughput_figure(report)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes: list[Any] = [text.get_window_extent() for text in figure.texts]
    for axes in figure.axes:
        legend: Any = axes.get_legend()
        boxes.append(legend.get_window_extent())
        legend.set_in_layout(False)
        boxes.append(axes.get_tightbbox(canvas.get_renderer()))
        assert axes.dataLim.y1 < 0.97 * axes.get_ylim()[1], "a marker would lie on the edge"
    assert_apart_and_within(figure, boxes)
    assert "One round of 0.05 s." in "\n".join(text.get_text() for text in figure.texts)


def _sender(client: Client) -> Sender:
    return Sender(client, "vim-tiny", [np.zeros((1, 3, SIZE, SIZE), np.uint8)])
