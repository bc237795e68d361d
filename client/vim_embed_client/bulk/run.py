"""One bulk run: from sources to one file, going on where an earlier attempt stopped."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from vim_embed_client.bulk.checkpoint import Checkpoint, PartFolder
from vim_embed_client.bulk.distinct import DistinctIds, may_repeat, repeats
from vim_embed_client.bulk.identical import identical_rows
from vim_embed_client.bulk.outputs import Contents, check_holds, write_output
from vim_embed_client.bulk.pipeline import Cursor, RowResult, embedded_in_order, read_from
from vim_embed_client.bulk.reasons import LeftOut, Reasons, first_reason
from vim_embed_client.bulk.replaced import check_replaced
from vim_embed_client.bulk.resume import check_inputs, check_model, check_options
from vim_embed_client.bulk.row_counts import Totals
from vim_embed_client.bulk.row_shape import RowShape, flat_rows
from vim_embed_client.bulk.sender import BatchSender, HttpService
from vim_embed_client.bulk.sources.apart import open_reader_apart
from vim_embed_client.bulk.sources.reader import Entry, Item, Skipped
from vim_embed_client.bulk.sources.registry import ReadOptions, open_reader
from vim_embed_client.bulk.waiting import Waiting
from vim_embed_client.client import Client, ready_model
from vim_embed_client.errors import ConfigurationError, InputError, OutputError, ResumeError
from vim_embed_client.pixels import PixelValueWarning
from vim_embed_client.results import Provenance

# Of an answer: several of them are under way or wait for their turn at once.
_ANSWER_BYTES = 8 << 20

_Entries = Iterator[tuple[Cursor, Entry]]
OnError = Literal["fail", "skip"]
# Called with rows done, rows of an earlier attempt among them, and all rows where known.
OnProgress = Callable[[int, int, int | None], None]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A finished run. resumed: rows that an earlier attempt had embedded.

    shape: of a row. left_out: what became no row. first_skipped, first_passed_over: of what was
    skipped, and of what was asked for and passed over, the first thousand. notes: remarks on rows,
    grouped. identical: rows whose input was that of another row
    (see identical.py).
    """

    rows: int
    shape: RowShape
    resumed: int
    left_out: LeftOut
    first_skipped: list[dict[str, str]]
    first_passed_over: list[dict[str, str]]
    notes: Reasons
    identical: dict[str, Any]
    provenance: Provenance

    @property
    def dim(self) -> int:
        """Numbers in an embedding: of the last layer, or of a token."""
        return self.shape[-1].shape[-1]


