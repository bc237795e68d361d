"""How long one-row requests take alone, and while others send requests of 512 rows.

PYTHONPATH=tests:benchmarks python benchmarks/over_http/fairness.py --seconds 20
"""

from __future__ import annotations

import argparse
import io
import threading
import time

import httpx
import numpy as np

from support.fixtures_vim import DATA
from support.server_process import server_process
from support.serving import NPY, npy


def latencies(url: str, seconds: float) -> list[float]:
    """Milliseconds of each one-row request, one after the other, as an interactive user sends."""
    body, taken = npy(np.zeros((1, 3, 64, 64), np.uint8)), []
    end = time.monotonic() + seconds
    with httpx.Client(base_url=url, headers=NPY, timeout=60) as client:
        while time.monotonic() < end:
            begin = time.monotonic()
            client.post("/embed", content=body).raise_for_status()
            taken.append(1000 * (time.monotonic() - begin))
            time.sleep(0.02)
    return taken


def bulk(url: str, rows: int, stop: threading.Event, done: list[int]) -> None:
    """Large requests one after the other."""
    body = npy(np.zeros((rows, 3, 64, 64), np.uint8))
    with httpx.Client(base_url=url, headers=NPY, timeout=300) as client:
        while not stop.is_set():
            client.post("/embed", content=io.BytesIO(body)).raise_for_status()
            done.append(rows)


def line(name: str, taken: list[float]) -> str:
    p50, p95, most = np.percentile(taken, [50, 95, 100])
    return f"| {name} | {len(taken)} | {p50:.1f} | {p95:.1f} | {most:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--clients", type=int, default=4, help="that send large requests")
    parser.add_argument("--rows", type=int, default=512, help="of a large request")
    options = parser.parse_args()
    flags = ("--model", f"micro={DATA / 'vim_micro.pth'}", "--client-share", "1")
    with server_process(*flags, "--log-level", "warning") as started:
        latencies(started.url, 2)
        print("| one row | requests | p50, ms | p95, ms | most, ms |\n|---|---|---|---|---|")
        print(line("alone", latencies(started.url, options.seconds)), flush=True)
        stop, done = threading.Event(), list[int]()
        senders = [
            threading.Thread(target=bulk, args=(started.url, options.rows, stop, done))
            for _ in range(options.clients)
        ]
        for sender in senders:
            sender.start()
        begin = time.monotonic()
        name = f"beside {options.clients} × {options.rows} rows"
        print(line(name, latencies(started.url, options.seconds)), flush=True)
        stop.set()
        for sender in senders:
            sender.join()
        print(f"\nlarge requests meanwhile: {sum(done) / (time.monotonic() - begin):.0f} rows/s")


if __name__ == "__main__":
    main()
