"""The server as a process: start, signals, exit codes."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from click.testing import CliRunner

from support.fixtures_vim import DATA
from support.server_process import command, free_port, server_process
from support.serving import NPY, from_npy, npy
from vim_embed.cli import main

MICRO = f"micro={DATA / 'vim_micro.pth'}"
PIXELS = np.random.default_rng(2).integers(0, 256, (256, 3, 64, 64), dtype=np.uint8)


@contextmanager
def server(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[bytes], Path]]:
    with server_process(*arguments) as started:
        yield started.url, started.process, started.log


def _states(url: str) -> dict[str, str]:
    """Of every model, once none is loading."""
    while True:
        models = httpx.get(f"{url}/models").json()["models"]
        states: dict[str, str] = {model["name"]: model["state"] for model in models}
        if "loading" not in states.values():
            return states
        time.sleep(0.1)


def embed(url: str, rows: int) -> httpx.Response:
    return httpx.post(f"{url}/embed", content=npy(PIXELS[:rows]), headers=NPY, timeout=60)


def test_sigterm_under_load_finishes_what_is_in_flight() -> None:
    with server("--model", MICRO, "--drain-timeout", "120") as (url, process, log):
        reference = from_npy(embed(url, 128).content)
        answers: list[httpx.Response] = []
        threads = [
            threading.Thread(target=lambda: answers.append(embed(url, 128))) for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        _wait_busy(url)
        process.send_signal(signal.SIGTERM)
        refused = _next_refusal(url)
        for thread in threads:
            thread.join(60)
        assert process.wait(60) == 0
        assert refused.json()["error"]["code"] in ("draining", "not_ready")
        assert {answer.status_code for answer in answers} <= {200, 503}  # 503: came too late
        finished = [answer for answer in answers if answer.status_code == 200]
        assert len(finished) >= 2  # more rows than one request has were waiting at the signal
        for answer in finished:
            np.testing.assert_allclose(from_npy(answer.content), reference, rtol=1e-4, atol=1e-5)
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert any(line["event"] == "draining" for line in lines)
        assert sum(line["event"] == "request" and line["path"] == "/embed" for line in lines) >= 7
        assert all(len(line["request_id"]) == 32 for line in lines if line["event"] == "request")


def _wait_busy(url: str) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        text = httpx.get(f"{url}/metrics").text
        line = next(x for x in text.splitlines() if x.startswith("vim_embed_waiting_rows"))
        if float(line.split()[-1]) > 128:
            return
    raise AssertionError("no load arrived")


def _next_refusal(url: str) -> httpx.Response:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        answer = embed(url, 1)
        if answer.status_code == 503:
            return answer
    raise AssertionError("a draining server took new work")


def test_from_loading_to_ctrl_c(tmp_path: Path) -> None:
    """Loading says what it is at, a bad model does not stop the others, and Ctrl-C ends cleanly."""
    (tmp_path / "bad.pth").write_bytes(b"bad")
    with server("--model", MICRO, "--model", f"bad={tmp_path / 'bad.pth'}") as (url, process, log):
        assert _states(url) == {"micro": "ready", "bad": "failed"}
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        stages = [line["stage"] for line in lines if line["event"] == "model loading"]
        assert any("weights" in stage for stage in stages)
        assert any("reference" in stage for stage in stages)
        micro, bad = httpx.get(f"{url}/models").json()["models"]
        assert micro["reason"] is None
        assert "bad.pth" in bad["reason"]
        answer = httpx.post(f"{url}/embed?model=bad", content=npy(PIXELS[:1]), headers=NPY)
        assert answer.status_code == 503
        assert "bad.pth" in answer.json()["error"]["message"]
        assert embed(url, 1).status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert "Traceback" not in log.read_text()


def test_a_forward_that_hangs_does_not_keep_the_process_from_ending() -> None:
    flags = ("--model", MICRO, "--fault-injection", "--forward-timeout", "0.5")
    with server(*flags) as (url, process, log):
        httpx.post(f"{url}/faults", json={"kind": "hang", "seconds": 60}).raise_for_status()
        assert embed(url, 1).json()["error"]["code"] == "worker_failed"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert "terminate called" not in log.read_text()


def test_a_worker_that_is_given_up_ends_the_process() -> None:
    flags = ("--model", MICRO, "--fault-injection", "--worker-restarts", "1")
    with server(*flags) as (url, process, log):
        httpx.post(f"{url}/faults", json={"kind": "engine", "forwards": 9}).raise_for_status()
        codes = [embed(url, 1).json()["error"]["code"] for _ in range(2)]
        assert codes == ["worker_failed", "worker_failed"]
        assert process.wait(30) == 1
        assert "it failed 2 times in a row" in log.read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(("--model", MICRO, "--dtype", "int8"), "float16"), (("--port", "70000"), "--port")],
)
def test_wrong_usage_ends_with_2(arguments: tuple[str, ...], says: str) -> None:
    done = subprocess.run(command("serve", *arguments), capture_output=True, timeout=120)
    assert done.returncode == 2
    assert says in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


# What cannot start: the flags, the exit code, and what is said.
NO_START = [
    (("--model", "resnet"), 2, "vim-tiny"),
    (("--model", MICRO, "--model", MICRO), 2, "given twice"),
    (("--model", MICRO, "--device", "cuda:63"), 2, "--device cpu"),
    (("--model", MICRO, "--backend", "nonsense"), 1, "backend"),
    (("--model", "empty={tmp}"), 1, "no weight file"),
    (("--model", MICRO, "--port", "{taken}"), 2, "ddress already in use"),
]
# Each start in turn within one process: torch is imported once.
START_EACH = """
import json, sys
from click.testing import CliRunner
from vim_embed.cli import main
ends = [CliRunner().invoke(main, ["serve", *flags]) for flags in json.loads(sys.argv[1])]
print(json.dumps([(end.exit_code, end.output) for end in ends]))
"""


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str]]:
    """The exit code and output of each of NO_START."""
    empty = str(tmp_path_factory.mktemp("empty"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        starts = [
            [
                *(() if "--port" in flags else ("--port", str(free_port()))),
                *(flag.format(tmp=empty, taken=port) for flag in flags),
            ]
            for flags, _, _ in NO_START
        ]
        done = subprocess.run(
            [sys.executable, "-c", START_EACH, json.dumps(starts)],
            stdout=subprocess.PIPE,
            timeout=120,
            check=True,
        )
    return [(code, output) for code, output in json.loads(done.stdout.splitlines()[-1])]


@pytest.mark.parametrize("number", range(len(NO_START)), ids=[says for _, _, says in NO_START])
def test_what_cannot_start_says_why(ends: list[tuple[int, str]], number: int) -> None:
    _, expected, says = NO_START[number]
    code, output = ends[number]
    assert code == expected, output
    assert says in output
    assert "Traceback" not in output


def test_check_says_what_would_answer() -> None:
    done = CliRunner().invoke(main, ["check", "--model", MICRO, "--json"])
    assert done.exit_code == 0, done.output
    (status,) = json.loads(done.stdout)
    assert status["state"] == "ready"
    assert status["info"]["weights"]["file"] == "vim_micro.pth"


def test_check_fails_without_weights(tmp_path: Path) -> None:
    done = subprocess.run(
        command("check", "--model", "vim-tiny", "--json"),
        capture_output=True,
        timeout=120,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 1
    assert "vim-tiny=PATH" in json.loads(done.stdout)[0]["reason"]
