"""Idle models under random load: no row is wrong or lost, and their memory goes back.

    PYTHONPATH=tests python scripts/idle_soak.py --minutes 10

Clients ask for three models with random pauses, around the time after which a model rests. Every
answer is compared, byte by byte, with the first of the same rows. From time to time all clients
pause until every model rests: then the memory of the process is read, and the first rows of each
model after it are timed. Fails where a row differs, an answer is not 200, memory is not back within
5 s of the rest, or the first rows take over 0.5 s longer than the load and an ordinary answer.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx
import numpy as np
import psutil

from support.server_process import server_process
from support.serving import NPY, npy

MODELS = ("vim-tiny", "vim-small", "vim-base")
IDLE = 2.0  # seconds
BACK = 5.0  # seconds in which memory has to be back
SLACK = 0.5  # seconds of the first rows beyond the load and an ordinary answer
BODY = npy(np.random.default_rng(0).integers(0, 256, (2, 3, 224, 224), dtype=np.uint8))


@dataclass
class Found:
    """What the run came to; seconds and MB."""

    answers: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    waited: int = 0
    rests: int = 0
    loaded_mb: float = 0.0
    idle_mb: list[float] = field(default_factory=list)
    first_rows_beyond_load: list[float] = field(default_factory=list)


class Soak:
    """A server, its clients, and what came of them."""

    def __init__(self, url: str, pid: int) -> None:
        self.url = url
        self.found = Found()
        self._process = psutil.Process(pid)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._right = {model: self._first(model) for model in MODELS}
        self._ordinary = {model: self._seconds(model) for model in MODELS}

    def post(self, model: str) -> httpx.Response:
        return httpx.post(f"{self.url}/embed?model={model}", content=BODY, headers=NPY, timeout=300)

    def resident_mb(self) -> float:
        return float(self._process.memory_info().rss) / 1e6

    def one(self, model: str) -> dict[str, float]:
        """One request, counted and compared; its `Server-Timing` in seconds."""
        answer = self.post(model)
        timing = {
            name: float(value) / 1000
            for name, value in (
                part.split(";dur=") for part in answer.headers.get("server-timing", "").split(", ")
                if part
            )
        }  # fmt: skip
        with self._lock:
            self.found.loaded_mb = max(self.found.loaded_mb, self.resident_mb())
            self.found.answers[str(answer.status_code)] += 1
            self.found.wrong += answer.content != self._right[model]
            self.found.waited += "load" in timing
        return timing

    def load(self, clients: int, seconds: float) -> None:
        """Random requests of so many clients for so long."""
        end = time.monotonic() + seconds

        def client(seed: int) -> None:
            chance = random.Random(seed)
            while time.monotonic() < end:
                self.one(chance.choice(MODELS))
                time.sleep(chance.uniform(0, 2 * IDLE))

        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(client, range(clients)))

    def rest(self) -> None:
        """Wait until all models rest; read the memory, and time the first rows after it."""
        while True:
            entries = httpx.get(f"{self.url}/models").json()["models"]
            if {entry["state"] for entry in entries} == {"idle"}:
                break
            time.sleep(0.1)
        time.sleep(BACK / 2)
        self.found.idle_mb.append(round(self.resident_mb(), 1))
        self.found.rests += 1
        for model in MODELS:
            timing = self.one(model)
            beyond = timing["total"] - timing["load"] - self._ordinary[model]
            self.found.first_rows_beyond_load.append(round(beyond, 3))

    def _first(self, model: str) -> bytes:
        """The rows of a model that may still load for the first time."""
        while (answer := self.post(model)).status_code == 503:
            time.sleep(1)
        assert answer.status_code == 200, answer.text
        return answer.content

    def _seconds(self, model: str) -> float:
        self.post(model)  # which may load it
        begin = time.monotonic()
        self.post(model)
        return time.monotonic() - begin


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=4)
    given = parser.parse_args()
    arguments = [f"--model={model}" for model in MODELS]
    arguments += ["--random-weights", "--exact", "--device=cpu", f"--idle-unload={IDLE:g}"]
    with server_process(*arguments) as server:
        soak = Soak(server.url, server.process.pid)
        end = time.monotonic() + 60 * given.minutes
        while time.monotonic() < end:
            soak.load(given.clients, min(20.0, max(1.0, end - time.monotonic())))
            soak.rest()
    found = soak.found
    print(json.dumps(vars(found), indent=2))
    right = not found.wrong and set(found.answers) == {"200"} and found.waited > 0
    # vim-base alone is 390 MB in float32; what the process holds without models is far below.
    memory = max(found.idle_mb) < 0.6 * found.loaded_mb
    soon = max(found.first_rows_beyond_load) < SLACK
    print(f"rows right: {right}; memory back: {memory}; first rows soon: {soon}")
    return 0 if right and memory and soon else 1


if __name__ == "__main__":
    sys.exit(main())
