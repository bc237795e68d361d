"""`vim-embed explain`: a sheet of where a Vim looks."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from rich.markup import escape

from vim_embed_client.bulk.durable_files import write_durably
from vim_embed_client.bulk.output_checks import refuse_foreign
from vim_embed_client.bulk.sources.options import ReadOptions
from vim_embed_client.bulk.sources.ours import holds_attention
from vim_embed_client.bulk.sources.registry import find_sources
from vim_embed_client.cli.common import RANDOM_WEIGHTS, json_option, print_json, say, sheet_path
from vim_embed_client.cli.common import stdout as console_of_results
from vim_embed_client.cli.reading_options import numbers, reading_options
from vim_embed_client.cli.written_files import OutputPath, WritingCommand
from vim_embed_client.errors import InputError, VimEmbedError
from vim_embed_client.explain.local import Explanation, explain_images


def _arrays(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    if value is not None:
        refuse_foreign(value, holds_attention, "vim-embed explain", "--arrays")
    return value


def _block(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    if value == "mean":
        return None
    try:
        return int(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither mean nor a number") from None


@click.command(cls=WritingCommand)
@click.argument("paths", nargs=-1, metavar="SOURCES...")
@click.option(
    "--model", default="vim-tiny", show_default=True, metavar="NAME[=PATH]",
    help="A Vim, as of `vim-embed-server serve`.",
)  # fmt: skip
@click.option(
    "-o", "--output", metavar="FILE", callback=sheet_path,
    type=OutputPath(dir_okay=False, left_out_of="paths"), help="Sheet to draw: .png, .pdf or .svg.",
)  # fmt: skip
@click.option(
    "--arrays", metavar="FILE.npz", callback=_arrays,
    type=OutputPath(dir_okay=False, left_out_of="paths"),
    help="Write attention and norms (images, blocks, tokens) there.",
)  # fmt: skip
@click.option("--sample", is_flag=True, help="Sources of the packaged Hubble picture.")
@click.option(
    "--rows", default=6, show_default=True, type=click.IntRange(1, 1000),
    help="Images at most, evenly chosen.",
)  # fmt: skip
@click.option(
    "--block", default="mean", show_default=True, metavar="N|mean", callback=_block,
    help="Block to draw, from 0; -1 is the last; mean: over all.",
)  # fmt: skip
@click.option(
    "--patch", metavar="ROW,COLUMN", callback=numbers(int, "3,7", count=2),
    help="Patch whose attention it is.  [default: the class token]",
)  # fmt: skip
@reading_options
@json_option
def explain(
    paths: tuple[str, ...],
    model: str,
    output: Path | None,
    arrays: Path | None,
    sample: bool,
    rows: int,
    block: int | None,
    patch: tuple[int, int] | None,
    read_options: ReadOptions,
    as_json: bool,
) -> None:
    """Draw where a Vim looks: hidden attention and token norms.

    SOURCES are what `vim-embed embed` reads. The model runs in this process, in float32, by the
    settings of the service (VIM_EMBED_DEVICE, VIM_EMBED_RANDOM_WEIGHTS), and needs the `service`
    extra.
    """
    if sample == bool(paths):
        raise click.UsageError("give SOURCES, or --sample")
    if output is None and arrays is None:
        raise click.UsageError("give -o FILE for a sheet, or --arrays FILE.npz, or both")
    if patch is not None and min(patch) < 0:
        raise click.UsageError(f"--patch {patch[0]},{patch[1]}: rows and columns count from 0")
    outputs = [path for path in (output, arrays) if path is not None]
    find_sources(paths, options=read_options, leave_out=outputs)  # before a model is loaded
    try:
        found = explain_images(
            paths, read_options, model=model, patch=patch, rows=rows, leave_out=outputs
        )
    except VimEmbedError:
        raise
    except (ValueError, RuntimeError) as error:  # the service package's own
        raise InputError(str(error)) from error
    _check_block(block, found)
    if output is not None:
        from vim_embed_client.explain.figure import attention_sheet
        from vim_embed_client.figures.style import save

        save(attention_sheet(found, block), output)
    if arrays is not None:
        write_durably(arrays, lambda file: np.savez(file, **found.as_arrays()))
    written = [str(path) for path in outputs]
    if as_json:
        print_json({"written": written, "model": found.model, "weights_digest": found.weights,
                    "random_weights": found.random_weights, "token": found.token,
                    "images": len(found.ids), "blocks": found.attention.shape[1]})  # fmt: skip
        return
    console = console_of_results()
    if found.random_weights:
        console.print(RANDOM_WEIGHTS)
    say(console, f"Written: {escape(' and '.join(written))}")


def _check_block(block: int | None, found: Explanation) -> None:
    blocks = found.attention.shape[1]
    if block is not None and not -blocks <= block < blocks:
        raise InputError(f"--block {block}: {found.model} has blocks 0 to {blocks - 1}")
