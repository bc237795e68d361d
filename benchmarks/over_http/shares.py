"""What `--client-share` costs a client that is alone, and gives one beside a greedy client.

PYTHONPATH=tests:benchmarks python benchmarks/over_http/shares.py --seconds 5

The model costs nothing, and 64 MB are kept for bodies. Alone: 16 connections send bodies of 4.8 MB.
Beside: a client announces bodies without end and never sends them, while another sends one row
after the other.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np

from security.processes import server_process
from security.raw_http import connect, head
from support.serving import NPY, npy

ROOM, CONNECTIONS = 64_000_000, 16
LARGE = npy(np.zeros((32, 3, 224, 224), np.uint8))
SMALL = npy(np.zeros((1, 3, 224, 224), np.uint8))
MODEST = {**NPY, "X-Forwarded-For": "203.0.113.1"}


def alone(url: str, seconds: float) -> tuple[float, float]:
    """Rows/s, and the share of requests that are refused and sent again."""
    answers: list[int] = []
    end = time.monotonic() + seconds

    def send() -> None:
        with httpx.Client(timeout=60) as http:
            while time.monotonic() < end:
                answers.append(http.post(f"{url}/embed", content=LARGE, headers=NPY).status_code)
                if answers[-1] != 200:
                    time.sleep(0.05)

    senders = [threading.Thread(target=send) for _ in range(CONNECTIONS)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    return 32 * answers.count(200) / seconds, 1 - answers.count(200) / len(answers)


def beside(url: str, seconds: float) -> float:
    """The share of a modest client's requests that are refused."""
    stop = threading.Event()

    def greedy(promises: ExitStack) -> None:
        top = {"X-Forwarded-For": "198.51.100.7", "Content-Length": "4000000", **NPY}
        while not stop.is_set():
            connection = promises.enter_context(connect(url))
            connection.sendall(head(**top) + b"x")
            time.sleep(0.02)

    with ExitStack() as promises, httpx.Client(timeout=60) as http:
        thread = threading.Thread(target=greedy, args=(promises,))
        thread.start()
        time.sleep(1)
        end, codes = time.monotonic() + seconds, []
        while time.monotonic() < end:
            codes.append(http.post(f"{url}/embed", content=SMALL, headers=MODEST).status_code)
            time.sleep(0.02)
        stop.set()
        thread.join()
    return 1 - codes.count(200) / len(codes)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=5)
    seconds = parser.parse_args().seconds
    print(
        "| share | alone, rows/s | refused | beside a greedy client: refused |\n|---|---|---|---|"
    )
    for share in ("1", "0.75", "0.5", "0.25"):
        flags = ["--inflight-bytes", str(ROOM), "--max-body-bytes", "32000000"]
        flags += ["--client-share", share, "--trusted-proxies", "127.0.0.1"]
        with (
            tempfile.TemporaryDirectory() as folder,
            server_process(Path(folder), *flags, "--log-level", "error") as server,
        ):
            rate, refused = alone(server.url, seconds)
            starved = beside(server.url, seconds)
        print(f"| {share} | {rate:.0f} | {refused:.0%} | {starved:.0%} |", flush=True)


if __name__ == "__main__":
    main()
