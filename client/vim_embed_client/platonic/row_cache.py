"""Finished rows on disk, so that what was embedded once is not embedded again.

A row is found by everything that its numbers depend on: its pixels, and all that the service says
of the computation. One SQLite file: a transaction holds what a call added whole or not at all,
whatever ends the process. Several processes may share it.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import struct
import threading
import weakref
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from vim_embed_client.errors import ConfigurationError
from vim_embed_client.formats import Array

FILE = "rows.sqlite"
_FORMAT = 1
_WAIT_S = 60.0  # for another process that writes
_AT_ONCE = 500  # keys of one statement
_SCHEMA = """
CREATE TABLE IF NOT EXISTS rows (
    id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, value BLOB NOT NULL, crc INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS total (one INTEGER PRIMARY KEY CHECK (one = 1), bytes INTEGER NOT NULL);
INSERT OR IGNORE INTO total VALUES (1, 0);
CREATE TRIGGER IF NOT EXISTS added AFTER INSERT ON rows
    BEGIN UPDATE total SET bytes = bytes + length(new.value); END;
CREATE TRIGGER IF NOT EXISTS dropped AFTER DELETE ON rows
    BEGIN UPDATE total SET bytes = bytes - length(old.value); END;
"""

Row = dict[str, Array]  # layer name -> (D,)


def row_keys(pixels: Array, identity: Mapping[str, object]) -> list[bytes]:
    """A key for each row of (B, 3, H, W) pixels; identity: what else the numbers depend on."""
    head = {**identity, "pixels": [pixels.dtype.str, pixels.shape[1:]]}
    start = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    keys = []
    for row in pixels:
        digest = start.copy()
        digest.update(np.ascontiguousarray(row).data)
        keys.append(digest.digest())
    return keys


class RowCache:
    """Rows by key in a folder. most_bytes: of their values; then the oldest rows are dropped.

    Safe to use from several threads. Raises ConfigurationError for a folder or a file that cannot
    be used, with the fix.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.path = folder / FILE
        self._most = most_bytes
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                self.path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False
            )
            weakref.finalize(self, self._db.close)
            self._open()
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from None

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Row]:
        """Those of the rows that are here, whole."""
        found: dict[bytes, Row] = {}
        try:
            with self._lock:
                for start in range(0, len(keys), _AT_ONCE):
                    some = keys[start : start + _AT_ONCE]
                    marks = ",".join("?" * len(some))
                    query = f"SELECT key, value, crc FROM rows WHERE key IN ({marks})"
                    for key, value, crc in self._db.execute(query, some):
                        if zlib.crc32(value, zlib.crc32(key)) == crc:
                            found[key] = _unpacked(value)
        except sqlite3.Error as error:
            raise self._unusable(error) from None
        return found

    def put(self, rows: Iterable[tuple[bytes, Row]]) -> None:
        """Add rows, all or none; a row that is here already is replaced."""
        records = []
        for key, row in dict(rows).items():
            value = _packed(row)
            records.append((key, value, zlib.crc32(value, zlib.crc32(key))))
        try:
            with self._lock, self._db:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.executemany("DELETE FROM rows WHERE key = ?", [r[:1] for r in records])
                self._db.executemany("INSERT INTO rows (key, value, crc) VALUES (?, ?, ?)", records)
                self._drop_oldest()
        except sqlite3.Error as error:
            raise self._unusable(error) from None

    def _open(self) -> None:
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version not in (0, _FORMAT):
                raise sqlite3.DatabaseError(f"it has format {version}, not {_FORMAT}")
            for statement in _statements(_SCHEMA):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {_FORMAT}")

    def _drop_oldest(self) -> None:
        (total,) = self._db.execute("SELECT bytes FROM total").fetchone()
        while total > self._most:
            oldest = self._db.execute(
                "SELECT id, length(value) FROM rows ORDER BY id LIMIT ?", (_AT_ONCE,)
            ).fetchall()
            if not oldest:
                return
            for last, size in oldest:  # noqa: B007  the last one is used below
                total -= size
                if total <= self._most:
                    break
            self._db.execute("DELETE FROM rows WHERE id <= ?", (last,))

    def _unusable(self, error: Exception) -> ConfigurationError:
        return ConfigurationError(
            f"the cache of rows {self.path} cannot be used ({error}): name another folder with "
            "VIM_EMBED_ROW_CACHE, remove that file, or unset the variable to run without a cache"
        )


def _statements(script: str) -> list[str]:
    """The statements of a script: unlike executescript, these stay within one transaction."""
    found, statement = [], ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            found.append(statement)
            statement = ""
    return found


def _packed(row: Row) -> bytes:
    """Length of the head, head (names and widths as JSON), float32 numbers."""
    head = json.dumps([[name, len(values)] for name, values in row.items()]).encode()
    numbers = b"".join(np.ascontiguousarray(values, "<f4").tobytes() for values in row.values())
    return struct.pack("<I", len(head)) + head + numbers


def _unpacked(value: bytes) -> Row:
    (length,) = struct.unpack_from("<I", value)
    head = json.loads(value[4 : 4 + length])
    row: Row = {}
    start = 4 + length
    for name, width in head:
        row[name] = np.frombuffer(value, "<f4", width, start)
        start += 4 * width
    return row
