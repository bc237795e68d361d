"""The package as a whole: what importing it loads, and that both clients are one interface."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from typing import Any

import pytest

from vim_embed_client import AsyncClient, Client

HEAVY = {"torch", "fastapi", "starlette", "pyarrow", "safetensors", "PIL"}


def test_importing_the_client_loads_nothing_heavy() -> None:
    script = "import sys, json, vim_embed_client; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(run.stdout)}
    assert not loaded & (HEAVY | {"vim_embed"})


def _public(cls: type) -> dict[str, Any]:
    members = inspect.getmembers(cls, inspect.isfunction)
    return {name: f for name, f in members if not name.startswith("_")}


def test_both_clients_have_the_same_methods() -> None:
    assert set(_public(Client)) == set(_public(AsyncClient))
    assert {"embed", "embed_layers", "embed_images", "models", "close"} <= set(_public(Client))


@pytest.mark.parametrize("name", [*_public(Client), "__init__"])
def test_both_clients_have_the_same_signatures(name: str) -> None:
    ours, theirs = (inspect.signature(getattr(cls, name)) for cls in (Client, AsyncClient))
    plain = str(theirs).replace("AsyncBaseTransport", "BaseTransport")
    assert plain == str(ours)


def test_every_request_of_the_async_client_is_awaited() -> None:
    blocking = {n for n, f in _public(AsyncClient).items() if not inspect.iscoroutinefunction(f)}
    assert blocking == {"with_options"}


@pytest.mark.parametrize("name", _public(Client))
def test_public_methods_are_documented(name: str) -> None:
    assert getattr(Client, name).__doc__
    assert getattr(AsyncClient, name).__doc__
