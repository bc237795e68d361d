"""What a model that loads costs those that serve: rows/s and p99 alone, and beside a load.

    PYTHONPATH=service:client python benchmarks/loading.py --model vim-tiny --loads vim-small
    PYTHONPATH=service:client python benchmarks/loading.py --dtype float16 --rows 64 --clients 8 \
        --http-processes 4 --batch-rows 128

A server process serves one model to client processes that send prebuilt bodies one after the
other. Meanwhile other models are loaded, self-checked, warmed up and unloaded by its routes, with
pauses between, so that both kinds of time come from one run and a machine that grows busier or
less so spoils neither. A request that was under way during a load, even in part, counts as beside
it. Random weights. Prints a table; the exit code is 1 if rows/s fall below 80 % or the p99 grows
beyond 1.5 times.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from typing import Any

import httpx
import numpy as np
from http_gpu import answer_of, connected, request_of
from numpy.typing import NDArray
from server_process import ServerProcess, server_process, service_command

from vim_embed.bench.cuda_meter import describe_machine

LEAST_RATE, MOST_P99 = 0.8, 1.5
Spans = NDArray[np.float64]  # (n, 2): from, to in seconds of the monotonic clock


@dataclass(frozen=True)
class Share:
    """Requests of one kind of time. seconds: of that time in all."""

    latencies: NDArray[np.float64]
    rows_per_s: float
    seconds: float

    @property
    def p50_ms(self) -> float:
        return 1e3 * float(np.quantile(self.latencies, 0.5))

    @property
    def p99_ms(self) -> float:
        return 1e3 * float(np.quantile(self.latencies, 0.99))


def split(
    requests: Spans, loads: Spans, rows: int, begin: float, end: float
) -> tuple[Share, Share]:
    """Alone and beside a load, of requests within [begin, end). Rows count with their answer."""
    requests = requests[(requests[:, 0] >= begin) & (requests[:, 1] < end)]
    overlaps = (requests[:, None, 0] < loads[None, :, 1]) & (
        requests[:, None, 1] > loads[None, :, 0]
    )
    answered = (requests[:, None, 1] >= loads[None, :, 0]) & (
        requests[:, None, 1] < loads[None, :, 1]
    )
    beside, during = overlaps.any(axis=1), answered.any(axis=1)
    taken = requests[:, 1] - requests[:, 0]
    loading = float((loads[:, 1] - loads[:, 0]).sum())
    return (
        Share(taken[~beside], rows * int((~during).sum()) / (end - begin - loading), loading),
        Share(taken[beside], rows * int(during.sum()) / loading, loading),
    )


def client(port: int, request: bytes, end: Event, results: Any) -> None:
    """Requests one after the other on one connection; puts when each began and was answered."""
    spans = []
    with connected(port) as connection:
        while not end.is_set():
            begin = time.monotonic()
            connection.sendall(request)
            answer_of(connection)
            spans.append((begin, time.monotonic()))
    results.put(spans)


def ask(http: httpx.Client, path: str) -> None:
    answer = http.post(path)
    if answer.status_code != 200:
        raise SystemExit(f"{path}: {answer.text}")


def load_and_unload(url: str, given: argparse.Namespace) -> Spans:
    """Each model in turn, with pauses; when it was loading."""
    spans = []
    with httpx.Client(base_url=url, timeout=600) as http:
        for _ in range(given.times):
            for name in given.loads.split(","):
                time.sleep(given.pause)
                begin = time.monotonic()
                ask(http, f"/models/{name}/load")
                spans.append((begin, time.monotonic()))
                time.sleep(given.pause)
                ask(http, f"/models/{name}/unload")
    return np.array(spans)


def measured(given: argparse.Namespace) -> tuple[Share, Share]:
    flags = ["--model-control", "--dtype", given.dtype, "--device", given.device]
    flags += ["--client-share", "1", "--batch-rows", str(given.batch_rows)]
    flags += ["--http-processes", str(given.http_processes), "--log-level", "warning"]
    with server_process(lambda port: service_command(port, given.model, *flags)) as server:
        server.wait_ready()
        return split_traffic(server, given)


def split_traffic(server: ServerProcess, given: argparse.Namespace) -> tuple[Share, Share]:
    """Clients send while models load."""
    context = multiprocessing.get_context("fork")
    end, results = context.Event(), context.SimpleQueue()
    request = request_of(given.model, given.rows, "uint8")
    senders = [
        context.Process(target=client, args=(server.port, request, end, results))
        for _ in range(given.clients)
    ]
    try:
        for each in senders:
            each.start()
        time.sleep(given.pause)
        begin = time.monotonic()
        loads = load_and_unload(server.url, given)
        stop = time.monotonic()
    finally:
        end.set()
    spans = np.array([span for _ in senders for span in results.get()])
    for each in senders:
        each.join(30)
    return split(spans, loads, given.rows, begin, stop)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="vim-tiny", help="that serves")
    parser.add_argument("--loads", default="vim-small", help="one after the other")
    parser.add_argument("--times", type=int, default=5, help="each")
    parser.add_argument("--pause", type=float, default=2.0, help="seconds before and after a load")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rows", type=int, default=1, help="of a request")
    parser.add_argument("--batch-rows", type=int, default=0)
    parser.add_argument("--clients", type=int, default=2, help="connections, a process each")
    parser.add_argument("--http-processes", type=int, default=1)
    given = parser.parse_args()
    machine = "; ".join(f"{key} {value}" for key, value in describe_machine().items())
    alone, beside = measured(given)
    rate, slower = beside.rows_per_s / alone.rows_per_s, beside.p99_ms / alone.p99_ms
    print(f"Measured: {machine}; {os.cpu_count()} cores. {given.model} serves, {given.loads} load, "
          f"{given.dtype}, {given.clients} clients of {given.rows} rows.\n")  # fmt: skip
    print("| | requests | rows/s | p50 ms | p99 ms |")
    print("|---|---|---|---|---|")
    for name, share in (("alone", alone), ("beside a load", beside)):
        print(f"| {name} | {len(share.latencies)} | {share.rows_per_s:.1f} | "
              f"{share.p50_ms:.1f} | {share.p99_ms:.1f} |")  # fmt: skip
    print(f"| ratio | | {rate:.2f} | {beside.p50_ms / alone.p50_ms:.2f} | {slower:.2f} |")
    print(f"\n{beside.seconds / given.times / len(given.loads.split(',')):.2f} s a load")
    return int(rate < LEAST_RATE or slower > MOST_P99)


if __name__ == "__main__":
    sys.exit(main())
