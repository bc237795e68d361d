"""Two devices beside one: rows/s of uint8 images, in process and through the service, in one run.

    PYTHONPATH=service:client python benchmarks/devices.py

On a machine with two GPUs: vim-small, float16, random weights. Both services and the engines of
this process stay loaded, and rounds with one device and with all alternate, so that nothing but
the number of devices differs. In process: the service's queue and workers over the engines, fed
from host memory by threads. Through the service: client processes on loopback, bodies prebuilt.
Every row of every answer is compared with the embedding that the first device gave for it alone.
Exits with 1 where a ratio is below --least.

    PYTHONPATH=service:client python benchmarks/devices.py --stub 300 --devices cpu:0,cpu:1

pretends each device: it waits as long as a GPU of so many rows/s would compute. What remains is
what the service itself does, so it shows here what would keep two GPUs waiting.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import http_gpu
import numpy as np
from numpy.typing import NDArray
from server_process import ServerProcess, server_process, service_command

import vim_embed.engines.build
from vim_embed.batching.observer import SilentObserver
from vim_embed.batching.queue import BatchQueue
from vim_embed.batching.request import BatchKey, EmbedRequest
from vim_embed.bench.cuda_meter import describe_machine
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.engines.device_group import EngineGroup
from vim_embed.engines.interface import Engine, Outputs, Staged
from vim_embed.server.server import serve
from vim_embed.settings import Settings
from vim_embed.types.model_info import EMBEDDING, EmbedOptions
from vim_embed.types.pixels import PixelArray

POOL = 4  # different requests
TOLERANCE = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 5e-2}  # as at the self-check


@dataclass(frozen=True)
class Known:
    """Requests (POOL, rows, 3, S, S) and what each row's embedding must be."""

    pixels: NDArray[np.uint8]
    expected: NDArray[np.float32]
    tolerance: float

    def check(self, index: int, found: NDArray[np.float32]) -> None:
        """Raises RuntimeError where a row is wrong, or another's."""
        expected = self.expected[index]
        if found.shape != expected.shape:
            raise RuntimeError(f"wrong answer: {found.shape} instead of {expected.shape}")
        errors = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
        if not (errors <= self.tolerance).all():
            raise RuntimeError(f"wrong answer: an error of {errors.max():.1e}")

    def check_distinct(self) -> None:
        """Raises RuntimeError where two rows are so near that a swap would not show."""
        rows = self.expected.reshape(-1, self.expected.shape[-1])
        squares = (rows**2).sum(axis=1)
        apart = squares[:, None] + squares[None] - 2 * (rows @ rows.T)
        np.fill_diagonal(apart, np.inf)
        if np.sqrt(max(0.0, apart.min()) / squares.max()) < 4 * self.tolerance:
            raise RuntimeError("the rows' embeddings are too near each other to tell them apart")


@dataclass(frozen=True)
class Round:
    """What one round gave. busy: the share of the time in which a device computed, of all."""

    rows_per_s: float
    busy: float
    mean_batch: float
    cpu: str


@dataclass
class Tally(SilentObserver):
    """Counts what the workers deliver."""

    rows: int = 0
    batches: int = 0
    seconds: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def batch(self, key: BatchKey, rows: int, requests: int, seconds: float) -> None:
        with self.lock:
            self.rows += rows
            self.batches += 1
            self.seconds += seconds


class PretendEngine(ArithmeticEngine):
    """Waits as long as a device of `rate` rows/s would compute; an embedding is some pixels."""

    def __init__(self, given: argparse.Namespace, device: str) -> None:
        super().__init__([given.model], image_size=given.size, device=device)
        self._rate = given.stub
        self._batch_rows = given.batch_rows

    def batch_rows(self, model: str, shape: tuple[int, ...]) -> int:
        return self._batch_rows

    def stage(self, model: str, parts: Sequence[PixelArray], options: EmbedOptions) -> Staged:
        return _Gathered(np.concatenate(parts))

    def run(self, staged: Staged) -> Outputs:
        if not isinstance(staged, _Gathered):
            return super().run(staged)  # the golden sample
        time.sleep(staged.rows / self._rate)
        flat = staged.pixels.reshape(staged.rows, -1)
        places = np.linspace(0, flat.shape[1] - 1, 384).astype(int)
        return {EMBEDDING: flat[:, places].astype(np.float32) + 1}


