"""`vim-embed embed`: files in, one file of embeddings out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape

from vim_embed_client.bulk.output_checks import check_output
from vim_embed_client.bulk.outputs import NO_SURVEY, sidecar, skipped_list
from vim_embed_client.bulk.reasons import LeftOut, Reasons, first_reason, named
from vim_embed_client.bulk.row_shape import is_layers
from vim_embed_client.bulk.run import BulkRun, OnError, Summary
from vim_embed_client.bulk.sources.registry import (
    ReadOptions,
    band_remark,
)
from vim_embed_client.bulk.waiting import Waiting
from vim_embed_client.cli.common import (
    SOME_LEFT_OUT,
    json_option,
    print_json,
    rate,
    say,
    service_options,
    stderr,
)
from vim_embed_client.cli.option_groups import GroupedCommand
from vim_embed_client.cli.progress import showing_progress
from vim_embed_client.cli.reading_options import checked_sources, numbers, reading_options
from vim_embed_client.cli.written_files import OutputPath
from vim_embed_client.client import Client
from vim_embed_client.compression import CODINGS, Compression
from vim_embed_client.errors import InputError
from vim_embed_client.options import GRANULARITIES, OF_THE_LAST_LAYER, POOLINGS

_SHOWN = 10
_IDS = 3  # of a group that are named


per_band = numbers(float, "0.5,0.5,0.5, a number for each band")


@click.command(cls=GroupedCommand)
@click.argument("paths", nargs=-1, required=True)
@click.option(
    "-o", "--output", required=True, type=OutputPath(left_out_of="paths"), metavar="FILE",
    help="File to write: .npy (ids and provenance in FILE.json), .npz, .parquet or .safetensors.",
)  # fmt: skip
@service_options
@click.option("--model", help="Model to use.  [default: the service's]")
@click.option(
    "--pooling", default="mean", show_default=True,
    type=click.Choice(POOLINGS),
    help="How tokens become one embedding, or `tokens` for all of them; a model has those that "
    "`vim-embed models --json` names.",
)  # fmt: skip
@click.option(
    "--layers", type=click.Choice(GRANULARITIES),
    help="An embedding of each layer, the last of which is the model's: blocks, residual "
    "(modules with parts), leaves (modules without), or all.",
)  # fmt: skip
@click.option(
    "--mode", metavar="NAME",
    help="With --layers in .parquet, what stands behind the layers in the columns' names, as "
    "platonic-universe has its surveys: layers.0_hsc.  [default: of --survey, else images]",
)  # fmt: skip
@click.option(
    "--dtype", default="float32", show_default=True,
    type=click.Choice(["float32", "float16"]), help="Of the embeddings.",
)  # fmt: skip
@click.option(
    "--exact/--no-exact", default=None,
    help="The same bytes whatever shares a batch.  [default: the service's setting]",
)  # fmt: skip
@click.option("--mean", callback=per_band, metavar="R,G,B", help="Mean in place of the model's.")
@click.option(
    "--std", callback=per_band, metavar="R,G,B", help="Deviation in place of the model's."
)
@click.option(
    "--batch-rows", default=64, show_default=True, type=click.IntRange(1),
    help="Rows per request.",
)  # fmt: skip
@click.option(
    "--in-flight", default=4, show_default=True, type=click.IntRange(1),
    help="Requests under way at once.",
)  # fmt: skip
@click.option(
    "--compression", type=click.Choice(CODINGS),
    help="Compress arrays on their way, for slow networks.  [default: as they are]",
)  # fmt: skip
@click.option(
    "--on-error", default="fail", show_default=True, type=click.Choice(["fail", "skip"]),
    help="What to do about a file that cannot be read or embedded.",
)  # fmt: skip
@click.option(
    "--retries", default=5, show_default=True, type=click.IntRange(0),
    help="Further attempts while the service is busy or fails; 0: none at all.",
)  # fmt: skip
@click.option(
    "--retry-for", default=60.0, show_default=True, type=click.FloatRange(0),
    help="Seconds for which a service that restarts is waited for, whatever --retries says.",
)  # fmt: skip
@reading_options
@click.option(
    "--part-rows", default=4096, show_default=True, type=click.IntRange(1),
    help="Rows after which they are safe on disk, or half a minute: what a crash costs at most.",
)  # fmt: skip
@click.option(
    "--restart", is_flag=True,
    help="Throw away what an interrupted run finished, and begin anew.",
)  # fmt: skip
@click.option(
    "--overwrite", is_flag=True,
    help="Replace a finished FILE whose rows this run does not make again: of other options, "
    "inputs or another model.",
)  # fmt: skip
@click.option("--quiet", is_flag=True, help="No progress and no summary.")
@json_option
def embed(
    paths: tuple[str, ...],
    output: Path,
    url: str | None,
    api_key: str | None,
    batch_rows: int,
    in_flight: int,
    compression: Compression | None,
    on_error: OnError,
    retries: int,
    retry_for: float,
    read_options: ReadOptions,
    part_rows: int,
    restart: bool,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
    mode: str | None,
    **options: Any,
) -> int:
    """Embed images and arrays into one file.

    There is a row for each image, sorted by path. PATHS are folders (searched with their
    subfolders), quoted patterns, images, .npy and .npz arrays of (3, H, W) or (B, 3, H, W), tar
    and webdataset shards, Parquet, FITS, and Hugging Face data sets as hf:NAME[:SPLIT[:COLUMN]].
    Images are sent as they are, and the service resizes and normalises them. uint8 arrays are
    resized only with --resize, and float arrays must be normalised already. Fluxes (FITS, columns
    with `flux`) are stretched to 8-bit RGB and resized. With --catalogue, PATHS are the images of a
    mosaic, and there is a row for each position of the catalogue.

    The last line says how many rows were written, how many were skipped because they could not be
    read or embedded, and how many files were passed over because they are no images, with the
    reasons. The exit code is 0 where every row was written, 5 where some were skipped (--on-error
    skip), and another one where the run failed or nothing could be embedded.

    Finished rows are kept in FILE.parts until all are done: an interrupted run goes on where it
    was when the same command is given again. A finished FILE is replaced at the end of a run that
    makes its rows again; --overwrite replaces others of `embed` too.
    """
    check_combination(output, mode, options["layers"], options["pooling"])
    found = LeftOut()
    sources = _sources(paths, output, read_options, found)
    if found.skipped.count and on_error == "fail":
        raise InputError(f"nothing was embedded{first_reason(found)}")
    console = stderr()
    if not quiet and (remark := band_remark(sources, read_options)):
        say(console, f"[yellow]{escape(remark)}[/]")
    started, waiting = time.monotonic(), Waiting()
    with (
        Client(
            url,
            api_key=api_key,
            max_retries=retries,
            retry_for=retry_for,
            rows_per_request=batch_rows,
            compression=compression,
        ) as client,
        showing_progress(console, quiet=quiet, waiting=waiting) as on_progress,
    ):
        client.live()
        run = BulkRun(
            client,
            sources,
            output,
            read_options=read_options,
            batch_rows=batch_rows,
            in_flight=in_flight,
            on_error=on_error,
            part_rows=part_rows,
            restart=restart,
            overwrite=overwrite,
            waiting=waiting,
            on_note=lambda text: None if quiet else say(console, f"[yellow]{escape(text)}[/]"),
            found=found,
            on_progress=on_progress,
            mode=mode or mode_of(read_options),
            **options,
        )
        with _telling_what_is_kept(run, output, console):
            summary = run.run()
    seconds = time.monotonic() - started
    if not quiet:
        _report(console, summary, output, seconds)
    if as_json:
        print_json(_as_json(summary, output, seconds))
    return SOME_LEFT_OUT if summary.left_out.skipped.count else 0


def check_combination(output: Path, mode: str | None, layers: str | None, pooling: str) -> None:
    """Raise click.UsageError for options of which one has no place beside another."""
    if layers is not None and pooling in OF_THE_LAST_LAYER:
        raise click.UsageError(f"--pooling {pooling} is of the final layer: leave --layers out")
    if mode is not None and (layers is None or output.suffix != ".parquet"):
        raise click.UsageError("--mode has an effect on --layers in .parquet alone: leave it out")
    if mode is not None and ("_" in mode or not mode.strip()):
        raise click.UsageError(
            f"--mode {mode!r} must be a word without _, which ends a layer's name"
        )


def mode_of(options: ReadOptions) -> str:
    """The survey's name, as platonic-universe has it."""
    return (options.stretch.survey or NO_SURVEY).partition("@")[0]


