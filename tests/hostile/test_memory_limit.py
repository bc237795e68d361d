"""A container of 2 GB: more bodies than fit, with the settings as they come."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import pytest
from memory_soak import all_at_once

from hostile.load import Load
from hostile.machine import in_group, memory_group
from security.processes import MIB, server_process
from vim_embed_client.formats import NpyBody

pytestmark = pytest.mark.hostile
GROUP = 2 * 1024**3
BODY = 187 * MIB
REQUESTS = 16
SIDE = 256  # a batch of the stub's engine takes 75 MB


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.timeout(600)
def test_two_gigabytes(tmp_path: Path, processes: str) -> None:
    """2.9 GiB of bodies at once: some are answered, the others refused, and nothing is killed."""
    rows = BODY // (3 * SIDE**2)
    pixels = np.broadcast_to(np.zeros((1, 3, SIDE, SIDE), np.uint8), (rows, 3, SIDE, SIDE))
    body = NpyBody(pixels, dtype=pixels.dtype)
    with memory_group(GROUP) as group:
        flags = ("--http-processes", processes, "--client-share", "1")
        with server_process(tmp_path, *flags, before=in_group(group)) as server:
            assert '"inflight_bytes": 1073741824' in server.log.read_text()
            answers = all_at_once(server.url, body, REQUESTS)
            statuses = [answer.status_code for answer in answers]
            assert set(statuses) == {200, 429}, [answer.text[:200] for answer in answers]
            assert server.alive
            peak = _peak(group)
            print(f"{statuses.count(200)} answered, {statuses.count(429)} refused, the group had "
                  f"{peak / MIB:.0f} MiB at most")  # fmt: skip
            assert peak < GROUP
            with Load(server.url) as load:
                load.more()
            load.only()
            assert httpx.get(f"{server.url}/health/ready").status_code == 200


def _peak(group: Path) -> int:
    for name in ("memory.peak", "memory.max_usage_in_bytes"):
        if (group / name).exists():
            return int((group / name).read_text())
    return int((group / "memory.current").read_text())
