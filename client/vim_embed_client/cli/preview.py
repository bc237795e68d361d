"""`vim-embed preview`: a contact sheet of what a model would see of some sources."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from vim_embed_client.bulk.preview import PreviewRow, preview_rows
from vim_embed_client.bulk.reasons import LeftOut, Reasons, all_reasons
from vim_embed_client.bulk.sources.reader import Skipped
from vim_embed_client.bulk.sources.registry import ReadOptions
from vim_embed_client.cli.common import (
    json_option,
    print_json,
    say,
    service_option,
    sheet_path,
    stdout,
)
from vim_embed_client.cli.reading_options import checked_sources, reading_options
from vim_embed_client.cli.written_files import OutputPath, WritingCommand
from vim_embed_client.client import Client, ready_model
from vim_embed_client.errors import InputError
from vim_embed_client.results import ModelEntry
from vim_embed_client.scoring.ids import below_common_folder

_NAMED = 1000  # at most, of what was left out


@click.command(cls=WritingCommand)
@click.argument("paths", nargs=-1, required=True)
@click.option(
    "-o", "--output", required=True, metavar="FILE", callback=sheet_path,
    type=OutputPath(dir_okay=False, left_out_of="paths"), help="Sheet to draw: .png, .pdf or .svg.",
)  # fmt: skip
@service_option(
    "Service whose model would see them: images come to its size.  [default: VIM_EMBED_URL, else "
    "none: images stay as the stretch leaves them]"
)
@click.option("--model", help="Model that would see them.  [default: the service's]")
@click.option(
    "--images", "count", default=40, show_default=True, type=click.IntRange(1, 400),
    help="How many to draw, spread over the sources.",
)  # fmt: skip
@reading_options
@json_option
def preview(
    paths: tuple[str, ...],
    output: Path,
    url: str | None,
    api_key: str | None,
    model: str | None,
    count: int,
    read_options: ReadOptions,
    as_json: bool,
) -> None:
    """Draw what a model would see.

    PATHS and the options are those of `vim-embed embed`, and the pixels are those that it would
    send. With a service (--url or VIM_EMBED_URL) they are brought to the size of its model, as it
    does with encoded images; without one they are as the stretch leaves them. Below each image
    stands how much of it is black and white, and a red frame marks those that show next to
    nothing. No image is sent to the service.
    """
    found = LeftOut()
    sources = checked_sources(paths, output, read_options, found)
    entry = _model(url, api_key, model)
    spec = entry["preprocessing"] if entry else None
    read_options = read_options.for_channels((entry and entry.get("channels")) or 3)
    rows: list[PreviewRow] = []
    left_out: list[Skipped] = []
    for one in preview_rows(sources, read_options, spec, count):
        if isinstance(one, Skipped):
            found.add(one)
            left_out += [one] if len(left_out) < _NAMED else []
        else:
            rows.append(one)
    if not rows:
        raise InputError(f"there is nothing to draw{all_reasons(found)}")
    remarks = Reasons()
    for row in rows:
        if row.remark:
            remarks.add(row.id, row.remark)
    _draw(rows, sources, entry, remarks, output)
    if as_json:
        print_json(_report(rows, entry, found, left_out, output))
    else:
        _print(rows, sources, entry, found, remarks, output)


def _model(url: str | None, api_key: str | None, name: str | None) -> ModelEntry | None:
    if url is None and "VIM_EMBED_URL" not in os.environ:
        if name is not None or api_key is not None:
            raise click.UsageError("--model and --api-key are of a service: give its --url too")
        return None
    with Client(url, api_key=api_key) as client:
        return ready_model(client, name)


def _heading(rows: Sequence[PreviewRow], sources: Sequence[str], entry: ModelEntry | None) -> str:
    several = f"{len(sources):,} sources"
    of = f"{len(rows):,} rows of {several if len(sources) > 1 else sources[0]}"
    if entry is None:
        return f"{of}, as the stretch leaves them (--url brings them to a model's size)"
    side = entry["preprocessing"]["image_size"]
    return f"{of}, as {entry['name']} sees them: {side}×{side}"


def _labels(rows: Sequence[PreviewRow]) -> list[str]:
    """Ids without the folder that all have in common; rows of one file keep its name."""
    ids = [row.id for row in rows]
    short = zip(ids, below_common_folder(ids), strict=True)
    return [Path(name).name if label.startswith(".#") else label for name, label in short]


def _draw(
    rows: Sequence[PreviewRow],
    sources: Sequence[str],
    entry: ModelEntry | None,
    remarks: Reasons,
    output: Path,
) -> None:
    from vim_embed_client.figures.contact_sheet import contact_sheet
    from vim_embed_client.figures.style import save

    told = [f"{group.count:,}: {group.reason}" for group in remarks]
    heading = _heading(rows, sources, entry)
    sheet = contact_sheet(rows, _labels(rows), heading, told, resized=entry is not None)
    save(sheet, output)


def _report(
    rows: Sequence[PreviewRow],
    entry: ModelEntry | None,
    found: LeftOut,
    left_out: Sequence[Skipped],
    output: Path,
) -> dict[str, Any]:
    return {
        "output": str(output),
        "model": entry["name"] if entry else None,
        "rows": [
            {
                "id": row.id,
                "size": list(row.pixels.shape[1:]),
                "black": round(row.clipped.black, 6),
                "white": round(row.clipped.white, 6),
                "remark": row.remark,
            }
            for row in rows
        ],
        "left_out": [{"id": one.id, "reason": one.reason} for one in left_out],
        "skipped_reasons": found.skipped.as_json(),
        "passed_over_reasons": found.passed_over.as_json(),
    }


def _print(
    rows: Sequence[PreviewRow],
    sources: Sequence[str],
    entry: ModelEntry | None,
    found: LeftOut,
    remarks: Reasons,
    output: Path,
) -> None:
    console = stdout()
    for what, reasons in (("skipped", found.skipped), ("passed over", found.passed_over)):
        for group in reasons:
            say(console, f"[yellow]{what}[/] {escape(group.ids)}: {escape(group.reason)}")
    if not all(group.shown for group in (*found.skipped, *found.passed_over)):
        say(console, "All ids and reasons: `left_out` of --json")
    for group in remarks:
        say(console, f"[yellow]{group.count:,} of {len(rows):,}[/]: {escape(group.reason)}")
    say(console, escape(_heading(rows, sources, entry)))
    say(console, f"Written: {escape(str(output))}")