class BulkRun:
    """Embeds every row of `sources`, in their order, into `output`.

    batch_rows: rows per request. in_flight: requests under way at once. on_error: `skip` leaves
    out what cannot be read or embedded, `fail` raises InputError naming it. part_rows: after so
    many they are made safe on disk. restart: throw away what an earlier attempt finished.
    overwrite: replace a finished output whose rows this run does not make again. on_note: called
    with what a user should know at the start. waiting: is told for what the run waits. found: what
    was left out where the sources were looked for. mode: in the names of the columns of layers, see
    Contents. options: as of Client.embed, but wire; layers: a granularity.
    kept: after a failed `run`, the rows that the next attempt need not embed again.
    """

    def __init__(
        self,
        client: Client,
        sources: Sequence[str],
        output: Path,
        *,
        read_options: ReadOptions | None = None,
        batch_rows: int = 64,
        in_flight: int = 4,
        on_error: OnError = "fail",
        part_rows: int = 4096,
        restart: bool = False,
        overwrite: bool = False,
        found: LeftOut | None = None,
        on_progress: OnProgress | None = None,
        on_note: Callable[[str], None] = lambda text: None,
        waiting: Waiting | None = None,
        mode: str = "",
        **options: Any,
    ) -> None:
        self._client, self._sources, self._output = client, sources, output
        self._batch_rows, self._in_flight = batch_rows, in_flight
        self._skip = on_error == "skip"
        self._part_rows, self._restart, self._on_progress = part_rows, restart, on_progress
        self._overwrite, self._on_note = overwrite, on_note
        self._waiting = waiting or Waiting()
        self._found, self._options, self._mode = found or LeftOut(), options, mode
        self._read_options = read_options or ReadOptions()
        self.kept = 0

    def run(self) -> Summary:
        """Embed what is not done yet, then write the output.

        Raises InputError for a bad row, ResumeError where an earlier attempt does not fit,
        OutputError where nothing can be written, and VimEmbedError for faults of the service; what
        is finished by then is kept for the next attempt, also at KeyboardInterrupt.
        """
        with writing(self._output):
            checkpoint = Checkpoint(
                self._output, self._identity(), restart=self._restart, part_rows=self._part_rows
            )
        try:
            resumed = checkpoint.rows
            self._embed(checkpoint)
            with writing(self._output):
                summary = self._finished(checkpoint, resumed) if checkpoint.rows else None
        except ResumeError:
            checkpoint.close()
            raise
        except BaseException:
            with suppress(OSError):  # the disk may be full, and what is on it is safe
                checkpoint.commit()
            checkpoint.close()
            self.kept = checkpoint.rows
            raise
        left_out = left_out_of(checkpoint, self._found)
        checkpoint.close(remove=True)
        if summary is None:
            raise InputError(f"none of the files could be embedded{first_reason(left_out)}")
        return summary

    def _finished(self, checkpoint: Checkpoint, resumed: int) -> Summary:
        return finished(
            self._output,
            checkpoint,
            self._found,
            resumed,
            options=self._identity(),
            mode=self._mode,
        )

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a run to go on."""
        return self._options | self._read_options.identity()

    def _check_normalisation(self, channels: int) -> None:
        for flag in ("mean", "std"):
            values = self._options.get(flag)
            if values is not None and len(values) != channels:
                raise ConfigurationError(
                    f"the model takes {channels} bands, and --{flag} has {len(values)} numbers"
                )

    def _embed(self, checkpoint: Checkpoint) -> None:
        self._waiting.stage("the service's model to be ready")
        entry = ready_model(self._client, self._options.get("model"))
        self._waiting.stage("the inputs to be read")
        replaces = check_replaced(
            self._output, self._sources, self._identity(), entry, overwrite=self._overwrite
        )
        if replaces:
            self._on_note(replaces)
        channels = entry.get("channels") or 3
        read_options = self._read_options.for_channels(channels)
        self._check_normalisation(channels)
        open_reader_of = partial(open_reader, options=read_options)
        sender = BatchSender(
            HttpService(self._client, self._options),
            entry["preprocessing"],
            resize=read_options.resize,
            channels=channels,
            normalisation=[name for name in ("mean", "std") if self._options.get(name)],
            waiting=self._waiting,
        )
        check_inputs(checkpoint, self._sources, open_reader_of)
        check_model(checkpoint, entry)
        check_options(
            checkpoint,
            list(self._read_options.identity()),
            self._sources,
            open_reader_of,
            sender,
        )
        batch_rows = self._rows_of_a_request(checkpoint, sender)
        totals = Totals(self._sources, open_reader_of)
        done = resumed = checkpoint.entries
        totals.advance(checkpoint.cursor, done)
        self._tell(done, resumed, totals)
        entries = read_from(
            self._sources, partial(open_reader_apart, options=read_options), checkpoint.cursor
        )
        with _notes_for_warnings(), _ending(entries):
            for results, origins in embedded_in_order(
                sender,
                self._distinct(checkpoint, entries),
                batch_rows=batch_rows,
                in_flight=self._in_flight,
                first_shape=checkpoint.shape,
            ):
                for origin in origins:
                    checkpoint.check(origin)
                for one in results:
                    self._take(checkpoint, one, totals)
                done += len(results)
                totals.advance(results[-1].cursor, done)
                self._tell(done, resumed, totals)
        self._waiting.stage("the output to be written")
        with writing(self._output):
            checkpoint.commit()

    def _distinct(self, checkpoint: Checkpoint, entries: _Entries) -> _Entries:
        """The entries, of which those whose id an earlier one had are faults."""
        if not may_repeat(self._sources, self._read_options):
            yield from entries
            return
        done = (row_id for content in checkpoint.contents() for row_id in content.ids)
        ids = DistinctIds(done)
        for cursor, entry in entries:
            yield cursor, (isinstance(entry, Item) and ids.repeated(entry.id)) or entry

    def _rows_of_a_request(self, checkpoint: Checkpoint, sender: BatchSender) -> int:
        """`batch_rows`, or fewer where the answer to so many would be large.

        Raises ConfigurationError where the output cannot hold such rows.
        """
        if not self._options.get("layers") and self._options.get("pooling") != "tokens":
            return self._batch_rows
        row, origin = flat_rows(sender.probe())
        check_holds(self._output, origin.shape, self._mode, self._read_options.keep)
        return max(1, min(self._batch_rows, _ANSWER_BYTES // row.nbytes))

    def _take(self, checkpoint: Checkpoint, result: RowResult, totals: Totals) -> None:
        if not self._skip:
            at_start = not checkpoint.taken and result.cursor.row == 0
            alone = len(self._sources) == 1 and (at_start or totals.rows() == 1)
            raise_fault(result, alone=alone)
        with writing(self._output):
            checkpoint.add(result)

    def _tell(self, done: int, resumed: int, totals: Totals) -> None:
        if self._on_progress:
            self._on_progress(done, resumed, totals.rows())


def raise_fault(result: RowResult, *, alone: bool = False) -> None:
    """Raise InputError, naming the row, for one that is at fault.

    alone: there would be no others without it.
    """
    if isinstance(result.row, Skipped) and result.row.fault:
        hint = "" if alone else " (--on-error skip goes on without such rows)"
        raise InputError(f"{result.row.id}: {result.row.reason}{hint}")


def left_out_of(parts: PartFolder, found: LeftOut) -> LeftOut:
    """What became no row: in finished parts, and where the sources were looked for."""
    left_out = LeftOut()
    left_out.add_all(found)
    for one in parts.all_skipped():
        left_out.add(one)
    return left_out


def finished(
    output: Path,
    parts: PartFolder,
    found: LeftOut,
    resumed: int,
    *,
    options: Mapping[str, Any],
    mode: str = "",
) -> Summary:
    """Join finished parts, of one row at least, into the output. Raises OSError.

    options: with which rows were read and embedded, for the metadata. mode: see Contents.
    """
    assert parts.provenance is not None
    assert parts.shape is not None
    left_out, notes = left_out_of(parts, found), Reasons()
    for content in parts.contents():
        notes.merge(content.notes)
    if options.get("id_column") or options.get("id_header"):
        notes.merge(repeats(parts.contents).as_json())
    identical = identical_rows(parts.contents)
    _, first = next(parts.blocks())
    dtype = next(iter(first.values())).dtype
    del first
    contents = Contents(
        rows=parts.rows,
        shape=parts.shape,
        dtype=dtype,
        provenance=parts.provenance,
        blocks=parts.blocks,
        array=parts.array,
        mode=mode,
        columns=parts.columns,
        skipped=parts.all_skipped,
        options=options,
        about={
            "summary": {
                "rows": parts.rows,
                "skipped": left_out.skipped.count,
                "skipped_reasons": left_out.skipped.as_json(),
                "passed_over": left_out.passed_over.count,
                "passed_over_reasons": left_out.passed_over.as_json(),
                "notes": notes.as_json(),
                "identical": identical,
            }
        },
    )
    write_output(output, contents, scratch=parts.folder)
    return Summary(
        rows=parts.rows,
        shape=parts.shape,
        resumed=resumed,
        left_out=left_out,
        first_skipped=contents.first_skipped(),
        first_passed_over=contents.first_left_out[1],
        notes=notes,
        identical=identical,
        provenance=parts.provenance,
    )


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """Raise OutputError for an OSError within."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"{output} cannot be written ({reason}): free space there, or choose another folder"
        ) from error


@contextmanager
def _ending(entries: Generator[object]) -> Iterator[None]:
    """End the reading afterwards, and its files and processes, also where an error ends the run."""
    try:
        yield
    finally:
        with suppress(ValueError):  # a thread that has not ended yet is in the midst of it
            entries.close()


@contextmanager
def _notes_for_warnings() -> Iterator[None]:
    """Values that do not look normalised are noted row by row, and told in the summary."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PixelValueWarning)
        yield