def _sources(paths: Sequence[str], output: Path, options: ReadOptions, found: LeftOut) -> list[str]:
    check_output(output)
    return checked_sources(paths, output, options, found)


@contextmanager
def _telling_what_is_kept(run: BulkRun, output: Path, console: Console) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if run.kept:
            say(
                console,
                f"{run.kept:,} finished rows are kept in {escape(str(output))}.parts: the same "
                "command goes on from there, --restart begins anew.",
            )
        raise


def _report(console: Console, summary: Summary, output: Path, seconds: float) -> None:
    left_out = summary.left_out
    for skipped in summary.first_skipped[:_SHOWN]:
        say(console, f"[yellow]skipped[/] {escape(skipped['id'])}: {escape(skipped['reason'])}")
    if left_out.skipped.count > _SHOWN:
        console.print(f"[yellow]skipped[/] {left_out.skipped.count - _SHOWN:,} more")
    for group in left_out.passed_over:
        say(console, f"[yellow]passed over[/] {escape(group.ids)}: {escape(group.reason)}")
    if left_out.skipped.count > _SHOWN or len(summary.first_passed_over) > _IDS:
        say(console, f"All ids and reasons: {escape(_where_all_are(output))}")
    for group in summary.notes:
        say(console, f"[yellow]{escape(group.ids)}: {escape(group.reason)}[/]")
    if summary.identical["rows"]:
        say(console, f"[yellow]{escape(_about_identical(summary.identical))}[/]")
    if summary.provenance.random_weights:
        console.print("[red]The model has random weights: these numbers mean nothing.[/]")
    rows = summary.rows - summary.resumed
    before = f", {summary.resumed:,} of them from before" if summary.resumed else ""
    say(
        console,
        f"{summary.rows:,} rows × {_size(summary)} from {escape(summary.provenance.model)} -> "
        f"{escape(str(output))} ({seconds:.1f} s, {rate(rows / seconds)}{before}); "
        f"{_counted('skipped', left_out.skipped)}, "
        f"{_counted('passed over', left_out.passed_over)}",
    )


