"""Images/s of a service in a process of its own, under client processes on this machine."""

from __future__ import annotations

import os

import torch

from vim_embed.settings import Settings
from vim_embed_client.bench.load_generator import Load, LoadClients
from vim_embed_client.bench.report import round_of
from vim_embed_client.client import Client, ready_model
from vim_embed_client.errors import VimEmbedError
from vim_embed_client.local_server import LocalServer

# What a service computes with; how it is reached and watched stays its default.
_SETTINGS = (
    "backend",
    "batch_rows",
    "exact_rows",
    "gpu_memory",
    "http_processes",
    "random_weights",
    "threads",
)
_CLIENTS = {"cpu": 2, "cuda": 8}  # by the device's type
_WARM_UP_S = 1.0


def http_rate(
    settings: Settings,
    model: str,
    dtype: str,
    *,
    device: torch.device,
    rows: int,
    seconds: float,
) -> float | str:
    """Images/s of uint8 rows, `rows` a request; or why there is no such figure.

    model: an argument of --model.
    """
    args = ["--dtype", dtype, "--device", str(device)]
    try:
        with LocalServer([model], args=args, env=_environment(settings)) as server:
            return _rate(server.url, rows, seconds, _CLIENTS[device.type])
    except VimEmbedError as error:
        return error.message.strip().splitlines()[-1]


def _environment(settings: Settings) -> dict[str, str]:
    """This process's environment with these settings alone."""
    names = {f"VIM_EMBED_{name.upper()}" for name in Settings.model_fields}
    kept = {name: value for name, value in os.environ.items() if name not in names}
    given = {name: str(getattr(settings, name)) for name in _SETTINGS}
    return kept | {f"VIM_EMBED_{name.upper()}": value for name, value in given.items()}


def _rate(url: str, rows: int, seconds: float, count: int) -> float | str:
    with Client(url) as client:
        entry = ready_model(client)
    load = Load(
        url=url,
        api_key=None,
        model=entry["name"],
        rows=rows,
        wire="uint8",
        image_size=entry["preprocessing"]["image_size"],
    )
    with LoadClients(load, count) as clients:
        clients.run(_WARM_UP_S, clients=count, rows=rows)
        found = round_of(clients.run(seconds, clients=count, rows=rows), None, None)
    if found["failures"]:
        codes = ", ".join(f"{code} {number}" for code, number in found["failures"].items())
        return f"{found['refused']} requests refused, {found['errors']} failed ({codes})"
    return float(found["http_rows_per_s"])
