"""Rows/s through Ray Serve beside the stand-alone service, on the same cores, in one run.

    PYTHONPATH=tests:benchmarks python benchmarks/over_http/ray_overhead.py --model vim-tiny

Both servers stay up; rounds alternate between them, so that drift of the machine hits both. What
Ray takes is shown twice: where a request's time goes, and which processes use the processor.
Ends with code 1 where the share is below --at-least.

    ray_overhead.py --pretend 2000 --at-least 0

pretends a device of 2000 rows/s beside this machine's cores: it waits and computes nothing, so what
the hop costs is not hidden behind the model. 0: a device that takes no time at all.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from over_http import marks
from server_process import server_process, wait_ready

from support.cluster_parts import OBJECT_STORE, free_port, marking, prepare_environment
from vim_embed_client.bench.load_generator import Load, LoadClients, Sample
from vim_embed_client.local_server import LocalServer

_KINDS = {
    "vim_embed.cli": "the stand-alone service",
    "servers/ours.py": "the stand-alone service",
    "multiprocessing.spawn": "clients",
    "ServeReplica:default:ingress": "ingress (HTTP, our routes)",
    "ServeReplica": "model (engine and queue)",
    "ProxyActor": "Ray's proxy",
    "ServeController": "Ray's controller",
    "raylet": "raylet and object store",
    "gcs_server": "GCS",
}


@dataclass
class Side:
    """What rounds with one server gave."""

    rates: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    cpu: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # seconds

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    @property
    def rows(self) -> int:
        return sum(sample.rows for sample in self.samples)

    def milliseconds(self) -> dict[str, float]:
        """Mean of a request's parts: in the queue, the forward, the rest of the server, outside."""
        timing = [part for sample in self.samples for part in sample.server_timing]
        latencies = [second for sample in self.samples for second in sample.latencies]
        mean = {
            key: statistics.mean(t[key] for t in timing) for key in ("queue", "forward", "total")
        }
        return {
            "waiting in the queue": mean["queue"],
            "forward": mean["forward"],
            "else in the server that answers": mean["total"] - mean["queue"] - mean["forward"],
            "before and after it (client, proxy)": 1000 * statistics.mean(latencies)
            - mean["total"],
        }


def main() -> int:
    options = _options()
    print(_machine(options.cores))
    if options.cores:
        os.sched_setaffinity(0, set(range(options.cores)))
    alone, ray = Side(), Side()
    with (
        _alone(options) as url,
        _cluster(options) as cluster_url,
        _clients(options, url) as ours,
        _clients(options, cluster_url) as theirs,
    ):
        for number in range(options.rounds):
            for side, clients in ((alone, ours), (ray, theirs)):
                before = _cpu_seconds()
                _round(side, clients, options)
                for kind, seconds in _cpu_seconds().items():
                    side.cpu[kind] += seconds - before.get(kind, 0.0)
            print(
                f"round {number + 1}: alone {alone.rates[-1]:.1f}, through Ray "
                f"{ray.rates[-1]:.1f} rows/s"
            )
    share = ray.rate / alone.rate
    _report(alone, ray)
    print(f"\nthrough Ray: {100 * share:.1f} % of {alone.rate:.1f} rows/s alone", end="")
    print("" if share >= options.at_least else f", under the {100 * options.at_least:.0f} % wanted")
    return int(share < options.at_least)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vim-tiny", help="with random weights, unless NAME=PATH")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rows", type=int, default=8, help="of each request")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--cores", type=int, default=0, help="to use of this machine; 0: all")
    parser.add_argument("--pretend", type=float, help="rows/s of a device that only waits")
    parser.add_argument("--ingresses", type=int, default=1, help="processes that take HTTP")
    parser.add_argument("--at-least", type=float, default=0.7)
    options = parser.parse_args()
    if options.pretend is not None:
        options.model, options.image_size = marks.MODEL, marks.IMAGE_SIZE
    return options


def _machine(cores: int) -> str:
    names = ("vim-embed", "ray", "torch", "uvicorn", "numpy")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    cpu = platform.processor() or platform.machine()
    with open("/proc/cpuinfo") as file:
        cpu = next((x.split(":")[1].strip() for x in file if x.startswith("model name")), cpu)
    load = os.getloadavg()[0]
    return (
        f"{date.today()}, {cpu}, {cores or os.cpu_count()} cores, load before {load:.2f}, "
        f"Python {platform.python_version()}, {versions}"
    )


