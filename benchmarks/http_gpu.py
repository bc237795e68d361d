"""HTTP beside the bare forward: how many rows/s of uint8 images a server delivers over loopback.

    PYTHONPATH=service:client python benchmarks/http_gpu.py --models vim-small --dtype float16

First the bare forward in this process (the engine's, at the bucket size, pixels on the device,
embeddings copied back), then a server process and client processes that send prebuilt bodies over
raw sockets, then the bare forward again; every answer is compared with the first. Random weights.
Prints the server's CPU time by process, its mean batch and its own live ratio. Runs on a CPU too.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import re
import socket
import statistics
import time
from multiprocessing.synchronize import Event
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from server_process import ServerProcess, server_process, service_command

from vim_embed.bench.cuda_meter import describe_machine
from vim_embed.engines.torch_engine import EngineOptions, TorchEngine
from vim_embed.types.devices import resolve_device
from vim_embed.types.model_info import EmbedOptions
from vim_embed.weights.catalogue import parse_model


def images(rows: int, dtype: str) -> NDArray[Any]:
    """(rows, 3, 224, 224) of the wire's dtype."""
    pixels = np.random.default_rng(0).integers(0, 256, (rows, 3, 224, 224), dtype=np.uint8)
    return pixels if dtype == "uint8" else (pixels / 128 - 1).astype(dtype)


def bare(name: str, dtype: str, device: str, rows: int, wire: str, seconds: float) -> float:
    """Rows/s of the engine's forward with its pixels staged already."""
    options = EngineOptions(resolve_device(device), dtype, random_weights=True, batch_rows=rows)
    engine = TorchEngine([parse_model(name)], options)
    engine.load()
    staged = engine.stage(name, [images(rows, wire)], EmbedOptions())
    for _ in range(5):
        engine.run(staged)
    count, begin = 0, time.perf_counter()
    while (spent := time.perf_counter() - begin) < seconds:
        engine.run(staged)
        count += 1
    engine.unload(name)
    return count * rows / spent


def request_of(name: str, rows: int, wire: str) -> bytes:
    file = io.BytesIO()
    np.save(file, images(rows, wire))
    return request_with(name, file.getvalue())


def request_with(name: str, body: bytes) -> bytes:
    """A request whose body is a .npy file."""
    head = f"POST /embed?model={name} HTTP/1.1\r\nHost: localhost\r\n"
    head += "Content-Type: application/x-npy\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def connected(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def answer_of(connection: socket.socket) -> bytes:
    """The body of the next answer. Raises RuntimeError if it is no 200."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    match = re.search(rb"content-length: (\d+)", head.lower())
    if match is None or not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"not answered: {data[:300]!r}")
    while len(body) < int(match[1]):
        body += connection.recv(65536)
    return body


def client(
    port: int, request: bytes, begin: Event, end: Event, results: Any, tolerance: float
) -> None:
    """Requests one after the other on one connection; puts rows' worth of requests and times."""
    with connected(port) as connection:
        first = None
        times: list[float] = []
        while not end.is_set():
            start = time.perf_counter()
            connection.sendall(request)
            answer = answer_of(connection)
            if begin.is_set():
                times.append(time.perf_counter() - start)
            found = np.load(io.BytesIO(answer))
            first = found if first is None else first
            error = np.linalg.norm(found - first) / np.linalg.norm(first)
            if not error <= tolerance:
                raise RuntimeError(f"an answer differs by {error:.1e}")
    results.put(times)


def served(given: argparse.Namespace, name: str, clients: int) -> dict[str, Any]:
    """Rows/s of a server process under so many clients, and what it cost."""
    flags = ["--dtype", given.dtype, "--device", given.device, "--client-share", "1"]
    flags += ["--batch-rows", str(given.batch_rows), "--log-level", "warning"]
    flags += ["--http-processes", str(given.http_processes)]
    with server_process(lambda port: service_command(port, name, *flags)) as server:
        server.wait_ready()
        return measured(given, name, server, clients)


