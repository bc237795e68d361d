"""benchmarks/ray_devices.py with pretended devices: all of its parts run, and count right."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray", reason='needs the extra: pip install "vim-embed[ray]"')

ROOT = Path(__file__).parents[2]
SMALL = ["--rows=8", "--size=32", "--batch-rows=16", "--clients=3", "--http-processes=1"]
BULK = ["--files=3", "--rows-of-file=96", "--part-rows=16", "--bulk-rounds=1"]
QUICK = ["--rounds=1", "--seconds=1", "--warm-up=1", "--back=1", "--ingresses=1"]
BARS = ["--least-bulk=0", "--least-http=0", "--object-store=0.3"]


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("proxy", [[], ["--haproxy"]], ids=["ray", "haproxy"])
def test_it_measures_pretended_devices(proxy: list[str], tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/ray_devices.py"), "--stub=300", *proxy]
    command += ["--devices=cpu:0,cpu:1", f"--folder={tmp_path}", *SMALL, *BULK, *QUICK, *BARS]
    path = os.pathsep.join(
        str(ROOT / name) for name in ("service", "client", "tests", "benchmarks")
    )
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=580, env=os.environ | {"PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^bulk: \d+\.\d\d times one engine$", done.stdout, re.MULTILINE)
    assert re.search(r"^http, 1 ingress replicas: alone \d+, through Ray \d+ ", done.stdout, re.M)
    assert "2 killed under 3 clients" in done.stdout
    assert "none lost, none wrong" in done.stdout
