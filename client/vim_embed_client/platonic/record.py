"""What computed a table of the host: a file beside it, kept up to date row by row.

The host writes its tables at the end of a size or of a run. A digest of every column says whether
this file speaks of the table that it lies beside.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from vim_embed_client.formats import Array

SUFFIX = ".provenance.json"


class RunRecord:
    """One size of one run. Its file holds all sizes: a run of one size leaves the others alone.

    path: of the file. size: the host's name of the size. about: what computed the rows.
    """

    def __init__(self, path: Path, size: str, about: Mapping[str, Any]) -> None:
        self._path = path
        self._size = size
        self._entry: dict[str, Any] = {**about, "started": _now(), "columns": {}}
        self._digests: dict[str, Any] = {}
        self._failed = False

    def add(self, column: str, rows: Array) -> None:
        """Count (B, D) further rows of a column of the host's table, and write the file."""
        digest = self._digests.setdefault(column, hashlib.sha256())
        digest.update(np.ascontiguousarray(rows, "<f4"))
        before = self._entry["columns"].get(column, {"rows": 0})["rows"]
        told = {"rows": before + len(rows), "dim": rows.shape[1], "sha256": digest.hexdigest()}
        self._entry["columns"][column] = told
        self._entry["written"] = _now()
        try:
            self._write()
        except OSError as error:
            if not self._failed:
                print(f"[vim-embed] no provenance in {self._path}: {error.strerror}", flush=True)
            self._failed = True

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        sizes = _sizes(self._path) | {self._size: self._entry}
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        try:
            with os.fdopen(handle, "w") as file:
                json.dump({"sizes": sizes}, file, indent=1)
            os.chmod(name, 0o644)
            os.replace(name, self._path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(name)
            raise


def _sizes(path: Path) -> dict[str, Any]:
    """What the file says of all sizes so far; nothing where it is not one of ours."""
    try:
        sizes = json.loads(path.read_text())["sizes"]
        return dict(sizes)
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
