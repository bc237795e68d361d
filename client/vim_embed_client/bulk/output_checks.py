"""Whether an output can be written, and replaces nothing but what an earlier run wrote there."""

from __future__ import annotations

import json
import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vim_embed_client.bulk.checkpoint import MANIFEST, folder_of
from vim_embed_client.bulk.outputs import (
    DIGEST,
    ENDINGS,
    METADATA,
    file_digest,
    import_pyarrow,
    sidecar,
    skipped_list,
)
from vim_embed_client.errors import ConfigurationError
from vim_embed_client.paths import check_folder_of

_PROVENANCE = "provenance"

IsOurs = Callable[[Path], bool]


def check_output(path: Path) -> None:
    """Raise ConfigurationError for an output that could not be written at the end, or may not be:
    one that would replace a file which `embed` did not write.
    """
    if path.suffix not in ENDINGS:
        raise ConfigurationError(f"{path} does not end in one of {', '.join(ENDINGS)}")
    check_folder_of(path)
    if not os.access(path.parent, os.W_OK):
        raise ConfigurationError(f"{path} cannot be written: is {path.parent} a writable folder?")
    parts = folder_of(path)
    for one in (path, sidecar(path), skipped_list(path), parts):
        _check_replaceable(one, stat.S_ISDIR if one == parts else stat.S_ISREG)
    if path.suffix == ".parquet":
        import_pyarrow()
    _refuse_foreign_output(path)


def _check_replaceable(path: Path, expected: Callable[[int], bool]) -> None:
    """Refuse links and devices, which a rename would replace instead of writing through them."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:  # such as a name that is too long
        raise ConfigurationError(f"{path} cannot be written ({error.strerror})") from None
    if stat.S_ISLNK(mode):
        raise ConfigurationError(
            f"{path} is a symbolic link, which would be replaced: give the file that it leads to, "
            f"{os.path.realpath(path)}, or remove the link"
        )
    if not expected(mode):
        raise ConfigurationError(f"{path} is in the way: it is no plain file of an earlier run")


def refuse_foreign(
    path: Path, is_ours: IsOurs, by: str = "vim-embed embed", option: str = "-o"
) -> None:
    """Raise ConfigurationError for a file that is there, is not empty and is not ours.

    is_ours: looks into a file, which may be anybody's: whatever it raises, the file is not ours.
    by, option: for the message, the command that writes such files, and its option for the path.
    """
    if not path.is_file() or not path.stat().st_size:
        return
    try:
        ours = is_ours(path)
    except Exception:
        ours = False
    if not ours:
        raise ConfigurationError(
            f"{path} is there and was not written by {by}: give another {option}, or remove it"
        )


def is_embedding_table(path: Path) -> bool:
    """Whether `embed` or `join` wrote this Parquet file."""
    return any(name.startswith(b"vim_embed.provenance") for name in parquet_metadata(path))


def parquet_metadata(path: Path) -> dict[bytes, bytes]:
    """What the schema of a Parquet file says of it."""
    _, parquet = import_pyarrow()
    found: dict[bytes, bytes] = parquet.read_schema(path).metadata or {}
    return found


def _refuse_foreign_output(path: Path) -> None:
    """Also of the files beside the output, which a run replaces or removes."""
    # A run may be stopped between an array and its sidecar: then its parts are still there.
    if not (folder_of(path) / MANIFEST).exists():
        refuse_foreign(path, _ARE_OURS[path.suffix])
    if path.suffix != ".parquet":
        refuse_foreign(sidecar(path), is_sidecar)
    refuse_foreign(skipped_list(path), is_skipped_list)


def _has_sidecar(path: Path) -> bool:
    about: dict[str, Any] = json.loads(sidecar(path).read_text())
    return _PROVENANCE in about and about[DIGEST] == file_digest(path)


def has_metadata(path: Path) -> bool:
    """Whether `embed` wrote this .npz file."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{METADATA}.npy") as member:
        return _PROVENANCE in json.loads(str(np.lib.format.read_array(member, allow_pickle=False)))


def safetensors_head(path: Path) -> dict[str, str]:
    """What the header of a safetensors file says of it, without its tensors; {} where it is cut."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            return {}
        about: dict[str, str] = json.loads(file.read(size))["__metadata__"]
    return about


def _has_header(path: Path) -> bool:
    # The weights of a model, or an answer of the service, have no list of skipped rows.
    return {"weights_digest", "skipped"} <= safetensors_head(path).keys()


def is_sidecar(path: Path) -> bool:
    """Whether `embed` wrote this beside an .npy file."""
    return _PROVENANCE in json.loads(path.read_text())


def is_skipped_list(path: Path) -> bool:
    """Whether `embed` or `cutout` wrote this list of what was left out."""
    with path.open("rb") as lines:
        first: dict[str, Any] = json.loads(lines.readline())
    return {"id", "reason"} <= first.keys()


_ARE_OURS: dict[str, IsOurs] = {
    ".npy": _has_sidecar,
    ".npz": has_metadata,
    ".parquet": is_embedding_table,
    ".safetensors": _has_header,
}
