"""What an unfinished run keeps beside its output, in OUT.parts/, so that it can go on.

manifest.jsonl: a line with the run's options, then one for each finished part (part_files.py).
A part is complete on disk before the manifest names it; what it does not name is thrown away, so
no row is lost or doubled wherever the process, or the machine, stops.
"""

from __future__ import annotations

import io
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from vim_embed_client.bulk.durable_files import locked, sync_folder, whole_lines, write_durably
from vim_embed_client.bulk.part_files import (
    RESTART,
    Part,
    PartContent,
    part_paths,
    read_array,
    read_part,
    write_part,
)
from vim_embed_client.bulk.pipeline import Cursor, RowResult
from vim_embed_client.bulk.recorded_options import READ_OPTIONS, option_changes
from vim_embed_client.bulk.row_shape import Origin, RowShape, of_json
from vim_embed_client.bulk.sources.reader import Skipped
from vim_embed_client.errors import ConfigurationError, ProvenanceChangedError, ResumeError
from vim_embed_client.formats import Array
from vim_embed_client.results import Provenance

_FORMAT = 5
_PART_BYTES = 64 << 20
MANIFEST, _LOCK = "manifest.jsonl", "lock"
_OURS = re.compile(r"\d{6}\.(npy|json)(\.new)?|manifest\.jsonl(\.new)?|lock|joined(\.\w+)*")

Options = dict[str, Any]


