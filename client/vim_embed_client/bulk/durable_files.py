"""Files that are whole on disk or not there, and a lock that ends with its process."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any


def whole_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records of a JSON lines file and their length, up to a line cut short by a crash."""
    lines: list[dict[str, Any]] = []
    length = 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            record = None
        if record is None:
            break
        lines.append(record)
        length += len(line)
    return lines, length


def write_durably(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file whose content is on disk before its name is. Raises OSError, leaving none."""
    new = path.with_name(path.name + ".new")
    try:
        with new.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Return when names in `folder` are on disk."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network file systems cannot
                os.fsync(handle)
        finally:
            os.close(handle)


def locked(path: Path) -> IO[bytes] | None:
    """An open file that only one process can have, or None where another has it.

    The system frees it when that process ends.
    """
    file = path.open("ab")
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ModuleNotFoundError:  # Windows
        pass
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            return file  # file systems without locks, as clusters have
        file.close()
        return None
    return file
