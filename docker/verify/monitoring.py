"""Asks a Prometheus that scrapes the service: is it up, and has every dashboard expression data?

monitoring.py URL: of Prometheus; the service is VIM_EMBED_URL, its key VIM_EMBED_API_KEY. The
service needs --fault-injection: some panels count failures, which are brought about here.
"""

from __future__ import annotations

import io
import json
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np

DASHBOARD = Path(__file__).parents[1] / "grafana/dashboards/vim-embed.json"
PATIENCE = 240.0  # seconds until every expression has data
JSON = {"Content-Type": "application/json"}
ON_A_GPU_ONLY = {"vim_embed_gpu_memory_bytes"}


def expressions() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def query(prometheus: httpx.Client, expression: str) -> list[float]:
    """The values now, without NaN. Raises SystemExit if Prometheus does not understand it."""
    answer = prometheus.get("/api/v1/query", params={"query": expression}).json()
    if answer["status"] != "success":
        raise SystemExit(f"{expression}: {answer['error']}")
    values = [float(series["value"][1]) for series in answer["data"]["result"]]
    return [value for value in values if not math.isnan(value)]


def until(done: Callable[[], bool], what: Callable[[], str]) -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > end:
            raise SystemExit(f"after {PATIENCE:.0f} s: {what()}")
        time.sleep(1)


def npy_of(rows: int) -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros((rows, 3, 224, 224), np.uint8))
    return file.getvalue()


def refused_connection(url: httpx.URL) -> None:
    """What is no HTTP: the service answers 400 and closes."""
    with socket.create_connection((url.host, url.port or 80), timeout=10) as connection:
        connection.sendall(b"no HTTP at all\r\n\r\n")
        connection.recv(1000)


def traffic(stop: threading.Event) -> None:
    """Requests that succeed, and one of each kind that does not."""
    body, many = npy_of(8), npy_of(128)
    key = {"Authorization": f"Bearer {os.environ['VIM_EMBED_API_KEY']}"}
    npy = {"Content-Type": "application/x-npy"}
    url = os.environ["VIM_EMBED_URL"]
    with (
        httpx.Client(base_url=url, headers=npy, timeout=60, trust_env=False) as http,
        ThreadPoolExecutor(1) as beside,
    ):
        http.post("/faults", json={"kind": "thread"}, headers={**key, **JSON}).raise_for_status()
        while not stop.is_set():
            http.post("/embed", content=body, headers=key)
            busy = beside.submit(http.post, "/embed", content=many, headers=key)
            time.sleep(0.1)  # what comes now waits behind it, for longer than it wants to
            http.post("/embed?timeout=0.05", content=body, headers=key)
            busy.result()
            http.post("/embed", content=body)
            refused_connection(http.base_url)
            http.post("/models/vim-tiny/check", headers=key)


def scraped(prometheus: httpx.Client) -> bool:
    return query(prometheus, 'up{job="vim-embed"}') == [1.0]


def pending(prometheus: httpx.Client, waiting: set[str]) -> set[str]:
    """Forget the expressions that have data now; those that are left."""
    waiting -= {expression for expression in waiting if query(prometheus, expression)}
    return waiting


def main(url: str) -> None:
    stop = threading.Event()
    sender = threading.Thread(target=traffic, args=(stop,))
    sender.start()
    try:
        with httpx.Client(base_url=url, timeout=10, trust_env=False) as prometheus:
            until(lambda: scraped(prometheus), lambda: "Prometheus does not scrape the service")
            print('up{job="vim-embed"} is 1')
            waiting = set(expressions()) - ON_A_GPU_ONLY
            until(
                lambda: not pending(prometheus, waiting), lambda: f"no data for {sorted(waiting)}"
            )
            (rows,) = query(prometheus, "sum(vim_embed_rows_total)")
            print(f"vim_embed_rows_total is {rows:.0f}")
    finally:
        stop.set()
        sender.join()
    print(f"{len(set(expressions()))} expressions of the dashboard: data for all but "
          f"{', '.join(sorted(ON_A_GPU_ONLY))}")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1])