class PartFolder:
    """The finished parts of one output, by number, and their manifest.

    options: of this attempt. before: of the attempts that made the parts found, which may differ;
    `accept_options` says that it does not matter. restart: remove the parts found.
    Raises ConfigurationError while another run has the folder, ResumeError where its parts are
    not there or of another format, and OSError where it cannot be written.
    """

    def __init__(self, output: Path, options: Options, *, restart: bool = False) -> None:
        self.folder = folder_of(output)
        self.parts: dict[int, Part] = {}
        self.provenance: Provenance | None = None
        self.shape: RowShape | None = None
        self.options: Options = json.loads(json.dumps(options))
        self.before = self.options
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
            self._manifest = self._resume()
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def rows(self) -> int:
        """Rows in finished parts."""
        return sum(part.rows for part in self.parts.values())

    @property
    def skipped(self) -> int:
        """Rows and files at fault, which finished parts left out."""
        return sum(part.skipped for part in self.parts.values())

    @property
    def entries(self) -> int:
        """Rows and everything left out in finished parts."""
        return sum(part.entries for part in self.parts.values())

    def check(self, origin: Origin) -> None:
        """Raise ProvenanceChangedError unless these answers belong with the earlier ones."""
        provenance = origin.provenance
        self.provenance = self.provenance or provenance
        self.shape = self.shape or origin.shape
        changed = self.provenance.differences(provenance)
        if self.shape != origin.shape:
            changed.append("layers or their widths")
        if changed:
            raise ProvenanceChangedError(
                f"the service changed meanwhile ({', '.join(changed)}): was it restarted with "
                "other weights or settings? Nothing was mixed: serve the former ones again to go "
                f"on{RESTART}"
            )
        self.provenance = self.provenance.with_devices_of(provenance)

    def append(self, part: Part) -> None:
        """Name a part as finished; durable when this returns."""
        provenance = asdict(self.provenance) if self.provenance else None
        self._append(asdict(part) | {"provenance": provenance, "shape": self.shape})
        self.parts[part.number] = part

    def drop_damaged(self) -> None:
        """Forget parts whose files are damaged, so that they are made again."""
        for part in list(self.parts.values()):
            try:
                read_part(self.folder, part)
            except ResumeError:
                del self.parts[part.number]

    def changed_options(self) -> dict[str, tuple[Any, Any]]:
        """Options that differ from those of the finished parts: their values before and now."""
        names = sorted(self.before.keys() | self.options)
        pairs = {name: (self.before.get(name), self.options.get(name)) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    def refuse_options(self, names: Mapping[str, tuple[Any, Any]], why: str = "") -> ResumeError:
        """The error for options that differ in what matters."""
        of_rows = [name for name in names if name in READ_OPTIONS]
        before, now = ({name: names[name][at] for name in of_rows} for at in (0, 1))
        changed = option_changes(before, now) + [
            f"{name} was {json.dumps(was)}, now {json.dumps(is_)}"
            for name, (was, is_) in names.items()
            if name not in READ_OPTIONS
        ]
        return ResumeError(
            f"{self.folder} holds rows made with other options ({'; '.join(changed)}){why}: "
            f"repeat the former command to go on{RESTART}"
        )

    def accept_options(self) -> None:
        """Go on with the options of this attempt."""
        self._manifest.close()
        lines, _ = whole_lines(self._manifest_path)
        lines[0] = self._header()
        text = "".join(json.dumps(line) + "\n" for line in lines).encode()
        write_durably(self._manifest_path, lambda file: file.write(text))
        sync_folder(self.folder)
        self._manifest = self._manifest_path.open("ab", buffering=0)
        self.before = self.options

    def contents(self) -> Iterator[PartContent]:
        """Every part in the order of their numbers. Raises ResumeError if damaged."""
        for number in sorted(self.parts):
            yield read_part(self.folder, self.parts[number])

    def blocks(self) -> Iterator[tuple[list[str], dict[str, Array]]]:
        """The ids and arrays (n, …) of each part that has rows."""
        for number in sorted(self.parts):
            if self.parts[number].rows:
                content = read_part(self.folder, self.parts[number])
                yield content.ids, content.arrays(self.shape or ())

    def array(self, name: str) -> Iterator[Array]:
        """One array (n, …) of each part that has rows; `contents` has found them sound."""
        for number in sorted(self.parts):
            if self.parts[number].rows and self.shape:
                yield read_array(self.folder, self.parts[number], self.shape, name)

    def columns(self) -> Iterator[tuple[int, dict[str, list[Any]]]]:
        """How many rows each part has that `blocks` gives, and its columns."""
        for number in sorted(self.parts):
            if rows := self.parts[number].rows:
                yield rows, read_part(self.folder, self.parts[number]).columns

    def all_skipped(self) -> Iterator[Skipped]:
        """Everything that was left out, in order."""
        for number in sorted(self.parts):
            part = self.parts[number]
            if part.entries > part.rows:
                yield from (one for _, one in read_part(self.folder, part).skipped)

    def close(self, *, remove: bool = False) -> None:
        """Give the lock back. The folder goes with `remove`, or where nothing is finished."""
        self._manifest.close()
        if remove or not self.parts:
            self._clear()
        self._lock.close()

    @property
    def _manifest_path(self) -> Path:
        return self.folder / MANIFEST

    def _header(self) -> dict[str, Any]:
        return {"format": _FORMAT, "options": self.options}

    def _resume(self) -> io.FileIO:
        lines, length = whole_lines(self._manifest_path)
        if lines:
            if lines[0].get("format") != _FORMAT:
                raise ResumeError(f"{self.folder} comes from another version of vim-embed{RESTART}")
            self.before = lines[0]["options"]
            self._take(lines[1:])
        wanted = {path.name for number in self.parts for path in part_paths(self.folder, number)}
        for file in self.folder.iterdir():
            if _OURS.fullmatch(file.name) and file.name not in wanted | {MANIFEST, _LOCK}:
                file.unlink()
        manifest = self._manifest_path.open("ab", buffering=0)
        manifest.truncate(length)
        if not lines:
            self._manifest = manifest
            self._append(self._header())
            sync_folder(self.folder)
        return manifest

    def _take(self, records: list[dict[str, Any]]) -> None:
        for record in records:
            found, shape = record.pop("provenance"), record.pop("shape")
            self.provenance = Provenance(**found) if found else self.provenance
            self.shape = of_json(shape) if shape else self.shape
            part = Part(**record | {"cursor": Cursor(**record["cursor"])})
            # A commit that was interrupted right after its line was made a second time.
            self.parts[part.number] = part
            for path in part_paths(self.folder, part.number):
                if not path.exists():
                    raise ResumeError(f"{path} is missing, so this run cannot go on{RESTART}")

    def _append(self, record: Mapping[str, Any]) -> None:
        """Add a line, or nothing where it cannot be written whole."""
        end = os.fstat(self._manifest.fileno()).st_size
        rest = json.dumps(record).encode() + b"\n"
        try:
            while rest:  # a full disk takes a part of it before it says no
                rest = rest[self._manifest.write(rest) :]
            os.fsync(self._manifest.fileno())
        except OSError:
            self._manifest.truncate(end)
            raise

    def _clear(self, *, keep_lock: bool = False) -> None:
        # The manifest first: without it the rest counts for nothing.
        self._manifest_path.unlink(missing_ok=True)
        for file in self.folder.iterdir():
            if _OURS.fullmatch(file.name) and not (keep_lock and file.name == _LOCK):
                file.unlink()
        if not keep_lock and not any(self.folder.iterdir()):
            self.folder.rmdir()


class Checkpoint(PartFolder):
    """The parts of a run that reads its sources from beginning to end.

    part_rows, part_seconds: how much work a part holds at most, and so is lost at worst. A part
    is written sooner where its rows take _PART_BYTES.
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
        self._part_rows, self._part_seconds = part_rows, part_seconds
        self._open: list[RowResult] = []
        self._open_bytes = 0
        self._committed_at = time.monotonic()
        super().__init__(output, options, restart=restart)

    @property
    def cursor(self) -> Cursor:
        """Where reading goes on."""
        return self.parts[len(self.parts) - 1].cursor if self.parts else Cursor()

    @property
    def taken(self) -> bool:
        """Whether there is any row yet, finished or not."""
        return bool(self.parts or self._open)

    def add(self, result: RowResult) -> None:
        """Take the next row; it is on disk after the next commit."""
        self._open.append(result)
        self._open_bytes += 0 if isinstance(result.row, Skipped) else result.row.nbytes
        since = time.monotonic() - self._committed_at
        full = len(self._open) >= self._part_rows or self._open_bytes >= _PART_BYTES
        if full or since >= self._part_seconds:
            self.commit()

    def commit(self) -> None:
        """Make a part of what was added since the last one; durable when this returns.

        May be called again after KeyboardInterrupt or OSError at any point of it.
        """
        if self._open and self._open[-1].cursor != self.cursor:
            cursor = self._open[-1].cursor
            number = len(self.parts)
            self.append(write_part(self.folder, number, self._open, cursor, self.shape))
        self._open, self._open_bytes = [], 0
        self._committed_at = time.monotonic()


def folder_of(output: Path) -> Path:
    """Where the finished parts of an unfinished output are."""
    return output.with_name(output.name + ".parts")
