"""Bulk embedding on a Ray cluster, for data that the nodes themselves can read.

    python -m vim_embed.cluster.bulk survey/*.parquet -o embeddings.parquet --model vim-tiny

Ray Data hands parts of the data to a pool of engines, which read, embed and write them where they
are; pixels never cross the network. Paths must lead to the same files on every node.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np
import ray.data
from numpy.typing import NDArray
from ray.exceptions import RayError

from vim_embed.batching.request import EmbedRequest
from vim_embed.cluster.bulk_output import Done, Manifest, Skipped, write_part
from vim_embed.cluster.bulk_sources import Part, Reading, SourceError, cut, find_sources, read
from vim_embed.cluster.replica import MakeEngines, share_cores
from vim_embed.cluster.settings import ClusterSettings
from vim_embed.errors import (
    InternalError,
    InvalidInput,
    MalformedRequest,
    PayloadTooLarge,
    UnsupportedMediaType,
)
from vim_embed.http.formats.answers import provenance
from vim_embed.http.formats.images import decode_image
from vim_embed.serving.service import build_service
from vim_embed.settings import Settings
from vim_embed.types.model_info import EMBEDDING, EmbedOptions
from vim_embed.types.pixels import PixelArray, PixelError, check_options, check_pixels

OnError = Literal["fail", "skip"]
_AT_ONCE = 2  # parts of one engine: one is read and written while the other is computed
_BLOCKS = 10_000
_NO_BOUND = 2**62  # the queue holds the parts at once, and no others
# What may be the fault of a single row; the rest ends the run, which can go on later.
_ROW_ERRORS = (
    InternalError,
    InvalidInput,
    MalformedRequest,
    PayloadTooLarge,
    PixelError,
    UnsupportedMediaType,
)


class RowError(ValueError):
    """A row that cannot be embedded; the message names it."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What each engine of a run needs to know."""

    settings: Settings
    options: EmbedOptions
    reading: Reading = field(default_factory=Reading)
    on_error: OnError = "fail"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """rows: in the output. resumed: of these, rows that an earlier run had finished."""

    rows: int
    skipped: int
    resumed: int


def embed_sources(
    sources: Sequence[str],
    output: Path,
    job: Job,
    cluster: ClusterSettings,
    *,
    part_rows: int = 4096,
    restart: bool = False,
    make_engines: MakeEngines | None = None,
    on_progress: Callable[[int], None] = lambda rows: None,
) -> Summary:
    """Embed every row of the sources on the cluster that Ray is connected to.

    output: a `.parquet` file, or a folder that keeps the parts. part_rows: rows of a part, which
    is what is lost at worst. on_progress: called with the rows that are finished.
    Raises SourceError, ResumeError, RowError, or ValueError for options that cannot work.
    """
    check_options(job.options)
    if job.options.layers is not None:
        raise ValueError("layers are several arrays a row: bulk runs give the embedding alone")
    parts = cut(find_sources(sources), part_rows, job.reading)
    if not parts:
        raise SourceError("the sources hold no rows")
    manifest = Manifest(output.absolute(), _identity(parts, job, part_rows), restart=restart)
    resumed = sum(done.rows for done in manifest.done.values())
    left = [part for part in parts if part.number not in manifest.done]
    for done in _run(left, manifest.folder, job, cluster, make_engines):
        manifest.add(done)
        on_progress(sum(one.rows for one in manifest.done.values()))
    every = list(manifest.done.values())
    manifest.finish(len(parts))
    return Summary(
        rows=sum(done.rows for done in every),
        skipped=sum(len(done.skipped) for done in every),
        resumed=resumed,
    )


def _run(
    parts: list[Part],
    folder: Path,
    job: Job,
    cluster: ClusterSettings,
    make_engines: MakeEngines | None,
) -> Iterator[Done]:
    """Finished parts, in whatever order."""
    if not parts:
        return
    items = [{"part": json.dumps(asdict(part))} for part in parts]
    pool = ray.data.ActorPoolStrategy(
        min_size=min(cluster.min_replicas, len(parts)),
        max_size=min(cluster.max_replicas, len(parts)),
    )
    data = ray.data.from_items(items, override_num_blocks=min(len(items), _BLOCKS)).map_batches(
        Embedder,
        fn_constructor_args=(job, cluster.gpus, str(folder), make_engines),
        batch_size=1,
        compute=pool,
        num_cpus=cluster.cpus,
        num_gpus=cluster.gpus,
        max_concurrency=_AT_ONCE,
    )
    for row in data.iter_rows():
        told = json.loads(row["told"])
        if "problem" in told:
            raise RowError(told["problem"])
        yield Done(**told)


