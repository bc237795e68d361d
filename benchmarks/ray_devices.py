"""Two GPUs through Ray, beside one and beside the service without Ray, in one run.

    PYTHONPATH=service:client:tests:benchmarks python benchmarks/ray_devices.py --haproxy

vim-small, float16, random weights, on a machine with two GPUs. Three parts, each may be left out:

- bulk: rows/s of `vim_embed.cluster.bulk` from .npy files with one engine and with two, between
  the first and the last sixth of the rows, so that loading is not counted;
- http: rows/s over HTTP of two replicas, for each number of ingress replicas, in rounds that
  alternate with the stand-alone service on the same two GPUs;
- kill: a replica is killed under load (SIGKILL); clients that send a refused request again, as
  `vim_embed_client` does, must get every row.

Every row of every answer and of every output is compared with the embedding that an engine of
this process gave for it. Exits with 1 where a ratio is below --least-bulk or --least-http.

    python benchmarks/ray_devices.py --stub 300 --devices cpu:0,cpu:1 --files 2 --rows-of-file 256

pretends the devices, as devices.py does.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import devices
import numpy as np
import psutil
from devices import Known
from numpy.typing import NDArray
from server_process import wait_ready

from support.cluster_parts import free_port, prepare_environment, until
from vim_embed.engines.interface import Engine
from vim_embed.settings import Settings
from vim_embed.types.model_info import EMBEDDING, EmbedOptions
from vim_embed_client import Client

_READY = 180  # seconds until replicas have loaded


# bulk


def bulk(given: argparse.Namespace, engine: Engine, folder: Path) -> float:
    """Prints rows/s of one engine and of all; their ratio."""
    paths, expected = _files(given, engine, folder)
    found: dict[int, list[float]] = {1: [], len(given.devices): []}
    for _ in range(given.bulk_rounds):
        for engines, rates in found.items():
            output = folder / f"of-{engines}.npy"
            begin = time.perf_counter()
            rate = _bulk_rate(given, paths, output, engines)
            rates.append(rate)
            _check_rows(np.load(output), expected, given)
            whole = given.files * given.rows_of_file / (time.perf_counter() - begin)
            output.unlink()
            print(
                f"bulk, {engines} engines: {rate:.0f} rows/s; with loading {whole:.0f}", flush=True
            )
    one, several = (statistics.median(rates) for rates in found.values())
    print(f"bulk: {several / one:.2f} times one engine\n", flush=True)
    return several / one


def _files(
    given: argparse.Namespace, engine: Engine, folder: Path
) -> tuple[list[str], NDArray[np.float32]]:
    """Names of one file of noise, and its rows' embeddings."""
    shape = (given.rows_of_file, 3, given.size, given.size)
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    np.save(folder / "0.npy", pixels)
    for number in range(1, given.files):
        os.link(folder / "0.npy", folder / f"{number}.npy")
    step = given.rows
    expected = [
        engine.run(engine.stage(given.model, [pixels[k : k + step]], EmbedOptions()))[
            EMBEDDING
        ].copy()
        for k in range(0, len(pixels), step)
    ]
    return [str(folder / f"{number}.npy") for number in range(given.files)], np.concatenate(
        expected
    )


def _bulk_rate(given: argparse.Namespace, paths: list[str], output: Path, engines: int) -> float:
    from vim_embed.cluster.bulk import Job, embed_sources

    marks: list[tuple[float, int]] = []
    embed_sources(
        paths,
        output,
        Job(settings=_settings(given), options=EmbedOptions()),
        _cluster_settings(given, min_replicas=engines, max_replicas=engines),
        part_rows=given.part_rows,
        make_engines=_maker(given),
        on_progress=lambda rows: marks.append((time.perf_counter(), rows)),
    )
    rows = given.files * given.rows_of_file
    kept = [mark for mark in marks if rows / 6 <= mark[1] <= 5 * rows / 6]
    return (kept[-1][1] - kept[0][1]) / (kept[-1][0] - kept[0][0])


