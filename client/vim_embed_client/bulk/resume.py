"""Whether the rows that an earlier attempt finished belong to this one, or ResumeError."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from vim_embed_client.bulk.checkpoint import Checkpoint
from vim_embed_client.bulk.part_files import RESTART, PartContent, printable
from vim_embed_client.bulk.pipeline import Cursor, OpenReader, digest_of, read_from
from vim_embed_client.bulk.row_faults import Ready, RowSender, made_ready
from vim_embed_client.bulk.sources.reader import Entry, Item, Skipped
from vim_embed_client.errors import ResumeError
from vim_embed_client.results import ModelEntry

# Options whose values stand in the provenance of rows, which says more than the option: "the
# service's model" may be the very one that is named now.
_IN_PROVENANCE = ("model", "pooling", "exact")


def check_inputs(checkpoint: Checkpoint, sources: Sequence[str], open_reader: OpenReader) -> None:
    """Raise ResumeError where what was read before has changed."""
    if not checkpoint.parts:
        return
    if digest_of(sources, open_reader, checkpoint.cursor) != checkpoint.cursor.digest:
        raise ResumeError(
            f"the inputs behind the {checkpoint.rows:,} finished rows in {checkpoint.folder} "
            "changed: a file was added before the last one read, removed or written again. "
            f"Put them back to go on{RESTART}"
        )


def check_model(checkpoint: Checkpoint, entry: ModelEntry) -> None:
    """Raise ResumeError where the finished rows come from another model than `entry`."""
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
            f"serve the former one, or name it with --model, to go on{RESTART}"
        )


def check_options(
    checkpoint: Checkpoint,
    read_options: Sequence[str],
    sources: Sequence[str],
    open_reader: OpenReader,
    sender: RowSender,
) -> None:
    """Take over changed options where the finished rows would be the same with them.

    read_options: names of those with which rows are read. Whether these change a row is not
    guessed: the finished rows are read again, without being embedded, and compared. Raises
    ResumeError where one differs, and for other options that change rows.
    """
    changed = checkpoint.changed_options()
    if not changed:
        return
    provenance = checkpoint.provenance
    if provenance:
        wrong = {
            name: (was, now)
            for name, (was, now) in changed.items()
            if name not in read_options and not _same_in_provenance(name, now, provenance)
        }
        if wrong:
            raise checkpoint.refuse_options(wrong)
    rereads = {name: pair for name, pair in changed.items() if name in read_options}
    if rereads and checkpoint.parts:
        differing = _first_difference(checkpoint, sources, open_reader, sender)
        if differing is not None:
            raise checkpoint.refuse_options(rereads, f", which change {differing}")
    checkpoint.accept_options()


def _same_in_provenance(name: str, now: Any, provenance: Any) -> bool:
    return name in _IN_PROVENANCE and getattr(provenance, name) == now


def _first_difference(
    checkpoint: Checkpoint, sources: Sequence[str], open_reader: OpenReader, sender: RowSender
) -> str | None:
    """The id of the first finished entry that would come out otherwise now, or None."""
    entries = read_from(sources, open_reader, Cursor())
    for content in checkpoint.contents():
        for row_id, skipped, fingerprint, columns in _entries(content):
            _, entry = next(islice(entries, 1), (None, None))
            if entry is None or printable(entry.id) != row_id:
                return row_id
            now = made_ready(sender, entry)
            if isinstance(now, Ready):
                same = now.fingerprint == fingerprint and _columns(entry) == columns
            else:
                same = skipped is not None and now.fault == skipped.fault
            if not same:
                return row_id
    return None


def _entries(content: PartContent) -> Iterator[tuple[str, Skipped | None, int, str]]:
    """Each entry of a part: its id, what was left out if it was, its fingerprint, its columns."""
    left_out = dict(content.skipped)
    rows = enumerate(content.ids)
    for place, fingerprint in enumerate(content.fingerprints.tolist()):
        if skipped := left_out.get(place):
            yield skipped.id, skipped, fingerprint, ""
        else:
            row, row_id = next(rows)
            values = {name: column[row] for name, column in content.columns.items()}
            yield row_id, None, fingerprint, _text(values)


def _columns(entry: Entry) -> str:
    return _text(entry.columns if isinstance(entry, Item) else {})


def _text(columns: Mapping[str, Any]) -> str:
    """Columns to be compared: NaN is NaN, and a column that is not there is as one of None."""
    return json.dumps({name: columns[name] for name in columns if columns[name] is not None})
