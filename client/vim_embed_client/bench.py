"""`vim-embed bench`: rows per second through HTTP, and as a share of the model's bare loop.

With a service of its own it alternates rounds of the bare loop (a process without HTTP, while the
service idles) with rounds of concurrent clients, so that a drift of the machine hits both.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from vim_embed_client.cli_common import json_option, print_json, service_options, stderr, stdout
from vim_embed_client.client import Client
from vim_embed_client.errors import LocalServerError
from vim_embed_client.load import Load, LoadClients, Sample
from vim_embed_client.local_server import LocalServer
from vim_embed_client.results import ModelEntry

BARE = (sys.executable, "-m", "vim_embed.cli", "bench", "--bare", "--json")
TIMINGS = ("queue", "forward", "total")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure, as asked for on the command line."""

    model: str | None
    clients: int
    rows: int
    batch_rows: int
    wire: str
    seconds: float
    rounds: int
    random_weights: bool
    server_flags: Sequence[str]


@click.command(context_settings={"max_content_width": 100})
@service_options
@click.option("--model", help="Model to use.  [default: the service's, or vim-tiny]")
@click.option("--clients", default=4, show_default=True, type=click.IntRange(1), help="At once.")
@click.option(
    "--rows", default=8, show_default=True, type=click.IntRange(1), help="Rows per request."
)
@click.option(
    "--batch-rows", type=click.IntRange(1),
    help="Rows per forward of the own service and of the bare loop.  [default: --rows]",
)  # fmt: skip
@click.option(
    "--wire", default="uint8", show_default=True, type=click.Choice(["uint8", "float32"]),
    help="dtype of the pixels.",
)  # fmt: skip
@click.option(
    "--seconds", default=5.0, show_default=True, type=click.FloatRange(0, min_open=True),
    help="Length of each round.",
)  # fmt: skip
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="How many.")
@click.option("--random-weights", is_flag=True, help="Give the own service random weights.")
@json_option
@click.argument("server_flags", nargs=-1, type=click.UNPROCESSED)
def bench(url: str | None, api_key: str | None, as_json: bool, **plan: Any) -> None:
    """Measure rows per second and latency.

    Several clients at once send random images. Without --url, a service is started for the
    purpose, and the model's bare loop in a process without HTTP is measured in turn with it.
    SERVER_FLAGS, after --, go to both: `vim-embed bench --model vim-small -- --device cuda`.
    """
    plan["batch_rows"] = plan["batch_rows"] or plan["rows"]
    report = _measure(Plan(**plan), url, api_key, stderr())
    if as_json:
        print_json(report)
    else:
        show(report, stdout())


def _measure(plan: Plan, url: str | None, api_key: str | None, console: Console) -> dict[str, Any]:
    url = url or os.environ.get("VIM_EMBED_URL")
    own = url is None
    if not own and (plan.server_flags or plan.random_weights):
        raise click.UsageError("flags of the service have no effect on one that runs already")
    with _service(plan, url, console) as where, Client(where, api_key=api_key) as client:
        entry = client.model(plan.model or client.models()["default"])
        load = Load(
            url=where,
            api_key=api_key,
            model=entry["name"],
            rows=plan.rows,
            wire=plan.wire,
            image_size=entry["preprocessing"]["image_size"],
        )
        rounds = []
        with LoadClients(load, plan.clients) as clients:
            for number in range(1, plan.rounds + 1):
                bare = _bare(plan, entry["name"], console, number) if own else None
                console.print(f"round {number} of {plan.rounds}: HTTP")
                rounds.append(_round(clients.run(plan.seconds), bare))
    return _report(plan, entry, rounds)


@contextmanager
def _service(plan: Plan, url: str | None, console: Console) -> Iterator[str]:
    if url is not None:
        yield url
        return
    with ExitStack() as stack:
        with console.status("starting a service") as status:
            server = LocalServer(
                [plan.model or "vim-tiny"],
                random_weights=plan.random_weights,
                args=["--batch-rows", str(plan.batch_rows), *plan.server_flags],
                on_wait=lambda s: status.update(f"starting a service ({s:.0f} s)"),
            )
            stack.enter_context(server)
        yield server.url


