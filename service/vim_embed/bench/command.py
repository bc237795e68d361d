"""`vim-embed-server bench`, below its options."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch

from vim_embed.bench import gpu
from vim_embed.bench.advice import advice
from vim_embed.bench.bare import bare_loop
from vim_embed.bench.cpu import report
from vim_embed.bench.cuda_meter import describe_machine
from vim_embed.bench.delivery import WAYS, Delivery, as_text, in_process
from vim_embed.bench.over_http import http_rate
from vim_embed.engines.certified import check_used, read_certificates
from vim_embed.engines.in_process import load_in_process, used_certificates
from vim_embed.errors import WeightsError
from vim_embed.inference.embedder import Embedder
from vim_embed.models.vim import VIM_CONFIGS
from vim_embed.settings import Settings
from vim_embed.types.certificate import Certificate
from vim_embed.types.devices import DTYPES, resolve_devices
from vim_embed.weights.catalogue import CatalogueEntry, parse_model

_ENOUGH = 0.95  # share of the forward alone that HTTP needs no advice from on
_ROWS = {"cpu": 8, "cuda": 128}  # of a call, by the device's type


@dataclass(frozen=True)
class Plan:
    """What is measured: `models` are the arguments of --model that the `entries` were read from."""

    settings: Settings
    device: torch.device
    models: tuple[str, ...]
    entries: tuple[CatalogueEntry, ...]
    certificates: tuple[Certificate, ...]
    dtypes: tuple[str, ...]
    rows: int
    seconds: float

    @staticmethod
    def of(settings: Settings, dtypes: str | None, rows: int | None, seconds: float) -> Plan:
        """Raises ValueError, each naming the fix."""
        device = resolve_devices(settings.device)[0]
        entries = tuple(parse_model(argument) for argument in settings.models)
        if dtypes is None:
            certificates = used_certificates(settings, entries)
            names: tuple[str, ...] = (settings.dtype,)
        else:
            certificates, names = read_certificates(settings.certificates), _names(dtypes)
            check_used(certificates, entries, *names)
        rows = rows or _ROWS[device.type]
        return Plan(settings, device, settings.models, entries, certificates, names, rows, seconds)


def _names(dtypes: str) -> tuple[str, ...]:
    given = [name.strip() for name in dtypes.split(",")]
    names = gpu.dtypes_of(name for name in given if name)
    if not names:
        raise ValueError(f"--dtypes names no dtype: use some of {', '.join(DTYPES)}")
    return tuple(names)


def _loaded(plan: Plan, entry: CatalogueEntry, dtype: str | None = None) -> Embedder:
    try:
        return load_in_process(entry, plan.settings, plan.certificates, dtype=dtype)
    except (ValueError, WeightsError) as error:
        raise click.ClickException(str(error)) from error


def run_bare(plan: Plan, wire: str) -> None:
    """The loop over `embed` of each model, a JSON object a line."""
    for entry in plan.entries:
        result = bare_loop(_loaded(plan, entry), rows=plan.rows, seconds=plan.seconds, wire=wire)
        click.echo(json.dumps({"model": entry.name, **asdict(result)}))


def run(plan: Plan, *, batches: str, sizes: str, http: bool, output: Path | None) -> None:
    """What reaches the caller, which dtype to take, and the kernels; each printed once it is done.

    Raises click.UsageError and click.ClickException; ends with 1 where a comparison failed.
    """
    try:
        cases = _cases(plan, batches, sizes)
        found = _deliveries(plan, http=http)
        first = "\n\n".join(filter(None, [as_text(found), _advice(plan, found)])) + "\n"
        click.echo(first)
        lines = _kernels(plan, cases)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if lines:
        click.echo("\n" + gpu.notes(lines))
    if output is not None:
        text = gpu.as_markdown(lines, describe_machine())
        output.write_text(f"{text}\n{first}", encoding="utf-8")
    if not all(line.ok for line in lines):
        sys.exit(1)


def _cases(plan: Plan, batches: str, sizes: str) -> list[gpu.Case]:
    """Forwards that are measured beside their rivals, with random weights; none on a CPU."""
    if plan.device.type == "cpu":
        return []
    names = _known(plan, [name for kind in gpu.KINDS for name in kind.models])
    # auto goes by certificates, and these weights are random
    dtypes = ["float32" if name == "auto" else name for name in plan.dtypes]
    counts = gpu.numbers(batches), gpu.numbers(sizes)
    return gpu.cases_of(names, dtypes, *counts)


def _known(plan: Plan, names: Collection[str]) -> list[str]:
    """Those of the models' names that are in `names`, whatever their weights."""
    return [entry.name for entry in plan.entries if entry.name in names]


def _kernels(plan: Plan, cases: Sequence[gpu.Case]) -> list[gpu.Line]:
    if cases:
        return gpu.measured(cases, seconds=min(1.0, plan.seconds), echo=click.echo)
    if plan.device.type == "cpu":
        threads = torch.get_num_threads()
        for name in _known(plan, VIM_CONFIGS):
            click.echo(report(name, batch=plan.rows, threads=threads) + "\n")
    return []


def _deliveries(plan: Plan, *, http: bool) -> list[Delivery]:
    found = []
    for argument, entry in zip(plan.models, plan.entries, strict=True):
        for dtype in [entry.dtype] if entry.dtype else plan.dtypes:
            found.append(_delivery(plan, argument, entry, dtype, http=http))
    return found


def _delivery(
    plan: Plan, argument: str, entry: CatalogueEntry, dtype: str, *, http: bool
) -> Delivery:
    model = _loaded(plan, entry, dtype)
    if plan.settings.batch_rows and plan.device.type == "cuda":
        model.use_graphs(plan.settings.batch_rows)
    info = model.info
    click.echo(
        f"{entry.name}: {info.backend} on {info.device} in {info.dtype}, "
        f"{torch.get_num_threads()} threads; {info.dtype_reason}",
        err=True,
    )
    rates = in_process(model, plan.rows, plan.seconds)
    del model
    gc.collect()
    if plan.device.type == "cuda":
        torch.cuda.empty_cache()
    alone = rates.pop("alone")
    ways: dict[str, float | str] = dict(rates)
    if not http:
        ways[WAYS[2]] = "left out by --no-http"
    elif info.channels != 3:
        ways = {**dict.fromkeys(WAYS, f"its images have {info.channels} bands"), **rates}
    else:
        ways[WAYS[2]] = http_rate(
            plan.settings,
            argument,
            info.dtype,
            device=plan.device,
            rows=plan.rows,
            seconds=plan.seconds,
        )
    return Delivery(entry.name, info.dtype, plan.rows, alone, ways)


def _advice(plan: Plan, found: Sequence[Delivery]) -> str:
    keep = plan.settings.keep_neighbours
    sentences = []
    for entry in plan.entries:
        rates = {line.dtype: line.alone for line in found if line.model == entry.name}
        sentences.append(advice(entry.name, rates, plan.certificates, keep))
    if plan.device.type == "cuda" and plan.settings.http_processes == 1:
        rates_of_http = [(line.ways.get(WAYS[2]), line.alone) for line in found]
        if any(isinstance(rate, float) and rate < _ENOUGH * alone for rate, alone in rates_of_http):
            sentences.append(
                "One process reads bodies and runs the model here: where the machine has cores for "
                "it, --http-processes 4 brings HTTP nearer to the forward alone."
            )
    return "\n".join(filter(None, sentences))
