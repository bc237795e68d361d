"""`vim-embed-server certify`, below its options."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from vim_embed.certify import files
from vim_embed.certify.images import ImageSet, read_images, sample_images
from vim_embed.certify.measure import Measured, Plan, measure
from vim_embed.certify.neighbours import LEAST_IMAGES
from vim_embed.certify.report import Report, make_report
from vim_embed.certify.report import as_json as to_json
from vim_embed.errors import WeightsError
from vim_embed.inference.embedder import Embedder
from vim_embed.settings import Settings
from vim_embed.types.devices import resolve_devices
from vim_embed.weights.catalogue import parse_model
from vim_embed.weights.load import default_batch_rows
from vim_embed_client.bulk.sources.options import ReadOptions
from vim_embed_client.errors import VimEmbedError


def run(
    settings: Settings,
    *,
    paths: Sequence[str],
    read_options: ReadOptions,
    rows: int,
    against: str | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Certify the first model of the settings. paths: empty for the sample.

    Raises click.UsageError and click.ClickException; ends with 1 where faults were found.
    """
    try:
        plan = _plan(settings, against)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    path = output or Path(f"{plan.entry.name}-{plan.dtype}.certificate.json")
    files.check_output(path)
    try:
        fast = plan.load(plan.dtype, plan.backend)
        if paths:
            images = read_images(paths, read_options, fast.info, rows)
        else:
            images = sample_images(fast.info, rows)
        _check_number(images)
        report = make_report(_measured(plan, fast, images), settings.keep_neighbours)
    except VimEmbedError as error:
        raise click.ClickException(error.message) from error
    except (ValueError, WeightsError) as error:
        raise click.ClickException(str(error)) from error
    files.write(report, path)
    _print(report, path, as_json=as_json)
    sys.exit(0 if report["passes"] else 1)


def _plan(settings: Settings, against: str | None) -> Plan:
    if len(settings.models) > 1:
        raise ValueError("one model at a time: give --model once")
    if settings.dtype == "auto":
        raise ValueError("certify one dtype: --dtype float16 or bfloat16; auto chooses by them")
    if settings.certificates:
        raise ValueError("--certificate is what this command writes: leave it out")
    entry = parse_model(settings.models[0])
    original = parse_model(f"{entry.name}={against}") if against else None
    device = resolve_devices(settings.device)[0]
    return Plan(
        entry=entry,
        against=original,
        device=device,
        dtype=entry.dtype or settings.dtype,
        backend=settings.backend,
        random_weights=settings.random_weights,
        batch_rows=settings.batch_rows or default_batch_rows(device, entry.kind or "vim"),
    )


def _check_number(images: ImageSet) -> None:
    if len(images) < LEAST_IMAGES:
        why = f" ({len(images.left_out)} were left out)" if images.left_out else ""
        raise click.ClickException(
            f"{len(images)} images are too few{why}: neighbours need at least {LEAST_IMAGES}"
        )


def _measured(plan: Plan, fast: Embedder, images: ImageSet) -> Measured:
    with click.progressbar(
        length=2 * len(images), label=f"{len(images):,} images, twice", file=sys.stderr
    ) as bar:
        return measure(plan, fast, images, bar.update)


def _print(report: Report, path: Path, *, as_json: bool) -> None:
    if as_json:
        click.echo(to_json(report), nl=False)
        return
    click.echo(report["statement"])
    for word, texts in (("fault", report["certificate"]["faults"]), ("note", report["cautions"])):
        for text in texts:
            click.echo(f"{word}: {text}")
    click.echo(f"Written: {path} and {files.page_of(path)}")
