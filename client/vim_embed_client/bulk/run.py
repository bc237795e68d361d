"""One bulk run: from sources to one file, going on where an earlier attempt stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from vim_embed_client.bulk.checkpoint import Checkpoint
from vim_embed_client.bulk.outputs import Contents, write_output
from vim_embed_client.bulk.pipeline import RowResult, digest_of, embedded_in_order, read_from
from vim_embed_client.bulk.row_counts import Totals
from vim_embed_client.bulk.sender import Sender
from vim_embed_client.bulk.sources.reader import Skipped
from vim_embed_client.bulk.sources.registry import ReadOptions, open_reader
from vim_embed_client.client import Client, ready_model
from vim_embed_client.errors import InputError, ResumeError
from vim_embed_client.results import ModelEntry, Provenance

OnError = Literal["fail", "skip"]
# Called with rows done, rows of an earlier attempt among them, and all rows where known.
OnProgress = Callable[[int, int, int | None], None]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A finished run. resumed: rows that an earlier attempt had embedded.

    skipped: how many were left out; first_skipped names the first thousand. other_sizes: (height,
    width) of arrays that this attempt embedded as they are, beside the model's own `image_size`.
    """

    rows: int
    dim: int
    resumed: int
    skipped: int
    first_skipped: list[Skipped]
    provenance: Provenance
    other_sizes: list[tuple[int, int]]
    image_size: int


class BulkRun:
    """Embeds every row of `sources`, in their order, into `output`.

    batch_rows: rows per request. in_flight: requests under way at once. on_error: `skip` leaves
    out what cannot be read or embedded, `fail` raises InputError naming it. part_rows: after so
    many they are made safe on disk. restart: throw away what an earlier attempt finished.
    options: as of Client.embed, but wire. kept: after a failed `run`, the rows that the next
    attempt need not embed again.
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
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> None:
        self._client, self._sources, self._output = client, sources, output
        self._batch_rows, self._in_flight = batch_rows, in_flight
        self._skip = on_error == "skip"
        self._part_rows, self._restart, self._on_progress = part_rows, restart, on_progress
        self._options = options
        self._read_options = read_options or ReadOptions()
        self.kept = 0
        self._open_reader = partial(open_reader, options=self._read_options)

    def run(self) -> Summary:
        """Embed what is not done yet, then write the output.

        Raises InputError for a bad row, ResumeError where an earlier attempt does not fit, and
        VimEmbedError for faults of the service; what is finished by then is kept for the next
        attempt, also at KeyboardInterrupt.
        """
        checkpoint = Checkpoint(
            self._output, self._identity(), restart=self._restart, part_rows=self._part_rows
        )
        try:
            resumed = checkpoint.rows
            sender = self._embed(checkpoint)
            summary = self._write(checkpoint, resumed, sender) if checkpoint.rows else None
        except ResumeError:
            checkpoint.close()
            raise
        except BaseException:
            checkpoint.commit()
            checkpoint.close()
            self.kept = checkpoint.rows
            raise
        reason = next((f": {one.id}: {one.reason}" for one in checkpoint.all_skipped()), "")
        checkpoint.close(remove=True)
        if summary is None:
            raise InputError(f"none of the files could be embedded{reason}")
        return summary

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a run to go on."""
        return self._options | self._read_options.identity()

    def _embed(self, checkpoint: Checkpoint) -> Sender:
        entry = ready_model(self._client, self._options.get("model"))
        self._check(checkpoint, entry)
        send = Sender(
            self._client, entry["preprocessing"], self._options, resize=self._read_options.resize
        )
        totals = Totals(self._sources, self._open_reader)
        done = resumed = checkpoint.rows + checkpoint.skipped
        totals.advance(checkpoint.cursor, done)
        self._tell(done, resumed, totals)
        entries = read_from(self._sources, self._open_reader, checkpoint.cursor)
        for results, provenances in embedded_in_order(
            send, entries, batch_rows=self._batch_rows, in_flight=self._in_flight
        ):
            for provenance in provenances:
                checkpoint.check(provenance)
            for one in results:
                self._take(checkpoint, one)
            done += len(results)
            totals.advance(results[-1].cursor, done)
            self._tell(done, resumed, totals)
        checkpoint.commit()
        return send

    def _take(self, checkpoint: Checkpoint, result: RowResult) -> None:
        if isinstance(result.row, Skipped) and result.row.fault and not self._skip:
            raise InputError(f"{result.row.id}: {result.row.reason}")
        checkpoint.add(result)

    def _tell(self, done: int, resumed: int, totals: Totals) -> None:
        if self._on_progress:
            self._on_progress(done, resumed, totals.rows())

    def _check(self, checkpoint: Checkpoint, entry: ModelEntry) -> None:
        """Raise ResumeError where finished parts and what is there now do not belong together."""
        if not checkpoint.done:
            return
        if (
            digest_of(self._sources, self._open_reader, checkpoint.cursor)
            != checkpoint.cursor.digest
        ):
            raise ResumeError(
                f"the inputs behind the {checkpoint.rows:,} finished rows in {checkpoint.folder} "
                "changed: a file was added before the last one read, removed or written again. "
                "Put them back to go on; --restart throws the finished rows away and begins anew"
            )
        before = checkpoint.provenance
        if before is None:
            return
        now = {
            "model": entry["name"],
            "weights_digest": entry["weights"]["digest"],
            "dtype": entry["dtype"],
        }
        changed = [
            f"{name} was {getattr(before, name)}, now {value}"
            for name, value in now.items()
            if getattr(before, name) != value
        ]
        if changed:
            raise ResumeError(
                f"{checkpoint.folder} holds rows from another model ({'; '.join(changed)}): "
                "serve the former one to go on; --restart throws the finished rows away and begins "
                "anew"
            )

    def _write(self, checkpoint: Checkpoint, resumed: int, sender: Sender) -> Summary:
        _, first = next(checkpoint.blocks())
        assert checkpoint.provenance is not None
        contents = Contents(
            rows=checkpoint.rows,
            dim=first.shape[1],
            dtype=first.dtype,
            provenance=checkpoint.provenance,
            blocks=checkpoint.blocks,
            skipped=checkpoint.all_skipped,
            options=self._identity(),
        )
        write_output(self._output, contents, scratch=checkpoint.folder)
        return Summary(
            rows=contents.rows,
            dim=contents.dim,
            resumed=resumed,
            skipped=checkpoint.skipped,
            first_skipped=[Skipped(**one) for one in contents.first_skipped()],
            provenance=checkpoint.provenance,
            other_sizes=sorted(sender.other_sizes),
            image_size=sender.image_size,
        )
