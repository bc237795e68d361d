"""200 requests of 77 MB at once into a budget of 2 GB: what fits is answered, the rest refused.

    PYTHONPATH=tests python scripts/memory_soak.py --http-processes 1

Fails if the server's memory grows by more than its budget and two batches, if an answer is neither
200 nor 429, if a row is wrong, or if something stays reserved afterwards.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import httpx
import numpy as np

from support.fixtures_vim import DATA
from support.server_memory import processes, watching
from support.server_process import server_process
from support.serving import from_npy
from vim_embed_client.formats import NpyBody

BESIDE = 300_000_000  # bytes of two batches with their activations, answers, 200 connections


@dataclass(frozen=True)
class Report:
    """memory in MB; grown: at most, from after a first answer on."""

    processes: int
    requests: int
    request_mb: float
    budget_mb: float
    before_mb: float
    grown_mb: float
    answers: dict[str, int]
    alive: bool
    wrong: int

    @property
    def sound(self) -> bool:
        within = self.grown_mb <= self.budget_mb + BESIDE / 1e6
        known = set(self.answers) == {"200", "429"}
        return within and known and self.alive and not self.wrong


def measure(*, http_processes: int, requests: int, rows: int, size: int, budget: int) -> Report:
    """Send all requests at once, after one alone."""
    pixels = np.random.default_rng(3).standard_normal((1, 3, size, size)).astype(np.float32)
    pixels = np.broadcast_to(pixels, (rows, *pixels.shape[1:]))
    body = NpyBody(pixels, dtype=pixels.dtype)
    length = int(body.headers["Content-Length"])
    flags = ["--model", f"micro={DATA / 'vim_micro.pth'}", "--client-share", "1"]
    flags += ["--inflight-bytes", str(budget), "--max-body-bytes", str(length + 1_000_000)]
    flags += ["--queue-rows", "100000", "--queue-bytes", str(2 * budget)]
    with server_process(*flags, "--http-processes", str(http_processes)) as started:
        right = from_npy(_post(started.url, body).content)[0]
        with watching(started.process.pid, 0.05) as memory:
            answers = all_at_once(started.url, body, requests)
        fronts = http_processes if http_processes > 1 else 0
        alive = len(processes(started.process.pid)) == 1 + fronts
        alive = alive and _post(started.url, body).status_code == 200
    found = [from_npy(each.content) for each in answers if each.status_code == 200]
    return Report(
        processes=http_processes,
        requests=requests,
        request_mb=length / 1e6,
        budget_mb=budget / 1e6,
        before_mb=memory.unshared[0] / 1e6,
        grown_mb=(memory.peak - memory.unshared[0]) / 1e6,
        answers=dict(Counter(str(each.status_code) for each in answers)),
        alive=alive,
        wrong=sum(not np.allclose(each, right, rtol=1e-3, atol=1e-4) for each in found),
    )


def all_at_once(url: str, body: NpyBody, requests: int) -> list[httpx.Response]:
    """The answers to so many requests that begin together."""
    answers: list[httpx.Response] = []
    begin = threading.Barrier(requests)

    def send() -> None:
        begin.wait()
        answers.append(_post(url, body))

    threads = [threading.Thread(target=send) for _ in range(requests)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    return answers


def _post(url: str, body: NpyBody) -> httpx.Response:
    headers = body.headers | {"Host": url.removeprefix("http://")}
    request = httpx.Request("POST", f"{url}/embed", headers=headers, stream=body)
    with httpx.Client(timeout=600) as client:
        return client.send(request)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--http-processes", type=int, default=1)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--budget", type=int, default=2_000_000_000, help="bytes in flight")
    options = parser.parse_args(arguments)
    report = measure(**vars(options))
    print(json.dumps(asdict(report) | {"sound": report.sound}, indent=2))
    return 0 if report.sound else 1


if __name__ == "__main__":
    sys.exit(main())
