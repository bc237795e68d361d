"""`vim-embed demo`: the terminal side of the demo."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from vim_embed_client.cli.common import json_option, print_json, stderr, stdout
from vim_embed_client.client import Client, ready_model
from vim_embed_client.demo.weights import ABOUT_PACKAGED, PACKAGED, RELEASED, choose
from vim_embed_client.errors import InputError
from vim_embed_client.local_server import LocalServer, check_service_installed
from vim_embed_client.results import ModelEntry

if TYPE_CHECKING:
    from vim_embed_client.demo.flow import Progress as OnProgress
    from vim_embed_client.demo.flow import Result

_NEEDED = {"matplotlib": "matplotlib", "scipy": "scipy", "skimage": "scikit-image"}
_LEAST_SOURCES = 16
_FIGURE = "figure.png"
_ROWS_PER_REQUEST = 16
_READY_SECONDS = 900.0
_AS_STARTED = "the service was started with them"


@click.command()
@click.option(
    "--model",
    help="Model to use.  [default: vim-tiny, or vim-micro without its weights, or that of --url]",
)
@click.option(
    "--weights", metavar="auto|random|SOURCE",
    help="auto: the released weights if a cache, a path or the Hub gives them at once, else "
    "those of vim-micro, which are packaged (with --model: random ones under a banner); SOURCE: a "
    "path or org/repo[@revision].  [default: auto]",
)  # fmt: skip
@click.option(
    "--count", default=256, show_default=True, type=click.IntRange(_LEAST_SOURCES),
    help="Sources to cut out, brightest first; the picture has about 1,100.",
)  # fmt: skip
@click.option("--k", default=10, show_default=True, type=click.IntRange(1), help="Neighbours.")
@click.option(
    "-o", "--output", default=Path("demo-output"), show_default=True, metavar="FOLDER",
    type=click.Path(path_type=Path, file_okay=False), help="Where the results go.",
)  # fmt: skip
@click.option("--device", help="auto, cpu, cuda or cuda:N.  [default: auto]")
@click.option(
    "--dtype", type=click.Choice(["float32", "float16", "bfloat16"]),
    help="Of the computation.  [default: float32]",
)  # fmt: skip
@click.option("--url", metavar="URL", help="Use this running service; start none.")
@click.option("--seed", default=0, show_default=True, help="Of the noise and the permutations.")
@json_option
def demo(
    model: str | None,
    weights: str | None,
    count: int,
    k: int,
    output: Path,
    device: str | None,
    dtype: str | None,
    url: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Run a small experiment from beginning to end, without a network.

    Cuts galaxies out of a Hubble picture, makes the view that a ground telescope would have of
    the same sources, embeds both through a server of its own (CPU, or a GPU if there is one)
    and scores how far the two views agree on which galaxies are alike (MKNN).
    """
    _check_extra()
    if url and (weights or device or dtype):
        raise click.UsageError("--weights, --device and --dtype are up to the service at --url")
    if k >= count:
        raise click.UsageError(f"--k {k} needs more than {k} sources: raise --count")
    _check_folder(output)
    output.mkdir(parents=True, exist_ok=True)
    console = stderr() if as_json else stdout()
    with ExitStack() as stack:
        if url is None:
            url, reason = _start(
                stack, console, model, weights or "auto", _serve_flags(device, dtype)
            )
        else:
            reason = ""
        client = stack.enter_context(Client(url, rows_per_request=_ROWS_PER_REQUEST))
        entry = ready_model(client, model)
        _announce(console, entry, reason)
        result = _run(console, client, entry, count=count, k=k, seed=seed)
    paths = _write(result, output)
    if result.provenance.random_weights:
        console.print(_banner(result.provenance.model, reason or _AS_STARTED))
    _report(console, result, paths)
    if as_json:
        print_json(result.summary() | {"files": {name: str(path) for name, path in paths.items()}})


def _check_extra() -> None:
    missing = [name for module, name in _NEEDED.items() if not importlib.util.find_spec(module)]
    if missing:
        raise click.ClickException(
            f'the demo needs {", ".join(missing)}: pip install "vim-embed[demo]"'
        )


def _check_folder(output: Path) -> None:
    from vim_embed_client.bulk.output_checks import refuse_foreign
    from vim_embed_client.bulk.sources.drawn import drawn_here
    from vim_embed_client.demo.flow import check_folder

    # Beside what the demo wrote, a figure is the demo's, also one of before figures had a mark.
    if not check_folder(output):
        refuse_foreign(output / _FIGURE, drawn_here, "vim-embed demo")


def _serve_flags(device: str | None, dtype: str | None) -> list[str]:
    return ["--device", device or "auto", "--dtype", dtype or "float32"]


