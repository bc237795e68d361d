"""Downloads tell how far they are, and what is left."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vim_embed.weights.download_progress import told_in_words

HUB = Path(__file__).parents[3] / "docker/verify/hub.py"
LOCATE = """
from vim_embed.weights.catalogue import parse_model
from vim_embed.weights.hub import locate
locate(parse_model("mine=someone/vim"), lambda done, of: print(done, of))
"""


def test_a_real_download_tells_its_bytes(tmp_path: Path) -> None:
    size = 25_000_000
    weights = tmp_path / "weights.pth"
    weights.write_bytes(bytes(size))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    hub = subprocess.Popen([sys.executable, HUB, weights, str(port)], stderr=subprocess.DEVNULL)
    try:
        _wait_for(port)
        environment = {
            **os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{port}",
            "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", LOCATE],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
    finally:
        hub.kill()
        hub.wait()
    told = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert told[-1] == (size, size)
    assert 0 < told[0][0] < size
    assert [here for here, _ in told] == sorted(here for here, _ in told)


def _wait_for(port: int) -> None:
    end = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.05)
        else:
            return


def test_progress_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    tell = told_in_words(said.append)
    for now, done, of in (  # noqa: B007
        (101.0, 10, 20), (110.0, 500_000_000, 2_000_000_000), (111.0, 600_000_000, 2_000_000_000),
        (140.0, 2_000_000_000, 2_000_000_000), (141.0, 2_000_000_000, 2_000_000_000),
    ):  # fmt: skip
        tell(done, of)
    assert said == [
        "downloading its weights, 500 of 2000 MB, about 30 s left",
        "loading its weights",
    ]