@dataclass(frozen=True)
class _Gathered:
    pixels: PixelArray

    @property
    def rows(self) -> int:
        return len(self.pixels)


def settings_of(given: argparse.Namespace, devices: Sequence[str]) -> Settings:
    """Of a service on these devices, also of the engines of this process."""
    return Settings(
        models=(given.model,),
        device=",".join(devices),
        dtype=given.dtype,
        random_weights=True,
        batch_rows=given.batch_rows,
        http_processes=given.http_processes,
        client_share=1.0,
        max_body_bytes=64 * 1024**2,
        log_level="warning",
    )


def engines_of(given: argparse.Namespace, devices: Sequence[str]) -> list[Engine]:
    if given.stub:
        return [PretendEngine(given, device) for device in devices]
    return vim_embed.engines.build.build_engines(settings_of(given, devices))


def requests_of(rows: int, size: int) -> NDArray[np.uint8]:
    """Noise; embeddings of it are far apart even with random weights."""
    return np.random.default_rng(0).integers(0, 256, (POOL, rows, 3, size, size), dtype=np.uint8)


def known_from(engine: Engine, given: argparse.Namespace) -> Known:
    pixels = requests_of(given.rows, given.size)
    found = []
    for request in pixels:
        staged = engine.stage(given.model, [request], EmbedOptions())
        found.append(engine.run(staged)[EMBEDDING].copy())
    known = Known(pixels, np.stack(found), TOLERANCE[given.dtype])
    known.check_distinct()
    return known


# in process


class InProcess:
    """The queue and workers of a service over some engines, and threads that feed it."""

    def __init__(self, engines: Sequence[Engine], known: Known, given: argparse.Namespace) -> None:
        self._tally = Tally()
        self._known = known
        self._given = given
        self._devices = len(engines)
        self._queue = BatchQueue(engines, queue_rows=10**6, queue_bytes=2**40, observer=self._tally)
        self._queue.start()

    def round(self) -> Round:
        problems: list[Exception] = []
        end = threading.Event()
        feeders = [
            threading.Thread(target=self._feed, args=(k % POOL, end, problems), daemon=True)
            for k in range(self._given.feeders)
        ]
        for feeder in feeders:
            feeder.start()
        time.sleep(self._given.warm_up)
        before, begin = replace(self._tally), time.perf_counter()
        spent = os.times()
        time.sleep(self._given.seconds)
        after, seconds = replace(self._tally), time.perf_counter() - begin
        used = sum(os.times()[:2]) - sum(spent[:2])
        end.set()
        for feeder in feeders:
            feeder.join(60)
        if problems:
            raise problems[0]
        return Round(
            (after.rows - before.rows) / seconds,
            (after.seconds - before.seconds) / seconds / self._devices,
            (after.rows - before.rows) / max(1, after.batches - before.batches),
            f"{used / seconds:.2f}",
        )

    def _feed(self, index: int, end: threading.Event, problems: list[Exception]) -> None:
        try:
            while not end.is_set() and not problems:
                request = self._queue.submit(
                    EmbedRequest(self._given.model, self._known.pixels[index], EmbedOptions())
                )
                self._known.check(index, request.future.result(60).outputs[EMBEDDING])
        except Exception as error:
            problems.append(error)

    def stop(self) -> None:
        self._queue.drain(30)


# through the service