def _bare(plan: Plan, model: str, console: Console, number: int) -> dict[str, Any]:
    console.print(f"round {number} of {plan.rounds}: bare loop")
    command = [
        *BARE,
        *("--model", model),
        *("--rows", str(plan.batch_rows), "--batch-rows", str(plan.batch_rows)),
        *("--seconds", str(plan.seconds), "--wire", plan.wire),
        *(["--random-weights"] if plan.random_weights else []),
        *plan.server_flags,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        end = "\n".join(done.stderr.splitlines()[-20:])
        raise LocalServerError(
            f"the bare loop failed (exit code {done.returncode}). It ended with:\n{end}"
        ) from None
    return result


def _round(samples: Sequence[Sample], bare: dict[str, Any] | None) -> dict[str, Any]:
    seconds = max(s.ended for s in samples) - min(s.started for s in samples)
    latencies = np.concatenate([sample.latencies for sample in samples]) * 1e3
    timing = [timing for sample in samples for timing in sample.server_timing]
    return {
        "http_rows_per_s": sum(sample.rows for sample in samples) / seconds,
        "bare_rows_per_s": bare["rows_per_s"] if bare else None,
        "requests": len(latencies),
        "latency_ms": {f"p{q}": float(np.percentile(latencies, q)) for q in (50, 90, 99)},
        "server_ms": {name: median(t.get(name, 0.0) for t in timing) for name in TIMINGS},
        "bare": bare,
    }


def _report(plan: Plan, entry: ModelEntry, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    http = median(r["http_rows_per_s"] for r in rounds)
    bare = median(r["bare_rows_per_s"] for r in rounds) if rounds[0]["bare"] else None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0)),
            "os": platform.platform(),
        },
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("vim-embed", "httpx", "numpy")},
        "model": {k: entry[k] for k in ("name", "device", "dtype", "backend")}
        | {"random_weights": entry["weights"]["random"]},
        "clients": plan.clients,
        "rows": plan.rows,
        "batch_rows": entry["limits"]["batch_rows"],
        "wire": plan.wire,
        "seconds": plan.seconds,
        "http_rows_per_s": http,
        "bare_rows_per_s": bare,
        "ratio": http / bare if bare else None,
        "rounds": rounds,
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def show(report: dict[str, Any], console: Console) -> None:
    """Print a report of `bench` as a table."""
    model, machine = report["model"], report["machine"]
    weights = ", random weights" if model["random_weights"] else ""
    console.print(
        f"{model['name']} ({model['dtype']}, {model['backend']} on {model['device']}{weights}): "
        f"{report['clients']} clients × {report['rows']} {report['wire']} rows, "
        f"batches of {report['batch_rows']}; {machine['cpu']}, {machine['cores']} cores",
        soft_wrap=True,
    )
    table = Table("round", *_COLUMNS)
    for number, measured in enumerate(report["rounds"], 1):
        table.add_row(str(number), *(_cell(value) for value in _values(measured)))
    console.print(table)
    if report["ratio"] is not None:
        console.print(
            f"HTTP gives {report['ratio']:.1%} of the bare loop "
            f"({report['http_rows_per_s']:,.1f} of {report['bare_rows_per_s']:,.1f} rows/s)"
        )


_COLUMNS = ("HTTP rows/s", "bare rows/s", "p50 ms", "p90 ms", "p99 ms", "queue ms", "forward ms")


def _values(measured: dict[str, Any]) -> list[float | None]:
    latency, server = measured["latency_ms"], measured["server_ms"]
    rates = [measured["http_rows_per_s"], measured["bare_rows_per_s"]]
    return [*rates, *latency.values(), server["queue"], server["forward"]]


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}"