def _identity(parts: Sequence[Part], job: Job, part_rows: int) -> dict[str, Any]:
    """What must be the same for finished parts to be of use."""
    files = sorted({path for part in parts for path in part.paths})
    stats = [(path, os.stat(path)) for path in files]
    listed = json.dumps([[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats])
    return {
        "part_rows": part_rows,
        "files": hashlib.sha256(listed.encode()).hexdigest(),
        "models": list(job.settings.models),
        "dtype": job.settings.dtype,
        "options": asdict(job.options),
        "reading": asdict(job.reading),
        "on_error": job.on_error,
    }


class Embedder:
    """One engine of the pool; Ray Data calls it with parts, several at a time."""

    def __init__(
        self, job: Job, gpus: float, folder: str, make_engines: MakeEngines | None
    ) -> None:
        share_cores()
        if make_engines is None:
            from vim_embed.engines.build import build_engines

            make_engines = build_engines
        changes: dict[str, Any] = {"queue_rows": _NO_BOUND, "queue_bytes": _NO_BOUND}
        if not gpus:
            changes["device"] = "cpu"
        settings = job.settings.model_copy(update=changes)
        self._job = job
        self._folder = Path(folder)
        self._service = build_service(settings, make_engines(settings))
        self._service.start()
        self._service.wait_loaded()
        self._info = self._service.ready_model(None)
        self._decoders = ThreadPoolExecutor(max(1, os.cpu_count() or 1))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """{"part": [json]} to {"told": [json]}: of what was written to disk, or of a row at fault
        (as a value, since Ray wraps what is raised beyond recognition).
        """
        told = [self._told(json.loads(text)) for text in batch["part"]]
        return {"told": np.array([json.dumps(one) for one in told], dtype=object)}

    def _told(self, part: dict[str, Any]) -> dict[str, Any]:
        try:
            return asdict(self._one(part))
        except (RowError, SourceError) as error:
            return {"problem": str(error)}

    def _one(self, part: dict[str, Any]) -> Done:
        which = Part(**{**part, "paths": tuple(part["paths"])})
        rows = read(which, self._job.reading)
        skipped: list[Skipped] = []
        kept = self._embed(rows.ids, rows.images, skipped)
        ids = [row_id for row_id, _ in kept]
        found = np.stack([row for _, row in kept]) if kept else self._none()
        asked = {**asdict(self._job.options), **asdict(self._job.reading)}
        return write_part(
            self._folder, which.number, ids, found, self._provenance(), skipped, asked
        )

    def _embed(
        self, ids: list[str], images: PixelArray | list[bytes], skipped: list[Skipped]
    ) -> list[tuple[str, NDArray[np.float32]]]:
        """Rows with their ids; where they are refused, halves until those at fault are found."""
        try:
            return list(zip(ids, self._answer(images), strict=True))
        except _ROW_ERRORS as error:
            if len(ids) == 1:
                if self._job.on_error == "fail":
                    raise RowError(f"{ids[0]}: {error}") from error
                skipped.append(Skipped(ids[0], str(error)))
                return []
        half = len(ids) // 2
        left = self._embed(ids[:half], images[:half], skipped)
        return left + self._embed(ids[half:], images[half:], skipped)

    def _answer(self, images: PixelArray | list[bytes]) -> NDArray[np.float32]:
        pixels = self._decoded(images) if isinstance(images, list) else images
        checked = check_pixels(pixels, self._info, max_size=self._job.settings.max_image_size)
        queued = EmbedRequest(self._info.name, checked, self._job.options)
        return self._service.queue.submit(queued).future.result().outputs[EMBEDDING]

    def _decoded(self, images: list[bytes]) -> PixelArray:
        spec, limit = self._info.preprocessing, self._job.settings.max_image_pixels
        decode = self._decoders.map(lambda data: decode_image(data, spec, max_pixels=limit), images)
        return np.stack(list(decode))

    def _provenance(self) -> dict[str, Any]:
        """As the client has it: with flags, not texts."""
        texts = provenance(self._info, self._job.options)
        flags = {name: texts[name] == "true" for name in ("exact", "random_weights")}
        return {**texts, **flags}

    def _none(self) -> NDArray[np.float32]:
        return np.zeros((0, self._info.dim), np.float32)


@click.command()
@click.argument("sources", nargs=-1, required=True)
@click.option("-o", "--output", required=True, type=Path, help="FILE.parquet, or a folder of parts")
@click.option("--model", help="as of `vim-embed-server serve`; else the first of VIM_EMBED_MODELS")
@click.option("--pooling", default="mean", show_default=True)
@click.option("--column", help="of images in tables")
@click.option("--id-column", help="of ids in tables")
@click.option("--shape", help="of images that are flat lists in tables, such as 3,224,224")
@click.option("--part-rows", default=4096, show_default=True, help="rows that are written at once")
@click.option("--on-error", type=click.Choice(["fail", "skip"]), default="fail", show_default=True)
@click.option("--restart", is_flag=True, help="throw finished parts away and begin anew")
def main(
    sources: tuple[str, ...],
    output: Path,
    model: str | None,
    pooling: str,
    column: str | None,
    id_column: str | None,
    shape: str | None,
    part_rows: int,
    on_error: OnError,
    restart: bool,
) -> None:
    """Embed .npy arrays, Parquet tables and images on the cluster of RAY_ADDRESS, or here.

    Settings are those of the service and VIM_EMBED_RAY_*, of which min_replicas and max_replicas
    bound the pool of engines. Started again, it goes on where it was.
    """
    try:
        settings = Settings()
        settings = settings.model_copy(update={"models": (model or settings.models[0],)})
        side = tuple(int(number) for number in shape.split(",")) if shape else None
        job = Job(
            settings=settings,
            options=EmbedOptions(pooling=pooling, exact=settings.exact),
            reading=Reading(column, id_column, side),
            on_error=on_error,
        )
        summary = embed_sources(
            sources,
            output,
            job,
            ClusterSettings(),
            part_rows=part_rows,
            restart=restart,
            on_progress=lambda rows: click.echo(f"{rows} rows", err=True),
        )
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    except RayError as error:  # an engine that could not be made: the last line says why
        raise click.ClickException(str(error).strip().splitlines()[-1]) from error
    click.echo(
        f"{output}: {summary.rows} rows, {summary.resumed} of an earlier run, "
        f"{summary.skipped} left out"
    )


if __name__ == "__main__":
    main()