@contextmanager
def _alone(options: argparse.Namespace) -> Iterator[str]:
    if options.pretend is not None:
        with _pretended_alone(options.pretend) as url:
            yield url
        return
    args = ["--device", "cpu", "--threads", str(options.threads), "--log-level", "warning"]
    random = "=" not in options.model
    with LocalServer((options.model,), random_weights=random, args=args) as server:
        yield server.url


@contextmanager
def _pretended_alone(rate: float) -> Iterator[str]:
    here = Path(__file__).parents[1]
    path = os.pathsep.join(
        [str(here), str(here.parent / "tests"), os.environ.get("PYTHONPATH", "")]
    )
    ours = str(here / "over_http/servers/ours.py")
    with server_process(
        lambda port: [sys.executable, ours, str(port), str(rate)],
        env=os.environ | {"PYTHONPATH": path},
    ) as server:
        server.wait_ready()
        yield server.url


@contextmanager
def _cluster(options: argparse.Namespace) -> Iterator[str]:
    import ray
    from ray import serve

    prepare_environment()
    # By default Ray's workers give way to everything else, the clients here included.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    port = free_port()
    ray.init(
        num_cpus=16, object_store_memory=OBJECT_STORE, include_dashboard=False, log_to_driver=False
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(_application(options))
        url = f"http://127.0.0.1:{port}"
        wait_ready(url)
        yield url
    finally:
        serve.shutdown()
        ray.shutdown()


def _application(options: argparse.Namespace) -> Any:
    from vim_embed.cluster.deployment import app, application
    from vim_embed.cluster.settings import ClusterSettings
    from vim_embed.settings import Settings

    common = {"models": options.model, "log_level": "warning"}
    if options.pretend is not None:
        settings = Settings(**{**common, "models": f"{options.model}=none"})
        cluster = ClusterSettings(ingress_replicas=options.ingresses)
        return application(settings, cluster, partial(marking, options.pretend))
    return app(
        {
            **common,
            "random_weights": "=" not in options.model,
            "threads": options.threads,
            "ray_cpus": options.threads,
            "ray_ingress_replicas": options.ingresses,
        }
    )


def _clients(options: argparse.Namespace, url: str) -> LoadClients:
    load = Load(
        url=url,
        api_key=None,
        model=options.model.partition("=")[0],
        rows=options.rows,
        wire="uint8",
        image_size=options.image_size,
    )
    return LoadClients(load, options.clients)


def _round(side: Side, clients: LoadClients, options: argparse.Namespace) -> None:
    samples = clients.run(options.seconds, clients=options.clients, rows=options.rows)
    span = max(s.ended for s in samples) - min(s.started for s in samples)
    side.rates.append(sum(s.rows for s in samples) / span)
    side.samples += samples


def _cpu_seconds() -> dict[str, float]:
    """Processor time of our children so far, by what they are."""
    found: dict[str, float] = defaultdict(float)
    for process in psutil.Process().children(recursive=True):
        try:
            name, times = " ".join(process.cmdline()[:4]), process.cpu_times()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        kind = next((kind for key, kind in _KINDS.items() if key in name), "Ray, other")
        found[kind] += times.user + times.system
    return found


def _report(alone: Side, ray: Side) -> None:
    one, other = alone.milliseconds(), ray.milliseconds()
    print(f"\n{'a request, mean ms':44}{'alone':>10}{'Ray':>10}")
    for part in one:
        print(f"{part:44}{one[part]:10.2f}{other[part]:10.2f}")
    print(f"\n{'processor time, ms a row':44}{'alone':>10}{'Ray':>10}")
    kinds = {**alone.cpu, **ray.cpu}
    for kind in sorted(kinds, key=lambda kind: -kinds[kind]):
        a, b = (1000 * side.cpu.get(kind, 0.0) / side.rows for side in (alone, ray))
        print(f"{kind:44}{a:10.2f}{b:10.2f}")


if __name__ == "__main__":
    raise SystemExit(main())
