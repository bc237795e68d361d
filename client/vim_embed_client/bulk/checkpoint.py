"""What an unfinished run keeps beside its output, in OUT.parts/, so that it can go on.

manifest.jsonl: a line with the run's options, then one for each finished part. A part is
NNNNNN.npy (embeddings) and NNNNNN.json (ids, what was skipped). Files are complete on disk before
the manifest names them; what it does not name is thrown away, so no row is lost or doubled
wherever the process, or the machine, stops.
"""

from __future__ import annotations

import json
import os
import re
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from vim_embed_client.bulk.durable_files import locked, sync_folder, whole_lines, write_durably
from vim_embed_client.bulk.pipeline import Cursor, RowResult
from vim_embed_client.bulk.sources.reader import Skipped
from vim_embed_client.errors import ConfigurationError, ProvenanceChangedError, ResumeError
from vim_embed_client.formats import Array
from vim_embed_client.results import Provenance

_FORMAT = 2
_MANIFEST, _LOCK = "manifest.jsonl", "lock"
_OURS = re.compile(r"\d{6}\.(npy|json)(\.new)?|manifest\.jsonl|lock|joined(\.\w+)*")
_RESTART = "; --restart throws the finished rows away and begins anew"

Options = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A finished part: its rows, what it left out, where reading goes on, and its check sum."""

    number: int
    rows: int
    skipped: int
    cursor: Cursor
    crc32: int


class Checkpoint:
    """The finished parts of one output; append in order, then read them all.

    part_rows, part_seconds: how much work a part holds at most, and so is lost at worst.
    Raises ResumeError where the parts found belong to other options; `restart` removes them.
    """

    def __init__(
        self,
        output: Path,
        options: Options,
        *,
        restart: bool = False,
        part_rows: int = 4096,
        part_seconds: float = 30.0,
    ) -> None:
        self.folder = output.with_name(output.name + ".parts")
        self.done: list[Part] = []
        self.provenance: Provenance | None = None
        self._part_rows, self._part_seconds = part_rows, part_seconds
        self._open: list[RowResult] = []
        self._committed_at = time.monotonic()
        self.folder.mkdir(exist_ok=True)
        lock = locked(self.folder / _LOCK)
        if lock is None:
            raise ConfigurationError(
                f"another run is writing {self.folder}: wait for it, or choose another output"
            )
        self._lock = lock
        try:
            if restart:
                self._clear(keep_lock=True)
            self._manifest = self._resume(options)
        except BaseException:
            self._lock.close()
            raise

    @property
    def rows(self) -> int:
        """Rows in finished parts."""
        return sum(part.rows for part in self.done)

    @property
    def skipped(self) -> int:
        """Rows and files left out in finished parts."""
        return sum(part.skipped for part in self.done)

    @property
    def cursor(self) -> Cursor:
        """Where reading goes on."""
        return self.done[-1].cursor if self.done else Cursor()

    def check(self, provenance: Provenance) -> None:
        """Raise ProvenanceChangedError unless these answers belong with the earlier ones."""
        self.provenance = self.provenance or provenance
        changed = self.provenance.differences(provenance)
        if changed:
            raise ProvenanceChangedError(
                f"the service changed meanwhile ({', '.join(changed)}): was it restarted with "
                "other weights or settings? Nothing was mixed: serve the former ones again to go "
                f"on{_RESTART}"
            )
        self.provenance = self.provenance.with_devices_of(provenance)

    def add(self, result: RowResult) -> None:
        """Take the next row; it is on disk after the next commit."""
        self._open.append(result)
        since = time.monotonic() - self._committed_at
        if len(self._open) >= self._part_rows or since >= self._part_seconds:
            self.commit()

    def commit(self) -> None:
        """Make a part of what was added since the last one; durable when this returns.

        May be called again after KeyboardInterrupt at any point of it.
        """
        if self._open and self._open[-1].cursor != self.cursor:
            part = self._write_part(self._open)
            provenance = asdict(self.provenance) if self.provenance else None
            self._append(asdict(part) | {"provenance": provenance})
            self.done.append(part)
        self._open = []
        self._committed_at = time.monotonic()

    def _write_part(self, results: Sequence[RowResult]) -> Part:
        number = len(self.done)
        kept = [(one.id, one.row) for one in results if not isinstance(one.row, Skipped)]
        skipped = [one.row for one in results if isinstance(one.row, Skipped)]
        rows = np.stack([row for _, row in kept]) if kept else np.empty((0, 0), np.float32)
        names = {
            "ids": [_text(row_id) for row_id, _ in kept],
            "skipped": [asdict(one) | {"id": _text(one.id)} for one in skipped],
        }
        write_durably(
            self._path(number, "npy"), lambda file: np.save(file, rows, allow_pickle=False)
        )
        write_durably(
            self._path(number, "json"), lambda file: file.write(json.dumps(names).encode())
        )
        sync_folder(self.folder)
        return Part(
            number=number,
            rows=len(rows),
            skipped=len(skipped),
            cursor=results[-1].cursor,
            crc32=_crc(rows, names),
        )

    def blocks(self) -> Iterator[tuple[list[str], Array]]:
        """The ids and embeddings of each part that has rows. Raises ResumeError if damaged."""
        for part in self.done:
            if part.rows:
                ids, rows, _ = self._read(part)
                yield ids, rows

    def all_skipped(self) -> Iterator[Skipped]:
        """Everything that was left out, in order."""
        for part in self.done:
            if part.skipped:
                yield from self._read(part)[2]

    def close(self, *, remove: bool = False) -> None:
        """Give the lock back. The folder goes with `remove`, or where nothing is finished."""
        self._manifest.close()
        if remove or not self.done:
            self._clear()
        self._lock.close()

    def _resume(self, options: Options) -> IO[bytes]:
        path = self.folder / _MANIFEST
        options = json.loads(json.dumps(options))
        lines, length = whole_lines(path)
        if lines:
            self._check_options(lines[0], options)
            self._take(lines[1:])
        wanted = {p.name for part in self.done for p in self._paths(part.number)}
        for file in self.folder.iterdir():
            if _OURS.fullmatch(file.name) and file.name not in wanted | {_MANIFEST, _LOCK}:
                file.unlink()
        manifest = path.open("ab")
        manifest.truncate(length)
        if not lines:
            self._manifest = manifest
            self._append({"format": _FORMAT, "options": options})
            sync_folder(self.folder)
        return manifest

    def _check_options(self, header: Mapping[str, Any], options: Options) -> None:
        if header.get("format") != _FORMAT:
            raise ResumeError(f"{self.folder} comes from another version of vim-embed{_RESTART}")
        before = header["options"]
        changed = [
            f"{name} was {json.dumps(before.get(name))}, now {json.dumps(options.get(name))}"
            for name in sorted(before.keys() | options)
            if before.get(name) != options.get(name)
        ]
        if changed:
            raise ResumeError(
                f"{self.folder} holds rows made with other options ({'; '.join(changed)}): "
                f"repeat the former command to go on{_RESTART}"
            )

    def _take(self, records: list[dict[str, Any]]) -> None:
        for record in records:
            found = record.pop("provenance")
            self.provenance = Provenance(**found) if found else self.provenance
            # A commit that was interrupted right after its line was made a second time.
            del self.done[record["number"] :]
            self.done.append(Part(**record | {"cursor": Cursor(**record["cursor"])}))
            for path in self._paths(record["number"]):
                if not path.exists():
                    raise ResumeError(f"{path} is missing, so this run cannot go on{_RESTART}")

    def _read(self, part: Part) -> tuple[list[str], Array, list[Skipped]]:
        array_path, names_path = self._paths(part.number)
        try:
            rows: Array = np.load(array_path, allow_pickle=False)
            names = json.loads(names_path.read_bytes())
            if _crc(rows, names) != part.crc32:
                raise ValueError("its check sum is another one")
        except (OSError, ValueError, EOFError) as error:
            raise ResumeError(f"{array_path} is damaged ({error}){_RESTART}") from None
        return names["ids"], rows, [Skipped(**one) for one in names["skipped"]]

    def _paths(self, number: int) -> tuple[Path, Path]:
        return self._path(number, "npy"), self._path(number, "json")

    def _path(self, number: int, suffix: str) -> Path:
        return self.folder / f"{number:06}.{suffix}"

    def _append(self, record: Mapping[str, Any]) -> None:
        self._manifest.write(json.dumps(record).encode() + b"\n")
        self._manifest.flush()
        os.fsync(self._manifest.fileno())

    def _clear(self, *, keep_lock: bool = False) -> None:
        # The manifest first: without it the rest counts for nothing.
        (self.folder / _MANIFEST).unlink(missing_ok=True)
        for file in self.folder.iterdir():
            if _OURS.fullmatch(file.name) and not (keep_lock and file.name == _LOCK):
                file.unlink()
        if not keep_lock and not any(self.folder.iterdir()):
            self.folder.rmdir()


def _crc(rows: Array, names: Any) -> int:
    return zlib.crc32(json.dumps(names).encode(), zlib.crc32(rows.tobytes()))


def _text(row_id: str) -> str:
    """An id that any file can hold: names that are no UTF-8 lose the bytes at fault."""
    return row_id.encode(errors="surrogateescape").decode(errors="replace")