def _check_rows(
    found: NDArray[np.float32], expected: NDArray[np.float32], given: argparse.Namespace
) -> None:
    """Each file's rows are the same ones, in their order."""
    wanted = np.tile(expected, (given.files, 1))
    Known(np.zeros(0, np.uint8), wanted[None], devices.TOLERANCE[given.dtype]).check(0, found)


# over HTTP


def http(given: argparse.Namespace, known: Known) -> float:
    """Prints rows/s of the service alone and through Ray; the best share of any round's number."""
    shares = []
    with devices.server(given, given.devices) as alone:
        alone.wait_ready()
        for ingresses in given.ingresses:
            with _deployed(given, ingresses) as port:
                rounds = [
                    (_rate(given, alone.port, known), _rate(given, port, known))
                    for _ in range(given.rounds)
                ]
            one, other = (statistics.median(rates) for rates in zip(*rounds, strict=True))
            shares.append(other / one)
            print(
                f"http, {ingresses} ingress replicas: alone {one:.0f}, through Ray {other:.0f} "
                f"rows/s, share {other / one:.2f}; rounds "
                + ", ".join(f"{a:.0f}/{b:.0f}" for a, b in rounds),
                flush=True,
            )
    print()
    return max(shares)


def _rate(given: argparse.Namespace, port: int, known: Known) -> float:
    """Rows/s that clients got, in a span within which all of them were sending."""
    with _load(given, _client, port, known) as answers:
        time.sleep(given.warm_up)
        before, begin = answers.value, time.perf_counter()
        time.sleep(given.seconds)
        after, spent = answers.value, time.perf_counter() - begin
    return float((after - before) * given.rows / spent)


@contextmanager
def _load(
    given: argparse.Namespace, client: Callable[..., None], port: int, known: Known
) -> Iterator[Any]:
    """Client processes; the number of requests that they had answered. Raises what they raise."""
    context = multiprocessing.get_context("fork")
    end, problems = context.Event(), context.SimpleQueue()
    answers = context.Value(ctypes.c_longlong, 0)
    load = [
        context.Process(target=client, args=(port, given.model, known, end, problems, answers, k))
        for k in range(given.clients)
    ]
    for each in load:
        each.start()
    try:
        yield answers
    finally:
        end.set()
        for each in load:
            each.join(120)
    if not problems.empty():
        raise RuntimeError(problems.get())


def _client(
    port: int,
    model: str,
    known: Known,
    end: Event,
    problems: Any,
    answers: Any,
    number: int,
) -> None:
    def answered() -> None:
        with answers.get_lock():
            answers.value += 1

    devices.client(port, model, known, end, problems, number, on_answer=answered)


@contextmanager
def _deployed(given: argparse.Namespace, ingresses: int) -> Iterator[int]:
    """The application on the Serve that runs, ready; its port."""
    from ray import serve

    from vim_embed.cluster.deployment import application

    replicas = len(given.devices)
    cluster = _cluster_settings(
        given, min_replicas=replicas, max_replicas=replicas, ingress_replicas=ingresses
    )
    serve.run(application(_settings(given), cluster, _maker(given)))
    try:
        wait_ready(f"http://127.0.0.1:{given.ray_port}")
        yield given.ray_port
    finally:
        serve.delete("default")


# a replica that dies


def kill(given: argparse.Namespace, known: Known) -> None:
    """Prints what clients saw. Raises RuntimeError where a row is lost or wrong."""
    with (
        _deployed(given, max(given.ingresses)) as port,
        _load(given, _patient_client, port, known) as answers,
    ):
        time.sleep(given.warm_up + given.seconds)
        before = _replicas(given.model)
        os.kill(before[0], signal.SIGKILL)
        begin, count = time.perf_counter(), answers.value
        until(lambda: len(set(_replicas(given.model)) - {before[0]}) == len(before), _READY)
        started = time.perf_counter() - begin
        time.sleep(given.back + given.seconds)
        after = answers.value - count
    print(
        f"kill: replica {before[0]} of {len(before)} killed under {given.clients} clients; another "
        f"process in its place after {started:.1f} s; {count} requests of {given.rows} rows "
        f"answered before, {after} after; none lost, none wrong\n",
        flush=True,
    )