def get(port: int, path: str) -> bytes:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            return b"".join(iter(lambda: connection.recv(65536), b""))
    except OSError:
        return b""


def measured(
    given: argparse.Namespace, name: str, server: ServerProcess, clients: int
) -> dict[str, Any]:
    port = server.port
    context = multiprocessing.get_context("fork")
    begin, end, results = context.Event(), context.Event(), context.SimpleQueue()
    request = request_of(name, given.rows, given.wire)
    tolerance = 1e-5 if given.dtype == "float32" else 2e-2
    arguments = (port, request, begin, end, results, tolerance)
    load = [context.Process(target=client, args=arguments) for _ in range(clients)]
    for each in load:
        each.start()
    time.sleep(given.warm_up)
    before, mark, metrics = cpu_times(server.pid), time.perf_counter(), counters(port)
    begin.set()
    time.sleep(given.seconds)
    end.set()
    spent = time.perf_counter() - mark
    after, later = cpu_times(server.pid), counters(port)
    times = [t for _ in load for t in results.get()]
    for each in load:
        each.join(30)
    cpu = sorted((after[pid] - before.get(pid, 0.0)) / spent for pid in after)
    batches = later["batches_total"] - metrics["batches_total"]
    return {
        "rows_per_s": (later["rows_total"] - metrics["rows_total"]) / spent,
        "p50_ms": 1e3 * statistics.median(times),
        "cpu": " ".join(f"{share:.2f}" for share in reversed(cpu)),
        "mean_batch": (later["rows_total"] - metrics["rows_total"]) / max(1, batches),
        "live_ratio": later["overhead_ratio"],
        "requests": len(times),
    }


def cpu_times(pid: int) -> dict[int, float]:
    server = psutil.Process(pid)
    found = {}
    for each in (server, *server.children(recursive=True)):
        spent = each.cpu_times()
        found[each.pid] = spent.user + spent.system
    return found


def counters(port: int) -> dict[str, float]:
    text = get(port, "/metrics").decode()
    found: dict[str, float] = {}
    for name, value in re.findall(r"^vim_embed_(\w+?)(?:\{.*\})? (\S+)$", text, re.MULTILINE):
        found[name] = found.get(name, 0.0) + float(value)
    return {"batches_total": 0.0, "rows_total": 0.0, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", default="vim-small")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--wire", default="uint8")
    parser.add_argument("--rows", type=int, default=64, help="of a request")
    parser.add_argument("--batch-rows", type=int, default=128)
    parser.add_argument("--clients", default="8", help="connections, a process each")
    parser.add_argument("--http-processes", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warm-up", type=float, default=2.0)
    given = parser.parse_args()
    machine = "; ".join(f"{key} {value}" for key, value in describe_machine().items())
    print(f"Measured: {machine}; {os.cpu_count()} cores. {given.wire} 224², {given.dtype}, "
          f"{given.rows} rows a request, batches of {given.batch_rows}, "
          f"{given.http_processes} HTTP processes.\n")  # fmt: skip
    print("| model | clients | HTTP rows/s | bare rows/s | ratio | live ratio | GB/s | p50 ms "
          "| mean batch | CPU of the server's processes |")  # fmt: skip
    print("|" + "---|" * 10, flush=True)
    size = images(1, given.wire).nbytes
    for name in given.models.split(","):
        own = (name, given.dtype, given.device, given.batch_rows, given.wire, given.seconds / 2)
        for clients in map(int, given.clients.split(",")):
            first = bare(*own)
            torch.cuda.empty_cache()
            found = served(given, name, clients)
            speed = statistics.mean([first, bare(*own)])
            rate = found["rows_per_s"]
            print(
                f"| {name} | {clients} | {rate:.0f} | {speed:.0f} | {rate / speed:.3f} | "
                f"{found['live_ratio']:.3f} | {rate * size / 1e9:.2f} | {found['p50_ms']:.2f} | "
                f"{found['mean_batch']:.0f} | {found['cpu']} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
