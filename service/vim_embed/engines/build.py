"""From settings to engines: one torch engine for each device."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from vim_embed.engines.fault_injection import Faults
from vim_embed.engines.interface import Engine
from vim_embed.settings import Settings

_LOG = logging.getLogger(__name__)


def build_engines(settings: Settings, faults: Faults | None = None) -> list[Engine]:
    """A torch engine for each device of the settings. Raises ValueError that names the fix."""
    import torch

    from vim_embed.engines.in_process import used_certificates
    from vim_embed.engines.torch_engine import EngineOptions, TorchEngine
    from vim_embed.types.devices import cap_memory, resolve_devices
    from vim_embed.weights.catalogue import parse_model

    if settings.threads:
        torch.set_num_threads(settings.threads)
    entries = [parse_model(argument) for argument in settings.models]
    names = [entry.name for entry in entries]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"model {', '.join(twice)} is given twice: give each its own name")
    certificates = used_certificates(settings, entries)
    devices = resolve_devices(settings.device)
    _tell_of(devices, settings.devices_expected)
    if settings.gpu_memory:
        cap_memory(devices, settings.gpu_memory)
    options = EngineOptions(
        device=devices[0],
        dtype=settings.dtype,
        certificates=certificates,
        keep_neighbours=settings.keep_neighbours,
        backend=settings.backend,
        random_weights=settings.random_weights,
        batch_rows=settings.batch_rows,
        exact_rows=settings.exact_rows,
        on_forward=faults.strike if faults is not None else None,
    )
    return [TorchEngine(entries, replace(options, device=device)) for device in devices]


def _tell_of(devices: Sequence[object], expected: int) -> None:
    """Log the devices; a GPU that broke is simply not there after a restart."""
    about = {"devices": [str(device) for device in devices], "expected": expected or len(devices)}
    if len(devices) < expected:
        _LOG.error("fewer devices than expected: the service is degraded", extra=about)
    else:
        _LOG.info("devices found", extra=about)