class Served:
    """A server process on some devices, and client processes that load it."""

    def __init__(self, server: ServerProcess, devices: int, given: argparse.Namespace) -> None:
        self._server = server
        self.wait_ready = server.wait_ready
        self.port = server.port
        self._devices = devices
        self._given = given

    def round(self, known: Known) -> Round:
        context = multiprocessing.get_context("fork")
        end, problems = context.Event(), context.SimpleQueue()
        common = (self.port, self._given.model, known, end, problems)
        load = [
            context.Process(target=client, args=(*common, k)) for k in range(self._given.clients)
        ]
        for each in load:
            each.start()
        time.sleep(self._given.warm_up)
        pid, port = self._server.pid, self.port
        cpu, before, begin = http_gpu.cpu_times(pid), http_gpu.counters(port), time.perf_counter()
        time.sleep(self._given.seconds)
        after, seconds = http_gpu.counters(port), time.perf_counter() - begin
        spent = http_gpu.cpu_times(pid)
        end.set()
        for each in load:
            each.join(60)
        if not problems.empty():
            raise RuntimeError(problems.get())
        rows = after["rows_total"] - before["rows_total"]
        shares = sorted(((spent[k] - cpu.get(k, 0.0)) / seconds for k in spent), reverse=True)
        computed = after["forward_seconds_sum"] - before.get("forward_seconds_sum", 0.0)
        return Round(
            rows / seconds,
            computed / seconds / self._devices,
            rows / max(1.0, after["batches_total"] - before["batches_total"]),
            f"{shares[0]:.2f} + {sum(shares[1:]):.2f}",
        )


def client(
    port: int,
    model: str,
    known: Known,
    end: Event,
    problems: Any,
    number: int,
    on_answer: Callable[[], None] = lambda: None,
) -> None:
    """Requests one after the other on one connection; the pool in turn, each answer checked."""
    requests = [request_of(model, pixels) for pixels in known.pixels]
    try:
        with http_gpu.connected(port) as connection:
            index = number % POOL
            while not end.is_set():
                connection.sendall(requests[index])
                known.check(index, np.load(io.BytesIO(http_gpu.answer_of(connection))))
                on_answer()
                index = (index + 1) % POOL
    except Exception as error:
        problems.put(f"{type(error).__name__}: {error}")


