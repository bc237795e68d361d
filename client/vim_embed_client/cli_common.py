"""What the subcommands share: options, consoles and the client they use."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click
from rich.console import Console

from vim_embed_client.options import DEFAULT_URL

F = TypeVar("F", bound=Callable[..., Any])


def service_options(command: F) -> F:
    """Add --url and --api-key."""
    url = click.option(
        "--url",
        metavar="URL",
        help=f"Service to use.  [default: VIM_EMBED_URL, else {DEFAULT_URL}]",
    )
    key = click.option(
        "--api-key", metavar="KEY", help="Key that it asks for.  [default: VIM_EMBED_API_KEY]"
    )
    return url(key(command))


def json_option(command: F) -> F:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def print_json(value: Any) -> None:
    """Print for programs: plain JSON on standard output."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def stdout() -> Console:
    """Where results go."""
    return Console(highlight=False)


def stderr() -> Console:
    """Where progress and remarks go."""
    return Console(stderr=True, highlight=False)


def rate(rows_per_s: float) -> str:
    """`4,551 rows/s`, `2.4 rows/s`."""
    return f"{rows_per_s:,.{0 if rows_per_s >= 100 else 1}f} rows/s"
