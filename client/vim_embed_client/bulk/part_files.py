"""One part of a run on disk: NNNNNN.npy (numbers of its rows) and NNNNNN.json (all else).

Files are complete on disk when `write_part` returns. Nothing here knows of other parts.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vim_embed_client.bulk.durable_files import sync_folder, write_durably
from vim_embed_client.bulk.pipeline import Cursor, RowResult
from vim_embed_client.bulk.reasons import Reasons
from vim_embed_client.bulk.row_shape import RowShape, arrays_of, by_array
from vim_embed_client.bulk.sources.reader import Skipped
from vim_embed_client.errors import ResumeError
from vim_embed_client.formats import Array

RESTART = "; --restart throws the finished rows away and begins anew"


@dataclass(frozen=True, kw_only=True)
class Part:
    """A finished part: its rows, what it left out, where reading goes on, and its check sum.

    skipped: entries at fault. passed_over: entries that are no rows.
    """

    number: int
    rows: int
    skipped: int
    passed_over: int
    cursor: Cursor
    crc32: int

    @property
    def entries(self) -> int:
        return self.rows + self.skipped + self.passed_over


@dataclass(frozen=True, kw_only=True)
class PartContent:
    """What is in a part's files. Entries are rows and what was left out, in their order.

    ids: of the rows. stored: their numbers, as row_shape.by_array has them. skipped: place among
    the entries, and what was left out. fingerprints (entries,): uint64, of what was sent for an
    entry; 0 where nothing could be sent. notes: remarks on rows, grouped (see Reasons). columns: a
    value for each row, by name; None where a row has none.
    """

    ids: list[str]
    stored: Array
    skipped: list[tuple[int, Skipped]]
    fingerprints: Array
    notes: list[dict[str, Any]]
    columns: dict[str, list[Any]]

    def arrays(self, shape: RowShape) -> dict[str, Array]:
        """The rows' arrays (n, …) by name."""
        return arrays_of(self.stored, shape, len(self.ids))

    @property
    def row_fingerprints(self) -> Array:
        """(n,) fingerprints of the rows alone."""
        return np.delete(self.fingerprints, [place for place, _ in self.skipped])


def part_paths(folder: Path, number: int) -> tuple[Path, Path]:
    return folder / f"{number:06}.npy", folder / f"{number:06}.json"


def write_part(
    folder: Path,
    number: int,
    results: Sequence[RowResult],
    cursor: Cursor,
    shape: RowShape | None,
) -> Part:
    """Write what became of some entries durably. cursor: where reading goes on after them.

    shape: of rows; None where there are none.

    Raises OSError, and then leaves nothing behind.
    """
    kept = [(one.id, one.row) for one in results if not isinstance(one.row, Skipped)]
    skipped = [
        asdict(one.row) | {"id": printable(one.row.id), "place": place}
        for place, one in enumerate(results)
        if isinstance(one.row, Skipped)
    ]
    rows = np.stack([row for _, row in kept]) if kept else np.empty((0, 0), np.float32)
    stored = by_array(rows, shape or ())
    fingerprints = np.array([one.fingerprint for one in results], "<u8")
    notes = Reasons()
    for one in results:
        if one.note:
            notes.add(printable(one.id), one.note)
    about = {
        "ids": [printable(row_id) for row_id, _ in kept],
        "skipped": skipped,
        "fingerprints": base64.b64encode(fingerprints.tobytes()).decode(),
        "notes": notes.as_json(),
        "columns": _columns([one.columns for one in results if not isinstance(one.row, Skipped)]),
    }
    array_path, about_path = part_paths(folder, number)
    try:
        write_durably(array_path, lambda file: np.save(file, stored, allow_pickle=False))
        write_durably(about_path, lambda file: file.write(json.dumps(about).encode()))
    except OSError:
        for path in (array_path, about_path):
            with suppress(OSError):
                path.unlink(missing_ok=True)
        raise
    sync_folder(folder)
    faults = sum(one["fault"] for one in skipped)
    return Part(
        number=number,
        rows=len(rows),
        skipped=faults,
        passed_over=len(skipped) - faults,
        cursor=cursor,
        crc32=_crc(stored, about),
    )


def read_part(folder: Path, part: Part) -> PartContent:
    """Raises ResumeError where its files are damaged."""
    array_path, about_path = part_paths(folder, part.number)
    try:
        stored: Array = np.load(array_path, allow_pickle=False)
        about = json.loads(about_path.read_bytes())
        if _crc(stored, about) != part.crc32:
            raise ValueError("its check sum is another one")
    except (OSError, ValueError, EOFError) as error:
        raise ResumeError(f"{array_path} is damaged ({error}){RESTART}") from None
    return PartContent(
        ids=about["ids"],
        stored=stored,
        skipped=[(one.pop("place"), Skipped(**one)) for one in about["skipped"]],
        fingerprints=np.frombuffer(base64.b64decode(about["fingerprints"]), "<u8"),
        notes=about["notes"],
        columns=about["columns"],
    )


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The rows' values by column, in the order in which the columns first come."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def read_array(folder: Path, part: Part, shape: RowShape, name: str) -> Array:
    """One of the rows' arrays, (n, …), of a part that was found sound before."""
    stored = np.load(part_paths(folder, part.number)[0], mmap_mode="r", allow_pickle=False)
    return arrays_of(stored, shape, part.rows)[name]


def _crc(stored: Array, about: Any) -> int:
    return zlib.crc32(json.dumps(about).encode(), zlib.crc32(stored.data))


def printable(row_id: str) -> str:
    """An id that any file can hold: names that are no UTF-8 lose the bytes at fault."""
    return row_id.encode(errors="surrogateescape").decode(errors="replace")