def request_of(model: str, pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    np.save(file, pixels)
    return http_gpu.request_with(model, file.getvalue())


@contextmanager
def server(given: argparse.Namespace, devices: Sequence[str]) -> Iterator[Served]:
    """A service on the devices in a process of its own; `wait_ready` before its first round."""
    with server_process(lambda port: command_of(given, devices, port)) as process:
        yield Served(process, len(devices), given)


def command_of(given: argparse.Namespace, devices: Sequence[str], port: int) -> list[str]:
    """The service's own command; with pretended devices, this script in its place."""
    if given.stub:
        kept = ("model", "dtype", "size", "batch_rows", "http_processes", "stub")
        arguments = [f"--{name.replace('_', '-')}={getattr(given, name)}" for name in kept]
        arguments += [f"--serve={port}", f"--devices={','.join(devices)}"]
        return [sys.executable, str(Path(__file__)), *arguments]
    settings = settings_of(given, devices)
    names = ("device", "dtype", "batch_rows", "http_processes", "client_share", "max_body_bytes",
             "log_level")  # fmt: skip
    flags = [f"--{name.replace('_', '-')}={getattr(settings, name)}" for name in names]
    return service_command(port, given.model, *flags)


# both


def alternate(one: Any, several: Any, rounds: int) -> tuple[list[Round], list[Round]]:
    """Rounds of `one` and `several` in turn."""
    pairs = [(one(), several()) for _ in range(rounds)]
    return [first for first, _ in pairs], [second for _, second in pairs]


def lines_of(where: str, devices: int, found: tuple[list[Round], list[Round]]) -> list[str]:
    """Of the table: the median round of one device and of several, and the ratio."""
    lines = []
    for count, rounds in zip((1, devices), found, strict=True):
        speeds = [each.rows_per_s for each in rounds]
        middle = sorted(rounds, key=lambda each: each.rows_per_s)[len(rounds) // 2]
        ratio = "" if count == 1 else f"{ratio_of(found):.2f}"
        lines.append(
            f"| {where} | {count} | {statistics.median(speeds):.0f} | {min(speeds):.0f} to "
            f"{max(speeds):.0f} | {ratio} | {middle.busy:.2f} | {middle.mean_batch:.0f} | "
            f"{middle.cpu} |"
        )
    return lines


def ratio_of(found: tuple[list[Round], list[Round]]) -> float:
    one, several = (statistics.median(each.rows_per_s for each in rounds) for rounds in found)
    return several / one


def measure(given: argparse.Namespace, devices: Sequence[str]) -> dict[str, Any]:
    """All rounds; the services load while this process's engines do."""
    with server(given, devices[:1]) as one, server(given, devices) as several:
        engines = engines_of(given, devices)
        EngineGroup(engines).load()
        known = known_from(engines[0], given)
        single, group = InProcess(engines[:1], known, given), InProcess(engines, known, given)
        for each in (one, several):
            each.wait_ready()
        inside = alternate(single.round, group.round, given.rounds)
        single.stop()
        group.stop()
        outside = alternate(lambda: one.round(known), lambda: several.round(known), given.rounds)
    return {"in process": inside, "over HTTP": outside}


def describe(given: argparse.Namespace, devices: Sequence[str]) -> str:
    machine = "; ".join(f"{key} {value}" for key, value in describe_machine().items())
    what = f"{given.stub:.0f} rows/s pretended" if given.stub else f"{given.dtype}, random weights"
    return (
        f"Measured: {machine}; {os.cpu_count()} cores. {given.model}, {what}, uint8 {given.size}², "
        f"devices {', '.join(devices)}; {given.rounds} alternating rounds of {given.seconds:g} s; "
        f"requests of {given.rows} rows, batches of {given.batch_rows}; {given.feeders} threads; "
        f"{given.clients} client processes, {given.http_processes} HTTP processes."
    )


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    found.add_argument("--model", default="vim-small")
    found.add_argument("--dtype", default="float16")
    found.add_argument("--devices", default="cuda:0,cuda:1", help="the first is the one alone")
    found.add_argument("--size", type=int, default=224, help="pixels of a side")
    found.add_argument("--rows", type=int, default=128, help="of a request")
    found.add_argument("--batch-rows", type=int, default=128)
    found.add_argument("--feeders", type=int, default=16, help="threads, in process")
    found.add_argument("--clients", type=int, default=24, help="connections, a process each")
    found.add_argument("--http-processes", type=int, default=8)
    found.add_argument("--rounds", type=int, default=3)
    found.add_argument("--seconds", type=float, default=4.0, help="of a round")
    found.add_argument("--warm-up", type=float, default=2.0, help="seconds before each round")
    found.add_argument("--least", type=float, default=1.9, help="ratio that must hold")
    found.add_argument("--json", type=Path, help="file for the figures")
    found.add_argument("--stub", type=float, default=0.0, help="rows/s of pretended devices")
    found.add_argument("--serve", type=int, default=0, help=argparse.SUPPRESS)
    return found


def main() -> int:
    given = parser().parse_args()
    devices = given.devices.split(",")
    if given.serve:
        vim_embed.engines.build.build_engines = lambda settings, faults=None: engines_of(
            given, devices
        )
        return serve(settings_of(given, devices).model_copy(update={"port": given.serve}))
    begin = time.monotonic()
    found = measure(given, devices)
    print(describe(given, devices) + "\n")
    print("| where | devices | rows/s (median) | of the rounds | ratio | devices busy | mean batch "
          "| CPU cores: of the process; of the service + its HTTP processes |")  # fmt: skip
    print("|" + "---|" * 8)
    for where, rounds in found.items():
        print("\n".join(lines_of(where, len(devices), rounds)))
    ratios = {where: round(ratio_of(rounds), 3) for where, rounds in found.items()}
    figures = {where: [[asdict(r) for r in side] for side in f] for where, f in found.items()}
    summary = {"machine": describe_machine(), "ratios": ratios, "rounds": figures}
    print("\n" + json.dumps({"ratios": ratios, "seconds": round(time.monotonic() - begin, 1)}))
    if given.json is not None:
        given.json.write_text(json.dumps(summary, indent=1) + "\n")
    return 0 if min(ratios.values()) >= given.least else 1


if __name__ == "__main__":
    sys.exit(main())