def _replicas(model: str) -> list[int]:
    """Processes of the model's replicas on this machine."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        title = " ".join(process.info["cmdline"] or ())
        if "ServeReplica" in title and model in title:
            found.append(process.pid)
    return sorted(found)


def _patient_client(
    port: int, model: str, known: Known, end: Event, problems: Any, answers: Any, number: int
) -> None:
    """As a user's: a request that is refused, or whose connection breaks, is sent again."""
    try:
        with Client(f"http://127.0.0.1:{port}", timeout=_READY) as client:
            index = number % devices.POOL
            while not end.is_set():
                answer = client.embed(known.pixels[index], model=model)
                known.check(index, answer.embeddings)
                with answers.get_lock():
                    answers.value += 1
                index = (index + 1) % devices.POOL
    except Exception as error:
        problems.put(f"{type(error).__name__}: {error}")


# all of them


def _settings(given: argparse.Namespace) -> Settings:
    """Of the application: a replica has one device, the one that Ray gives it."""
    settings = devices.settings_of(given, ["cpu" if given.stub else "cuda"])
    return settings.model_copy(update={"http_processes": 1})


def _cluster_settings(given: argparse.Namespace, **changes: int) -> Any:
    from vim_embed.cluster.settings import ClusterSettings

    return ClusterSettings(gpus=0 if given.stub else 1, **changes)


def _maker(given: argparse.Namespace) -> Any:
    return partial(_pretended, given) if given.stub else None


def _pretended(given: argparse.Namespace, settings: Settings) -> list[Engine]:
    return devices.engines_of(given, [settings.device])


@contextmanager
def _ray(given: argparse.Namespace) -> Iterator[None]:
    if given.haproxy:
        os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
    prepare_environment()
    # By default Ray's workers give way to everything else, the clients here included.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    import ray

    ray.init(
        num_cpus=max(64, os.cpu_count() or 1),  # only a count: what runs where is up to the kernel
        object_store_memory=int(given.object_store * 1e9),
        include_dashboard=False,
        log_to_driver=False,
    )
    from ray import serve

    given.ray_port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": given.ray_port})
    try:
        yield
    finally:
        serve.shutdown()
        ray.shutdown()


def _parser() -> argparse.ArgumentParser:
    found = devices.parser()
    found.description = (__doc__ or "").split("\n")[0]
    found.add_argument("--parts", default="bulk,http,kill")
    found.add_argument("--haproxy", action="store_true", help="in place of Ray's own proxy")
    found.add_argument("--ingresses", default="8,16", help="numbers of ingress replicas")
    found.add_argument("--files", type=int, default=24, help="of the bulk run, all the same")
    found.add_argument("--rows-of-file", type=int, default=4096)
    found.add_argument("--part-rows", type=int, default=1024)
    found.add_argument("--bulk-rounds", type=int, default=2)
    found.add_argument("--folder", help="for the bulk run's files; else the temporary one")
    found.add_argument("--object-store", type=float, default=8.0, help="GB")
    found.add_argument("--back", type=float, default=10.0, help="seconds from a start to load")
    found.add_argument("--least-bulk", type=float, default=1.9)
    found.add_argument("--least-http", type=float, default=0.8)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    given.devices = given.devices.split(",")
    given.ingresses = [int(number) for number in given.ingresses.split(",")]
    print(devices.describe(given, given.devices) + f" {describe_ray(given)}\n", flush=True)
    engine = devices.engines_of(given, given.devices[:1])[0]
    engine.load()
    known = devices.known_from(engine, given)
    missed = False
    with tempfile.TemporaryDirectory(dir=given.folder) as folder, _ray(given):
        if "bulk" in given.parts:
            missed |= bulk(given, engine, Path(folder)) < given.least_bulk
        if "http" in given.parts:
            missed |= http(given, known) < given.least_http
        if "kill" in given.parts:
            kill(given, known)
    return int(missed)


def describe_ray(given: argparse.Namespace) -> str:
    from importlib.metadata import version

    return f"Ray {version('ray')}, {'HAProxy' if given.haproxy else 'its own proxy'}."


if __name__ == "__main__":
    sys.exit(main())
