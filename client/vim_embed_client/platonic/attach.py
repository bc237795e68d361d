"""Teaches a platonic-universe package our aliases, and takes them out again.

Everything is worked out in memory first; files are then replaced whole, and put back if one of
them cannot be written. Which lines to edit is in source_edits.py; whether the Python that runs
the package can do so is asked in interpreter.py.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from vim_embed_client.errors import ConfigurationError
from vim_embed_client.paths import not_there
from vim_embed_client.platonic.aliases import TWINS, Names
from vim_embed_client.platonic.source_edits import (
    ForeignAliasError,
    UnknownLayoutError,
    attached_twins,
    foreign_adapters,
    host_models,
    with_registration,
    with_tables,
    without_marked,
)

T = TypeVar("T")

NOTHING = "Nothing was changed"
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
    if not path.exists():
        raise not_there(path)
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


def plan(
    package: Path,
    *,
    models: Collection[str] | None = None,
    undo: bool = False,
    replace: bool = False,
) -> list[Change]:
    """The changes that attach `package`, or detach it. Writes nothing.

    models: which of the host's own get a remote twin, `all` for all that can; None: those that
    have one. replace: put models of our names that are not ours aside, as comments that `undo`
    brings back. Raises ConfigurationError, naming the file, for source that is not recognised, and
    for such models without `replace`.
    """
    present = [package / name for name in TABLES if (package / name).is_file()]
    if undo:
        return [_change(path, without_marked) for path in (package / REGISTRY, *present)]
    twins = _twins(present, models)
    tables = partial(with_tables, twins=twins, replace=replace)
    changes = [_change(path, tables) for path in present]
    if not (replace or any(b"vim-embed replaced" in change.after for change in changes)):
        for path in sorted((package / "models").glob("*.py")):
            _change(path, partial(_without_foreign, twins=twins))
    return [_change(package / REGISTRY, partial(with_registration, twins=twins)), *changes]


def twins_of(package: Path) -> list[str]:
    """The host's models whose remote twins `package` knows."""
    sources = [(package / name) for name in TABLES if (package / name).is_file()]
    found = {alias for path in sources for alias in _read(path, attached_twins)}
    return [alias for alias in TWINS if alias in found]


def _twins(tables: Sequence[Path], models: Collection[str] | None) -> dict[str, Names]:
    """The sizes and names of the models that are to have a twin. Raises ConfigurationError."""
    known: dict[str, Names] = {}
    present: set[str] = set()
    for path in tables:
        present |= _read(path, attached_twins)
        for alias, names in _read(path, host_models).items():
            known[alias] = {**known.get(alias, {}), **names}
    wanted = set(known) if models and "all" in models else present if models is None else {*models}
    unknown = sorted(wanted - set(known)) if models is not None else []
    if unknown:
        raise ConfigurationError(
            f"there is no remote twin of {', '.join(unknown)}: this platonic-universe has "
            f"{', '.join(sorted(known))} of what a vim-embed service can be"
        )
    return {alias: known[alias] for alias in TWINS if alias in wanted and alias in known}


def _without_foreign(source: str, twins: Mapping[str, Names]) -> str:
    """The source itself. Raises ForeignAliasError where it registers a name of ours."""
    for line, alias in foreign_adapters(source, twins):
        raise ForeignAliasError(f"line {line} registers an adapter {alias!r} of its own")
    return source


def _change(path: Path, edit: Callable[[str], str]) -> Change:
    before = _read(path, lambda source: source.encode())
    return Change(path, before, _read(path, lambda source: edit(source).encode()))


def _read(path: Path, look: Callable[[str], T]) -> T:
    """What `look` finds in a file. Raises ConfigurationError for one that is not recognised."""
    try:
        return look(path.read_bytes().decode())
    except ForeignAliasError as error:
        raise ConfigurationError(
            f"{path}: {error}. Nothing was changed. Give that model another name, or attach with "
            "--replace: its lines stay as comments, and --undo brings them back"
        ) from None
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
    for change in changes:
        try:
            _replace(change.path, change.after)
        except OSError as error:
            left = _put_back(done)
            state = f"{left} stay changed: put them back with --undo" if left else NOTHING
            raise ConfigurationError(
                f"cannot write {change.path}: {error.strerror}. {state}; "
                "run as the owner of the package, or use a checkout"
            ) from None
        done.append(change)


def _put_back(done: Sequence[Change]) -> str:
    """Undo what was written; the names of the files that could not be, with commas."""
    failed = []
    for change in done:
        try:
            _replace(change.path, change.before)
        except OSError:
            failed.append(str(change.path))
    return ", ".join(failed)


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
