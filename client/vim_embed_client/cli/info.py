"""`vim-embed models` and `vim-embed health`."""

from __future__ import annotations

import click
from rich.markup import escape
from rich.table import Column, Table

from vim_embed_client.cli.common import json_option, print_json, service_options, stdout
from vim_embed_client.client import Client
from vim_embed_client.errors import StatusError
from vim_embed_client.results import ModelEntry


@click.command()
@service_options
@json_option
def models(url: str | None, api_key: str | None, as_json: bool) -> None:
    """List the models that the service has."""
    with Client(url, api_key=api_key) as client:
        listed = client.models()
    if as_json:
        return print_json(listed)
    names = ("model", "state", "dim", "image", "dtype", "device", "backend", "weights")
    table = Table(*(Column(name, overflow="fold") for name in names))
    for entry in listed["models"]:
        table.add_row(*_cells(entry, default=entry["name"] == listed["default"]))
    stdout().print(table)


def _cells(entry: ModelEntry, *, default: bool) -> list[str]:
    name = entry["name"] + (" (default)" if default else "")
    state = entry["state"] + (f": {entry['reason']}" if entry["reason"] else "")
    if "weights" not in entry:
        return [escape(name), escape(state)]
    size = entry["preprocessing"]["image_size"]
    weights = entry["weights"]
    cells = [
        name,
        state,
        str(entry["dim"]),
        f"{size}×{size}",
        entry["dtype"],
        entry["device"],
        entry["backend"],
        "random: for tests" if weights["random"] else weights["source"],
    ]
    return [escape(cell) for cell in cells]


@click.command()
@service_options
@json_option
@click.option("--strict", is_flag=True, help="Exit code 1 too if it is degraded.")
def health(url: str | None, api_key: str | None, as_json: bool, strict: bool) -> None:
    """Ask whether the service takes requests.

    The exit code is 0 if it does, 1 if it does not yet, 3 if nothing answers. A service is degraded
    if it gives less than its settings ask for: a device is lost or begins anew, a forward may be
    hanging, a model could not be loaded.
    """
    with Client(url, api_key=api_key, timeout=10.0) as client:
        try:
            readiness = client.ready()
        except StatusError as error:
            if as_json:
                print_json({"status": error.code or "failed", "message": error.message})
            else:
                click.echo(f"{client.base_url} is not ready: {error.message}")
            click.get_current_context().exit(1)
        degraded = readiness.get("degraded", {})
        if as_json:
            print_json(readiness)
        else:
            states = ", ".join(f"{name} {state}" for name, state in readiness["models"].items())
            click.echo(f"{client.base_url} is ready: {states}")
            for what, reason in degraded.items():
                click.echo(f"degraded: {what}: {reason}")
        if strict and degraded:
            click.get_current_context().exit(1)