def _size(summary: Summary) -> str:
    """`192`, `27 layers`, or `197 × 192` of tokens."""
    if is_layers(summary.shape):
        return f"{len(summary.shape)} layers"
    return " × ".join(map(str, summary.shape[0].shape))


def _where_all_are(output: Path) -> str:
    """Where everything that was left out is named."""
    if skipped_list(output).exists():
        return str(skipped_list(output))
    about = sidecar(output) if output.suffix == ".npy" else f"the metadata of {output}"
    return f"`skipped` and `passed_over` of {about}, and of --json"


def _counted(what: str, reasons: Reasons) -> str:
    """`3 skipped (2: it is null; 1: it is empty)`."""
    if not reasons.count:
        return f"0 {what}"
    groups = list(reasons)
    told = "; ".join(f"{group.count:,}: {escape(group.reason)}" for group in groups[:3])
    more = f"; {sum(group.count for group in groups[3:]):,}: other reasons" if groups[3:] else ""
    return f"{reasons.count:,} {what} ({told}{more})"


def _about_identical(identical: dict[str, Any]) -> str:
    groups = identical["groups"]
    some = "; ".join(named(group["ids"], group["count"]) for group in groups[:3])
    more = "; …" if len(groups) > 3 else ""
    return (
        f"{identical['rows']:,} rows have the very input of another row, and so agree with it by "
        f"nature in every score: {some}{more}"
    )


def _as_json(summary: Summary, output: Path, seconds: float) -> dict[str, Any]:
    return {
        "output": str(output),
        "rows": summary.rows,
        "resumed": summary.resumed,
        "dim": summary.dim,
        **({"layers": [one.name for one in summary.shape]} if is_layers(summary.shape) else {}),
        "seconds": round(seconds, 3),
        "rows_per_s": round((summary.rows - summary.resumed) / seconds, 3),
        "skipped": summary.first_skipped,
        "skipped_count": summary.left_out.skipped.count,
        "skipped_reasons": summary.left_out.skipped.as_json(),
        "passed_over": summary.first_passed_over,
        "passed_over_count": summary.left_out.passed_over.count,
        "passed_over_reasons": summary.left_out.passed_over.as_json(),
        "notes": summary.notes.as_json(),
        "identical": summary.identical,
        "provenance": asdict(summary.provenance),
    }
