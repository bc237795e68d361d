"""Bulk embedding on a Ray cluster, for data that the nodes themselves can read.

    python -m vim_embed.cluster.bulk survey/*.parquet -o embeddings.parquet --model vim-tiny

Ray Data hands parts of the data to a pool of engines, which read, embed and write them where they
are; pixels never cross the network. Paths must lead to the same files on every node. Reading, row
faults, parts and the output are the client's own (vim_embed_client.bulk).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np
import ray.data
from ray.exceptions import RayError

from vim_embed.cluster.bulk_engine import EngineService
from vim_embed.cluster.bulk_plan import (
    PlannedPart,
    Span,
    digest,
    entries_of,
    plan,
    without_rest,
)
from vim_embed.cluster.replica import MakeEngines
from vim_embed.cluster.settings import ClusterSettings
from vim_embed.serving.process_tuning import spin_briefly, tune_memory
from vim_embed.settings import Settings
from vim_embed.types.model_info import EmbedOptions
from vim_embed.types.pixels import check_options
from vim_embed_client.bulk.checkpoint import PartFolder
from vim_embed_client.bulk.output_checks import check_output
from vim_embed_client.bulk.outputs import check_holds
from vim_embed_client.bulk.part_files import Part, write_part
from vim_embed_client.bulk.pipeline import Cursor, RowResult, alike, embedded_in_order
from vim_embed_client.bulk.reasons import LeftOut, first_reason
from vim_embed_client.bulk.replaced import check_replaced
from vim_embed_client.bulk.row_shape import Origin, RowShape, of_json
from vim_embed_client.bulk.run import (
    Summary,
    finished,
    left_out_of,
    raise_fault,
    writing,
)
from vim_embed_client.bulk.sender import BatchSender
from vim_embed_client.bulk.sources.registry import ReadOptions, find_sources, without_effect
from vim_embed_client.cli.common import SOME_LEFT_OUT
from vim_embed_client.cli.embed import check_combination, mode_of, per_band
from vim_embed_client.cli.reading_options import reading_options
from vim_embed_client.cli.written_files import OutputPath, WritingCommand
from vim_embed_client.errors import InputError, VimEmbedError
from vim_embed_client.options import GRANULARITIES, POOLINGS
from vim_embed_client.results import Provenance

OnError = Literal["fail", "skip"]
_AT_ONCE = 2  # parts of one engine: one is read and written while the other is computed
_BATCH_ROWS, _IN_FLIGHT = 64, 4
_BLOCKS = 10_000
_PART_OF_WIDE_ROWS = 256  # of all tokens of vim-base 155 MB, which an engine holds


@dataclass(frozen=True, kw_only=True)
class Job:
    """What each engine of a run needs to know.

    mode: in the names of layers, see Contents. dtype: of the output, float32 or float16.
    """

    settings: Settings
    options: EmbedOptions
    read_options: ReadOptions = field(default_factory=ReadOptions)
    on_error: OnError = "fail"
    mode: str = ""
    dtype: str = "float32"


def embed_sources(
    paths: Sequence[str],
    output: Path,
    job: Job,
    cluster: ClusterSettings,
    *,
    part_rows: int = 4096,
    restart: bool = False,
    overwrite: bool = False,
    make_engines: MakeEngines | None = None,
    on_progress: Callable[[int], None] = lambda rows: None,
) -> Summary:
    """Embed every row of the sources on the cluster that Ray is connected to.

    output: a file as of `vim-embed embed`. part_rows: rows of a part, which is what is lost at
    worst; of layers or tokens at most _PART_OF_WIDE_ROWS. overwrite: as of `BulkRun`. on_progress:
    called with the rows that are finished.
    Raises InputError for a bad row or source, ResumeError for finished parts of another run,
    OutputError, and ValueError for options that cannot work.
    """
    check_options(job.options)
    check_output(output)
    found = LeftOut()
    sources = find_sources(paths, options=job.read_options, leave_out=[output], pass_over=found.add)
    if found.skipped.count and job.on_error == "fail":
        raise InputError(f"nothing was embedded{first_reason(found)}")
    if idle := without_effect(sources, job.read_options):
        raise ValueError(f"{', '.join(idle)} would have no effect on any of these sources")
    if said := check_replaced(output, sources, _options(job), None, overwrite=overwrite):
        click.echo(said, err=True)
    if job.options.layers is not None or job.options.pooling == "tokens":
        part_rows = min(part_rows, _PART_OF_WIDE_ROWS)
    planned = plan(sources, part_rows, job.read_options)
    with writing(output):
        parts = PartFolder(output.absolute(), _identity(sources, job, part_rows), restart=restart)
    try:
        summary = _embed(parts, planned, output, job, cluster, make_engines, found, on_progress)
    except BaseException:
        parts.close()
        raise
    left_out = left_out_of(parts, found)
    parts.close(remove=True)
    if summary is None:
        raise InputError(f"none of the files could be embedded{first_reason(left_out)}")
    return summary


def _embed(
    parts: PartFolder,
    planned: list[PlannedPart],
    output: Path,
    job: Job,
    cluster: ClusterSettings,
    make_engines: MakeEngines | None,
    found: LeftOut,
    on_progress: Callable[[int], None],
) -> Summary | None:
    """Make the parts that are not there yet, and join them; None where no row is left."""
    if changed := parts.changed_options():
        raise parts.refuse_options(changed)
    parts.drop_damaged()
    resumed = parts.rows
    left = [part for part in planned if part.number not in parts.parts]
    for part, origin in _run(left, parts.folder, job, cluster, make_engines):
        if origin is not None:
            _check_shape(parts.shape, origin.shape)
            check_holds(output, origin.shape)
            parts.check(origin)
        with writing(output):
            parts.append(part)
        on_progress(parts.rows)
    parts.parts = without_rest(planned, parts.parts)
    with writing(output):
        if not parts.rows:
            return None
        return finished(output, parts, found, resumed, options=_options(job), mode=job.mode)


def _check_shape(first: RowShape | None, found: RowShape) -> None:
    """Refuse images of several sizes, whose tokens are as many as they have patches."""
    if first is not None and not alike(found, first):
        raise InputError(
            f"some images have {found[0].shape[0]} tokens and others {first[0].shape[0]}: one file "
            "takes images of one size (--resize brings uint8 arrays to the model's)"
        )


def _run(
    parts: list[PlannedPart],
    folder: Path,
    job: Job,
    cluster: ClusterSettings,
    make_engines: MakeEngines | None,
) -> Iterator[tuple[Part, Origin | None]]:
    """Finished parts, in whatever order."""
    if not parts:
        return
    items = [{"part": json.dumps(asdict(part))} for part in parts]
    pool = ray.data.ActorPoolStrategy(
        min_size=min(cluster.min_replicas, len(parts)),
        max_size=min(cluster.max_replicas, len(parts)),
    )
    data = ray.data.from_items(items, override_num_blocks=min(len(items), _BLOCKS)).map_batches(
        PartEmbedder,
        fn_constructor_args=(job, cluster.gpus, str(folder), make_engines),
        batch_size=1,
        compute=pool,
        num_cpus=cluster.cpus,
        num_gpus=cluster.gpus,
        max_concurrency=_AT_ONCE,
    )
    for row in data.iter_rows():
        report = json.loads(row["report"])
        if "problem" in report:
            raise InputError(report["problem"])
        part, origin = report["part"], report["origin"]
        yield (
            Part(**part | {"cursor": Cursor(**part["cursor"])}),
            Origin(Provenance(**origin["provenance"]), of_json(origin["shape"]))
            if origin
            else None,
        )


def _options(job: Job) -> dict[str, Any]:
    """What changes rows, under the names that `vim-embed embed` gives it in the metadata."""
    asked = job.options
    return {
        "model": job.settings.models[0].partition("=")[0],
        "pooling": asked.pooling,
        "layers": asked.layers,
        "dtype": job.dtype,
        "exact": asked.exact,
        "mean": asked.mean,
        "std": asked.std,
        **job.read_options.identity(),
    }


def _identity(sources: Sequence[str], job: Job, part_rows: int) -> dict[str, Any]:
    """What must be the same for finished parts to be of use."""
    return {
        "part_rows": part_rows,
        "files": digest(sources, job.read_options),
        "weights": list(job.settings.models),
        "computation": job.settings.dtype,
        "on_error": job.on_error,
        **_options(job),
    }


class PartEmbedder:
    """One engine of the pool; Ray Data calls it with parts, several at a time."""

    def __init__(
        self, job: Job, gpus: float, folder: str, make_engines: MakeEngines | None
    ) -> None:
        spin_briefly()
        if make_engines is None:
            from vim_embed.engines.build import build_engines

            make_engines = build_engines
        changes: dict[str, Any] = {} if gpus else {"device": "cpu"}
        settings = job.settings.model_copy(update=changes)
        tune_memory(settings.device)
        service = EngineService(settings, job.options, make_engines, dtype=job.dtype)
        self._job, self._folder = job, Path(folder)
        self._read_options = job.read_options.for_channels(service.channels)
        self._sender = BatchSender(
            service,
            service.spec,
            resize=job.read_options.resize,
            channels=service.channels,
            normalisation=[
                name for name in ("mean", "std") if getattr(job.options, name) is not None
            ],
        )

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """{"part": [json]} to {"report": [json]}: of what was written to disk, or of a row at fault
        (as a value, since Ray wraps what is raised beyond recognition).
        """
        reports = [self._report(json.loads(text)) for text in batch["part"]]
        return {"report": np.array([json.dumps(one) for one in reports], dtype=object)}

    def _report(self, part: dict[str, Any]) -> dict[str, Any]:
        spans = tuple(Span(**span) for span in part["spans"])
        try:
            return self._embed(PlannedPart(part["number"], spans))
        except VimEmbedError as error:
            return {"problem": error.message}

    def _embed(self, part: PlannedPart) -> dict[str, Any]:
        results: list[RowResult] = []
        origins: list[Origin] = []
        for some, told in embedded_in_order(
            self._sender,
            entries_of(part, self._read_options),
            batch_rows=_BATCH_ROWS,
            in_flight=_IN_FLIGHT,
        ):
            if self._job.on_error == "fail":
                for one in some:
                    raise_fault(one)
            results += some
            origins = told or origins
        cursor = results[-1].cursor if results else Cursor()
        with writing(self._folder):
            shape = origins[0].shape if origins else None
            written = write_part(self._folder, part.number, results, cursor, shape)
        return {
            "part": asdict(written),
            "origin": asdict(origins[0]) if origins else None,
        }


@click.command(cls=WritingCommand)
@click.argument("paths", metavar="SOURCES...", nargs=-1, required=True)
@click.option(
    "-o", "--output", required=True, type=OutputPath(left_out_of="paths"), metavar="FILE",
    help="FILE.parquet, .npy, .npz or .safetensors, as of `vim-embed embed`.",
)  # fmt: skip
@click.option("--model", help="As of `vim-embed-server serve`; else the first of VIM_EMBED_MODELS.")
@click.option("--pooling", default="mean", show_default=True, type=click.Choice(POOLINGS))
@click.option(
    "--layers", type=click.Choice(GRANULARITIES), help="As of `vim-embed embed`, and so is --mode."
)
@click.option("--mode", metavar="NAME")
@click.option("--dtype", type=click.Choice(["float32", "float16"]), default="float32")
@click.option("--mean", callback=per_band, metavar="R,G,B", help="In place of the model's.")
@click.option("--std", callback=per_band, metavar="R,G,B", help="In place of the model's.")
@reading_options
@click.option("--part-rows", default=4096, show_default=True, help="Rows that are written at once.")
@click.option("--on-error", type=click.Choice(["fail", "skip"]), default="fail", show_default=True)
@click.option("--restart", is_flag=True, help="Throw finished parts away and begin anew.")
@click.option(
    "--overwrite", is_flag=True, help="Replace a finished FILE whose rows this run does not make."
)
def main(
    paths: tuple[str, ...],
    output: Path,
    model: str | None,
    pooling: str,
    layers: str | None,
    mode: str | None,
    dtype: str,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    read_options: ReadOptions,
    part_rows: int,
    on_error: OnError,
    restart: bool,
    overwrite: bool,
) -> None:
    """Embed whatever `vim-embed embed` reads on the cluster of RAY_ADDRESS, or here.

    Settings are those of the service and VIM_EMBED_RAY_*, of which min_replicas and max_replicas
    bound the pool of engines. Started again, it goes on where it was. The exit code is 0 where
    every row was written, 5 where some were skipped.
    """
    check_combination(output, mode, layers, pooling)
    try:
        settings = Settings()
        settings = settings.model_copy(update={"models": (model or settings.models[0],)})
        job = Job(
            settings=settings,
            options=EmbedOptions(
                pooling=pooling, layers=layers, mean=mean, std=std, exact=settings.exact
            ),
            read_options=read_options,
            on_error=on_error,
            mode=mode or mode_of(read_options),
            dtype=dtype,
        )
        summary = embed_sources(
            paths,
            output,
            job,
            ClusterSettings(),
            part_rows=part_rows,
            restart=restart,
            overwrite=overwrite,
            on_progress=lambda rows: click.echo(f"{rows} rows", err=True),
        )
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    except VimEmbedError as error:
        raise click.ClickException(error.message) from error
    except RayError as error:  # an engine that could not be made: the last line says why
        raise click.ClickException(str(error).strip().splitlines()[-1]) from error
    left_out = summary.left_out
    click.echo(
        f"{output}: {summary.rows} rows, {summary.resumed} of an earlier run; "
        f"{left_out.skipped.count} skipped, {left_out.passed_over.count} passed over"
    )
    if left_out.skipped.count:
        sys.exit(SOME_LEFT_OUT)


if __name__ == "__main__":
    main()
