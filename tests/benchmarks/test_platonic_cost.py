"""A batch of 128×3×224×224 costs the client little beyond the bytes on the wire."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from client.fake_service import FakeService, serve

MOST = 1.3  # peak memory beyond what is there before, per byte on the wire


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize(("wire", "size"), [("uint8", 1), ("float32", 4)])
def test_memory_of_one_batch(wire: str, size: int) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "platonic_cost.py"
    with serve(FakeService().app()) as url:
        run = subprocess.run(
            [sys.executable, script, wire],
            env=os.environ | {"VIM_EMBED_URL": url, "VIM_EMBED_ALLOW": "missing-sizes"},
            capture_output=True,
            text=True,
            check=True,
        )
    cost = json.loads(run.stdout.splitlines()[-1])
    assert cost["bytes"] == 128 * 3 * 224 * 224 * size
    assert 0 < cost["ratio"] <= MOST, cost