def _start(
    stack: ExitStack, console: Console, model: str | None, weights: str, flags: list[str]
) -> tuple[str, str]:
    """Start a server that ends with the stack: its URL, and why not with the released weights."""
    check_service_installed()
    with console.status(f"Looking for the weights of {escape(model or RELEASED)} ..."):
        choice = choose(model, weights)
    with console.status("Starting a server ...") as status:
        server = LocalServer(
            [choice.model],
            random_weights=choice.random,
            args=flags,
            ready_timeout=_READY_SECONDS,
            on_wait=lambda seconds: status.update(
                f"Loading {escape(choice.model)} ... {seconds:.0f} s"
            ),
        )
        stack.enter_context(server)
    console.print(f"Server at {server.url}")
    return server.url, choice.reason


def _announce(console: Console, entry: ModelEntry, reason: str) -> None:
    console.print(
        f"{escape(entry['name'])} on {entry['device']} in {entry['dtype']}, "
        f"backend {entry['backend']} ({escape(entry['backend_reason'])})"
    )
    weights = entry["weights"]
    if weights["random"]:
        console.print(f"[bold red]RANDOM WEIGHTS[/]: {escape(reason or _AS_STARTED)}")
    else:
        if reason:
            console.print(
                f"Not {RELEASED}: {escape(reason)}. The demo goes on with {PACKAGED}; with a file "
                f"of {RELEASED}, it is `vim-embed demo --weights PATH`."
            )
        if entry["name"] == PACKAGED:
            console.print(ABOUT_PACKAGED)
        revision = f" at {weights['revision']}" if weights["revision"] else ""
        console.print(f"Weights {escape(weights['source'])}{revision}, {weights['digest']}")


def _banner(model: str, reason: str) -> Panel:
    return Panel(
        f"[bold]{escape(model)} has random numbers in place of trained weights.[/]\n"
        f"Why: {escape(reason)}.\n"
        "The MKNN below shows that the pipeline works; it says nothing about galaxies or "
        "about Vision Mamba. Do not report it.\n"
        "With the released weights: vim-embed demo --weights PATH-or-HubId",
        title="[bold]RANDOM WEIGHTS: NOT A SCIENTIFIC RESULT[/]",
        border_style="bold red",
        style="red",
        padding=(1, 3),
        expand=False,
    )


def _run(
    console: Console, client: Client, entry: ModelEntry, *, count: int, k: int, seed: int
) -> Result:
    from vim_embed_client.demo.flow import make_views, run

    with console.status("Cutting out galaxies ..."):
        try:
            views = make_views(count, entry, seed=seed)
        except InputError as error:
            raise click.UsageError(f"{error.message}: lower --count") from None
    console.print(
        f"{count} of {views.found} sources found in the Hubble eXtreme Deep Field, "
        f"two views each, {views.space.shape[-1]} pixels, uint8"
    )
    with _progress(console) as on_progress:
        return run(client, entry, views, k=k, seed=seed, on_progress=on_progress)


@contextmanager
def _progress(console: Console) -> Iterator[OnProgress]:
    columns = (
        TextColumn("Embedding"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("images ·"),
        TimeElapsedColumn(),
        TextColumn("·"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _write(result: Result, output: Path) -> dict[str, Path]:
    from vim_embed_client.demo.figure import demo_figure
    from vim_embed_client.demo.flow import write
    from vim_embed_client.figures.style import save

    paths = write(result, output)
    paths["figure"] = output / _FIGURE
    save(demo_figure(result), paths["figure"])
    return paths


def _report(console: Console, result: Result, paths: dict[str, Path]) -> None:
    score = result.score
    table = Table.grid(padding=(0, 2))
    table.add_row(
        "Throughput",
        f"{result.rows_per_second:,.1f} images/s "
        f"({2 * len(result.space):,} in {result.seconds:.1f} s through HTTP)",
    )
    table.add_row(
        f"[bold]MKNN at k = {score.k}[/]",
        f"[bold]{score.mknn:.4f}[/]  (95 % interval over sources {score.low:.3f} to "
        f"{score.high:.3f})",
    )
    table.add_row(
        "Chance",
        f"{score.chance:.4f}  (k / (n - 1); {score.permutations} permuted pairings: "
        f"{score.permuted_mean:.4f} ± {score.permuted_std:.4f})",
    )
    style = "bold red" if result.provenance.random_weights else "default"
    table.add_row("Model", f"[{style}]{escape(f'{result.provenance.model}, {result.weights}')}[/]")
    for name, path in paths.items():
        table.add_row(name.capitalize(), escape(str(path)))
    console.print(table)
