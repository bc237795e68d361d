"""From settings to engines: one torch engine for each device."""

from __future__ import annotations

from dataclasses import replace

from vim_embed.engines.fault_injection import Faults
from vim_embed.engines.interface import Engine
from vim_embed.settings import Settings


def build_engines(settings: Settings, faults: Faults | None = None) -> list[Engine]:
    """A torch engine for each device of the settings. Raises ValueError that names the fix."""
    import torch

    from vim_embed.engines.certified import check_used, read_certificates
    from vim_embed.engines.torch_engine import EngineOptions, TorchEngine
    from vim_embed.types.devices import resolve_devices
    from vim_embed.weights.catalogue import parse_model

    if settings.threads:
        torch.set_num_threads(settings.threads)
    entries = [parse_model(argument) for argument in settings.models]
    names = [entry.name for entry in entries]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"model {', '.join(twice)} is given twice: give each its own name")
    if settings.dtype != "auto" and "keep_neighbours" in settings.model_fields_set:
        raise ValueError("--keep-neighbours has an effect with --dtype auto alone")
    certificates = read_certificates(settings.certificates)
    if not settings.model_control:  # models of other names may come
        check_used(certificates, entries, settings.dtype)
    devices = resolve_devices(settings.device)
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
