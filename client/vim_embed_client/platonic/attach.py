"""Teaches a platonic-universe package our aliases, and takes them out again.

Everything is worked out in memory first; files are then replaced whole, and put back if one of
them cannot be written. Which lines to edit is in source_edits.py.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from vim_embed_client.errors import ConfigurationError
from vim_embed_client.platonic.source_edits import (
    UnknownLayoutError,
    with_registration,
    with_tables,
    without_registration,
    without_tables,
)

REGISTRY = "models/__init__.py"
# The files that hold a model table; the first is in every version.
TABLES = ("experiments.py", "experiments_layerwise.py", "physics_experiment.py", "benchmark.py")


class Change(NamedTuple):
    """A file with its bytes before and after; both are equal where there is nothing to do."""

    path: Path
    before: bytes
    after: bytes


def find_package(path: Path | None) -> Path:
    """The folder of the package `pu`: installed, a checkout's, or `path` itself.

    Raises ConfigurationError where there is none.
    """
    if path is None:
        return _installed()
    for candidate in (path, path / "src" / "pu", path / "pu"):
        if (candidate / REGISTRY).is_file() and (candidate / TABLES[0]).is_file():
            return candidate
    raise ConfigurationError(
        f"{path} holds no platonic-universe: name a checkout, or the folder of the package pu"
    )


def _installed() -> Path:
    spec = importlib.util.find_spec("pu")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise ConfigurationError(
            "platonic-universe is not installed beside this vim-embed: "
            "pip install platonic-universe, or name a checkout (vim-embed attach PATH)"
        )
    return find_package(Path(folders[0]))


def plan(package: Path, *, undo: bool = False) -> list[Change]:
    """The changes that attach `package`, or detach it. Writes nothing.

    Raises ConfigurationError, naming the file, for source that is not recognised.
    """
    tables, registration = (
        (without_tables, without_registration) if undo else (with_tables, with_registration)
    )
    changes = [_change(package / REGISTRY, registration)]
    present = [package / name for name in TABLES if (package / name).is_file()]
    return changes + [_change(path, tables) for path in present]


def _change(path: Path, edit: Callable[[str], str]) -> Change:
    try:
        before = path.read_bytes()
        return Change(path, before, edit(before.decode()).encode())
    except (UnknownLayoutError, SyntaxError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"{path} is not recognised: {error}. Nothing was changed. This version of "
            "platonic-universe is newer than this vim-embed, or was edited by hand: "
            "upgrade vim-embed, or add the aliases by hand (README, platonic-universe)"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None


def pending(changes: Sequence[Change]) -> list[Change]:
    """Those that change something."""
    return [change for change in changes if change.before != change.after]


def diff(changes: Sequence[Change], package: Path) -> str:
    """A unified diff, with paths as in a checkout of the host."""
    return "".join(_file_diff(change, package) for change in changes)


def _file_diff(change: Change, package: Path) -> str:
    name = f"{package.parent.name}/" if package.parent.name == "src" else ""
    name += f"{package.name}/{change.path.relative_to(package).as_posix()}"
    before, after = (side.decode().splitlines(keepends=True) for side in change[1:])
    return "".join(difflib.unified_diff(before, after, f"a/{name}", f"b/{name}"))


def write(changes: Sequence[Change]) -> None:
    """Replace the files, all or none. Raises ConfigurationError where one cannot be written."""
    done: list[Change] = []
    try:
        for change in changes:
            _replace(change.path, change.after)
            done.append(change)
    except OSError as error:
        for change in done:
            _replace(change.path, change.before)
        raise ConfigurationError(
            f"cannot write {change.path}: {error.strerror}. Nothing was changed; "
            "run as the owner of the package, or use a checkout"
        ) from None


def _replace(path: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, path.stat().st_mode)
        os.replace(name, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise
