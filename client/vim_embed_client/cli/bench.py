"""`vim-embed bench`: rows per second through HTTP, and as a share of the model's bare loop.

With a service of its own it alternates rounds of the bare loop (a process without HTTP, while the
service idles) with rounds of concurrent clients, so that a drift of the machine hits both.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from vim_embed_client.bench.load_generator import Load, LoadClients
from vim_embed_client.bench.report import Case, report_of, round_of, show
from vim_embed_client.bench.server_metrics import Scrape, scrape
from vim_embed_client.cli.common import (
    figure_path,
    json_option,
    print_json,
    service_option,
    stderr,
    stdout,
)
from vim_embed_client.cli.written_files import OutputPath, WritingCommand
from vim_embed_client.client import Client, ready_model
from vim_embed_client.errors import LocalServerError
from vim_embed_client.local_server import LocalServer

WIRES = ("uint8", "float16", "float32")
BARE = (sys.executable, "-m", "vim_embed.cli", "bench", "--bare", "--json")


if TYPE_CHECKING:
    _Counts = click.ParamType[tuple[int, ...]]
else:
    _Counts = click.ParamType  # no generic before click 8.4


class Counts(_Counts):
    """Whole numbers from 1, with commas between: `1,2,4`."""

    name = "N[,N...]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            counts = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            counts = ()
        if not counts or min(counts) < 1:
            self.fail(f"{value!r} is not a list of whole numbers from 1, as 1,2,4", param, ctx)
        return tuple(dict.fromkeys(counts))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure, as asked for on the command line."""

    model: str | None
    clients: tuple[int, ...]
    rows: tuple[int, ...]
    rate: float | None
    batch_rows: int
    wire: str
    seconds: float
    rounds: int
    random_weights: bool
    server_flags: Sequence[str]

    @property
    def cases(self) -> list[Case]:
        return [Case(clients, rows, self.rate) for rows in self.rows for clients in self.clients]


@click.command(cls=WritingCommand, context_settings={"max_content_width": 100})
@service_option(
    "Service to measure.  [default: VIM_EMBED_URL, else one is started for the purpose]"
)
@click.option("--model", help="Model to use.  [default: the service's, or vim-tiny]")
@click.option(
    "--clients", default="4", show_default=True, type=Counts(),
    help="At once, a process each; 1,2,4 measures with each number.",
)  # fmt: skip
@click.option(
    "--rows", default="8", show_default=True, type=Counts(),
    help="Rows per request; 1,32 measures with each number.",
)  # fmt: skip
@click.option(
    "--rate", type=click.FloatRange(0, min_open=True), metavar="R",
    help="Requests per second, sent at random moments whether or not earlier ones are answered.  "
    "[default: each client sends when it has its answer]",
)  # fmt: skip
@click.option(
    "--batch-rows", type=click.IntRange(1),
    help="Rows per forward of the own service and of the bare loop.  [default: the most of --rows]",
)  # fmt: skip
@click.option(
    "--wire", default="uint8", show_default=True, type=click.Choice(WIRES),
    help="dtype of the pixels.",
)  # fmt: skip
@click.option(
    "--seconds", default=5.0, show_default=True, type=click.FloatRange(0, min_open=True),
    help="Length of each round.",
)  # fmt: skip
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="How many.")
@click.option("--random-weights", is_flag=True, help="Give the own service random weights.")
@click.option(
    "--plot", metavar="FILE", callback=figure_path, type=OutputPath(dir_okay=False),
    help="Draw throughput and latency against the clients (.png, .pdf, .svg).",
)  # fmt: skip
@json_option
@click.argument("server_flags", nargs=-1, type=click.UNPROCESSED)
def bench(
    url: str | None, api_key: str | None, plot: Path | None, as_json: bool, **plan: Any
) -> None:
    """Measure rows per second and latency.

    Several clients at once send random images. Without a service (--url or VIM_EMBED_URL), one is
    started for the purpose, and the model's bare loop in a process without HTTP is measured in
    turn with it. SERVER_FLAGS, after --, go to both: `vim-embed bench --model vim-small --
    --device cuda`.
    """
    plan["batch_rows"] = plan["batch_rows"] or max(plan["rows"])
    report = _measure(Plan(**plan), url, api_key, stderr())
    if plot is not None:
        _draw(report, plot)
    if as_json:
        print_json(report)
    else:
        show(report, stdout())


def _draw(report: dict[str, Any], path: Path) -> None:
    from vim_embed_client.figures.style import save
    from vim_embed_client.figures.throughput import throughput_figure

    save(throughput_figure(report), path)


def _measure(plan: Plan, url: str | None, api_key: str | None, console: Console) -> dict[str, Any]:
    url = url or os.environ.get("VIM_EMBED_URL")
    own = url is None
    if not own and (plan.server_flags or plan.random_weights):
        raise click.UsageError("flags of the service have no effect on one that runs already")
    with _service(plan, url, console) as where, Client(where, api_key=api_key) as client:
        entry = ready_model(client, plan.model)
        load = Load(
            url=where,
            api_key=api_key,
            model=entry["name"],
            rows=max(plan.rows),
            wire=plan.wire,
            image_size=entry["preprocessing"]["image_size"],
        )
        rounds: dict[Case, list[dict[str, Any]]] = {case: [] for case in plan.cases}
        with LoadClients(load, max(plan.clients)) as clients:
            for number in range(1, plan.rounds + 1):
                bare = _bare(plan, entry["name"], console, number) if own else None
                for case in plan.cases:
                    name = f", {case}" if len(plan.cases) > 1 else ""
                    console.print(f"round {number} of {plan.rounds}: HTTP{name}")
                    rounds[case].append(_round(clients, load, case, plan.seconds, number, bare))
    return report_of(
        rounds, entry, batch_rows=plan.batch_rows, wire=plan.wire, seconds=plan.seconds
    )


def _round(
    clients: LoadClients,
    load: Load,
    case: Case,
    seconds: float,
    number: int,
    bare: dict[str, Any] | None,
) -> dict[str, Any]:
    before = _scrape(load)
    samples = clients.run(
        seconds, clients=case.clients, rows=case.rows, rate=case.rate, seed=number
    )
    after = _scrape(load)
    batches = after - before if before is not None and after is not None else None
    return round_of(samples, bare, batches)


def _scrape(load: Load) -> Scrape | None:
    return scrape(load.url, load.api_key, load.model)


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
