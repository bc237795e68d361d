"""Finds the files of a bulk run and lists them in a fixed order."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from vim_embed_client.bulk.sources.names import is_auxiliary_file
from vim_embed_client.bulk.sources.reader import Skipped, readable
from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.paths import not_there

_DATA_SET_FILES = ("dataset_info.json", "dataset_dict.json")

PassOver = Callable[[Skipped], None]
# Why a file of this name in a folder is no source, or None where it is one.
WhyNot = Callable[[str], str | None]


def find_files(
    paths: Iterable[str],
    why_not: WhyNot,
    *,
    leave_out: Sequence[Path] = (),
    pass_over: PassOver = lambda skipped: None,
) -> list[str]:
    """The files named, in the folders named (with their subfolders) and matching the patterns.

    Sorted, each once. Links to folders are followed. In folders only those files count that
    `why_not` has nothing against, that are not hidden, and whose names do not say that they are
    the masks or weights of others; that a pattern matches such a name counts neither.
    leave_out: files that are not wanted, such as the output of an earlier run, with what that run
    wrote beside them. pass_over: called for every other file of a folder that does not count, and
    for folders that cannot be listed, which are faults.
    Raises ConfigurationError for a path or pattern that leads to nothing, and where all that was
    found is left out, and InputError for a folder without a file that counts.
    """
    found: set[str] = set()
    walked: set[str] = set()
    ours = _Ours(leave_out)
    told: list[Skipped] = []

    def tell(skipped: Skipped) -> None:
        if skipped.id not in ours:
            told[:] = told or [skipped]
            pass_over(skipped)

    for path in paths:
        again = os.path.realpath(path) in walked
        here = set(_expand(path, why_not, tell, walked))
        if not here and not again:
            raise InputError(_nothing_in(path, told))
        found |= here
    wanted = sorted(file for file in found if file not in ours)
    if found and not wanted:
        raise ConfigurationError(f"{min(found)} is what would be written: name what is to be read")
    return wanted


def _nothing_in(path: str, told: list[Skipped]) -> str:
    if any(os.path.exists(os.path.join(path, name)) for name in _DATA_SET_FILES):
        return f"{path} is a data set that save_to_disk wrote: give hf:{path}"
    why = "".join(f" ({one.id}: {one.reason})" for one in told)
    return f"no images, arrays or shards in {path}{why}: `vim-embed embed --help` says what is read"


class _Ours:
    """What a run writes: its outputs, the files beside them, and unfinished parts."""

    def __init__(self, outputs: Iterable[Path]) -> None:
        self._outputs = [str(output.resolve()) for output in outputs]

    def __contains__(self, file: str) -> bool:
        return any(_is_of(output, file) for output in self._outputs)


def _is_of(output: str, file: str) -> bool:
    # Most names differ already, which spares a look at the disk.
    if os.path.basename(output) not in file:
        return False
    found = str(Path(file).resolve())
    beside = {output + ending for ending in ("", ".json", ".skipped.jsonl")}
    return found in beside or found.startswith(f"{output}.parts{os.sep}")


def _expand(path: str, why_not: WhyNot, pass_over: PassOver, walked: set[str]) -> Iterator[str]:
    if os.path.isdir(path):
        yield from _in_folder(path, why_not, pass_over, walked)
    elif os.path.exists(path):
        yield path
    else:
        matches = glob.glob(path, recursive=True)
        if not matches:
            raise not_there(path)
        files = [match for match in matches if not os.path.isdir(match)]
        yield from files if is_auxiliary_file(path) else _images_among(files, "", pass_over)
        for match in matches:
            if os.path.isdir(match):
                yield from _in_folder(match, why_not, pass_over, walked)


def _in_folder(
    folder: str, why_not: WhyNot, pass_over: PassOver, walked: set[str]
) -> Iterator[str]:
    """The sources in a folder; nothing where it was walked through before."""
    sources = []
    for path in _walk(folder, pass_over, walked):
        reason = why_not(path)
        if reason is None:
            sources.append(path)
        else:
            pass_over(Skipped(id=readable(path), reason=reason, fault=False))
    yield from _images_among(sources, folder, pass_over)


def _images_among(files: list[str], folder: str, pass_over: PassOver) -> Iterator[str]:
    """The files without the masks and weights of others, as far as names below `folder` tell."""
    auxiliary = {file for file in files if is_auxiliary_file(os.path.relpath(file, folder or None))}
    if len(auxiliary) == len(files):
        auxiliary = set()  # they were asked for
    for file in files:
        if file in auxiliary:
            reason = "by its name a mask, error or weight; name the file itself to embed it"
            pass_over(Skipped(id=readable(file), reason=reason, fault=False))
        else:
            yield file


def _walk(folder: str, pass_over: PassOver, walked: set[str]) -> Iterator[str]:
    """The files in a folder and below, through links too, but each folder once."""

    def unlisted(error: OSError) -> None:
        reason = f"cannot be listed ({error.strerror})"
        pass_over(Skipped(id=readable(str(error.filename)), reason=reason))

    for parent, folders, names in os.walk(folder, onerror=unlisted, followlinks=True):
        here = os.path.realpath(parent)
        if here in walked:
            folders.clear()
            continue
        walked.add(here)
        for name in [name for name in folders if name.startswith(".")]:
            folders.remove(name)
            hidden = readable(os.path.join(parent, name))
            pass_over(Skipped(id=hidden, reason="a hidden folder", fault=False))
        folders.sort()
        yield from (os.path.join(parent, name) for name in sorted(names))
