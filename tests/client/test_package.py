"""The package as a whole: what importing it loads, and that both clients are one interface."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from typing import Any, Unpack, get_type_hints

import numpy as np
import pytest

from vim_embed_client import AsyncClient, Client, EmbedOptions, ImageOptions
from vim_embed_client.options import FLUX_OPTIONS, FluxOptions
from vim_embed_client.requests import embed_params

HEAVY = {"torch", "fastapi", "starlette", "pyarrow", "safetensors", "PIL"}


def test_importing_the_client_loads_nothing_heavy() -> None:
    script = "import sys, json, vim_embed_client; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(run.stdout)}
    assert not loaded & (HEAVY | {"vim_embed"})


def _public(cls: type) -> dict[str, Any]:
    members = inspect.getmembers(cls, inspect.isfunction)
    return {name: f for name, f in members if not name.startswith("_")}


def _hints(function: Any) -> dict[str, Any]:
    """Its types, without that of images: it names Pillow's, which is not imported."""
    return get_type_hints(function, localns={"Images": object})


def test_both_clients_have_the_same_methods() -> None:
    assert set(_public(Client)) == set(_public(AsyncClient))
    assert {"embed", "embed_layers", "embed_images", "models", "close"} <= set(_public(Client))


@pytest.mark.parametrize("name", [*_public(Client), "__init__"])
def test_both_clients_have_the_same_signatures(name: str) -> None:
    ours, theirs = (inspect.signature(getattr(cls, name)) for cls in (Client, AsyncClient))
    plain = str(theirs).replace("AsyncBaseTransport", "BaseTransport")
    assert plain == str(ours)


@pytest.mark.parametrize("name", _public(Client))
def test_both_clients_promise_the_same_types(name: str) -> None:
    """The hints resolved, so that `**options` stands for the same names and types in both."""
    ours, theirs = (_hints(getattr(cls, name)) for cls in (Client, AsyncClient))
    assert theirs == ours


@pytest.mark.parametrize(
    ("name", "options"),
    [("embed", EmbedOptions), ("embed_layers", EmbedOptions), ("embed_images", ImageOptions)],
)
def test_the_options_of_a_method_are_those_of_its_request(name: str, options: Any) -> None:
    assert _hints(getattr(Client, name))["options"] == Unpack[options]
    sent = set(inspect.signature(embed_params).parameters) - {"layers", "channels"}
    fluxes = set(FLUX_OPTIONS) if name == "embed_images" else set()
    assert set(get_type_hints(options)) == sent | fluxes | (
        set() if fluxes else {"wire", "image_size"}
    )
    documented = f"{Client.embed.__doc__}{FluxOptions.__doc__}"
    assert all(f"{option}:" in documented for option in fluxes)
    assert all(option in documented for option in get_type_hints(options))


@pytest.mark.parametrize(
    ("name", "unknown"),
    [
        ("embed", "layers"),
        ("embed", "Pooling"),
        ("embed_layers", "layers"),
        ("embed_images", "wire"),
    ],
)
def test_an_option_that_a_method_lacks_is_an_error(client: Any, name: str, unknown: str) -> None:
    with pytest.raises(TypeError, match=unknown):
        getattr(client, name)(np.zeros((1, 3, 8, 8), np.uint8), **{unknown: "blocks"})


def test_every_request_of_the_async_client_is_awaited() -> None:
    blocking = {n for n, f in _public(AsyncClient).items() if not inspect.iscoroutinefunction(f)}
    assert blocking == {"with_options"}


@pytest.mark.parametrize("name", _public(Client))
def test_public_methods_are_documented(name: str) -> None:
    assert getattr(Client, name).__doc__
    assert getattr(AsyncClient, name).__doc__
