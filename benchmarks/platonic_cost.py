"""What the adapters cost the host, as JSON.

`python benchmarks/platonic_cost.py uint8` (or float32, float16), with a service at VIM_EMBED_URL:
CPU seconds, peak memory and bytes on the wire of one batch. Memory is what the call adds to the
process's peak beyond what is resident before it, with the batch itself already there.

`PYTHONPATH=tests python benchmarks/platonic_cost.py ahead`: rows/s of a run in which preparing a
batch takes as long as embedding it, with calls sent ahead and without, by turns; of a service
whose forward takes a set time, and of a vim-tiny with random weights on the CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vim_embed_client import LocalServer
from vim_embed_client.platonic import RemoteAdapter

ROWS, SIDE = 128, 224
_KIB = 1024
# A run: batches of one survey, as many rows as one request holds; each kind by turns.
BATCH, BATCHES, TURNS = 64, 16, 3
SET_S = 1.0


def pixels(wire: str, rows: int) -> torch.Tensor:
    """A batch as the host's data loader gives it."""
    shape = (rows, 3, SIDE, SIDE)
    if wire == "uint8":
        return torch.randint(0, 256, shape, dtype=torch.uint8)
    return torch.randn(shape, dtype=getattr(torch, wire))


def one_batch(wire: str) -> dict[str, Any]:
    adapter = loaded()
    batch = {"hsc": pixels(wire, ROWS)}
    adapter.embed_for_mode({"hsc": pixels(wire, 1)}, "hsc")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from what is resident now
    before, cpu = _status("VmRSS"), time.process_time()
    embedded = adapter.embed_for_mode(batch, "hsc").cpu().numpy()
    cpu = time.process_time() - cpu
    added = _status("VmHWM") - before
    sent = batch["hsc"].nbytes
    assert len(embedded) == ROWS
    return {"bytes": sent, "cpu_s": cpu, "peak_bytes": added, "ratio": added / sent}


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * _KIB


def loaded() -> RemoteAdapter:
    adapter = RemoteAdapter("vim-tiny", "tiny", alias="vim-remote")
    adapter.load()
    return adapter


class Preparation:
    """Images of galaxies to pixels, over and over until so many seconds have passed."""

    def __init__(self, adapter: RemoteAdapter, seconds: float, rows: int) -> None:
        self._process = adapter.processor
        self._images = list(np.random.default_rng(0).integers(0, 256, (rows, 160, 160, 3), "u1"))
        self._seconds = seconds

    def batch(self) -> dict[str, torch.Tensor]:
        assert self._process is not None
        end = time.perf_counter() + self._seconds
        while True:
            made = self._process(self._images, return_tensors="pt")["pixel_values"]
            if time.perf_counter() >= end:
                return {"hsc": made}


def run(ahead: int, seconds: float, rows: int) -> tuple[float, np.ndarray[Any, Any]]:
    """Rows/s of the host's loop, and the rows."""
    os.environ["VIM_EMBED_AHEAD"] = str(ahead)
    adapter = loaded()
    prepare = Preparation(adapter, seconds, rows)
    adapter.embed_for_mode(prepare.batch(), "hsc")
    start = time.perf_counter()
    embedded = []
    for _ in range(BATCHES):
        embedded.append(adapter.embed_for_mode(prepare.batch(), "hsc"))
    found = torch.cat(embedded).numpy()
    return BATCHES * rows / (time.perf_counter() - start), found


def embedding_seconds(rows: int) -> float:
    """The least of a few calls that wait for their rows."""
    os.environ["VIM_EMBED_AHEAD"] = "0"
    adapter = loaded()
    batch = {"hsc": pixels("uint8", rows)}
    times = []
    for _ in range(4):
        start = time.perf_counter()
        adapter.embed_for_mode(batch, "hsc")
        times.append(time.perf_counter() - start)
    return min(times)


def side_by_side(rows: int) -> dict[str, Any]:
    seconds = embedding_seconds(rows)
    rates: dict[int, list[float]] = {0: [], 4: []}
    answers = []
    for _ in range(TURNS):
        for ahead, found in rates.items():
            rate, embedded = run(ahead, seconds, rows)
            found.append(rate)
            answers.append(embedded)
    waiting, sent_ahead = (float(np.median(found)) for found in rates.values())
    return {
        "embedding_s": seconds,
        "preparing_s": seconds,
        "rows_per_s": {"waiting": waiting, "sent ahead": sent_ahead},
        "ratio": sent_ahead / waiting,
        "same_bytes": all(np.array_equal(answers[0], other) for other in answers[1:]),
    }


def serve_with_a_set_time(seconds: float) -> None:
    """A service whose every answer takes so long; prints its URL and runs until it is ended."""
    import asyncio

    from client import fake_service

    fake_service.SIZE = SIDE
    few = fake_service.embed_rows  # of a corner: the forward is to take its time, not the CPU's
    fake_service.embed_rows = lambda pixels, **options: few(pixels[:, :, :8, :8], **options)
    service = fake_service.FakeService()

    async def wait(service: Any, request: Any) -> None:
        await request.body()
        await asyncio.sleep(seconds)

    service.always = wait
    with fake_service.serve(service.app()) as url:
        print(url, flush=True)
        sys.stdin.read()


@contextmanager
def set_time_service(seconds: float) -> Iterator[str]:
    command = [sys.executable, __file__, "serve", str(seconds)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.communicate()


def ahead() -> None:
    os.environ["VIM_EMBED_ALLOW"] = "missing-sizes"
    os.environ["VIM_EMBED_PROVENANCE"] = "off"
    with set_time_service(SET_S) as url:
        os.environ["VIM_EMBED_URL"] = url
        print(json.dumps({"set time": side_by_side(BATCH)}), flush=True)
    args = ["--device", "cpu", "--random-weights"]
    with LocalServer(["vim-tiny"], args=args) as server:
        os.environ["VIM_EMBED_URL"] = server.url
        print(json.dumps({"vim-tiny on the CPU": side_by_side(8)}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve_with_a_set_time(float(sys.argv[2]))
    elif sys.argv[1] == "ahead":
        ahead()
    else:
        print(json.dumps(one_batch(sys.argv[1])))
