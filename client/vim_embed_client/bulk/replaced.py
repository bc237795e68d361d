"""A finished output of an earlier run, which a new run would replace: whether it may."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vim_embed_client.bulk.output_checks import parquet_metadata, safetensors_head
from vim_embed_client.bulk.outputs import METADATA, import_pyarrow, read_sidecar
from vim_embed_client.bulk.recorded_options import option_changes
from vim_embed_client.bulk.sources.huggingface import PREFIX
from vim_embed_client.bulk.sources.reader import readable
from vim_embed_client.errors import ResumeError
from vim_embed_client.results import ModelEntry

_OF_ROWS = "#[/:"  # what stands behind the source in the id of one of its rows
# What the provenance tells of these is surer than an option that may have been left out.
_BY_PROVENANCE = ("model", "exact")


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """What a finished output tells: its rows' ids, and with what they were read and embedded."""

    ids: Sequence[str]
    options: Mapping[str, Any]
    provenance: Mapping[str, Any]


def earlier_output(path: Path) -> Earlier | None:
    """What is there of an earlier run; None where nothing is, or it cannot be understood."""
    try:
        return _READERS[path.suffix](path) if path.stat().st_size else None
    except Exception:  # of a run that was stopped, of another version, or none of ours
        return None


def check_replaced(
    output: Path,
    sources: Sequence[str],
    options: Mapping[str, Any],
    entry: ModelEntry | None,
    *,
    overwrite: bool,
) -> str | None:
    """What to say of an output that this run replaces, or None where there is none.

    options: of this run, as they are recorded. entry: of the model, if it is known before. Raises
    ResumeError where the earlier rows would not be made again, unless `overwrite`.
    """
    earlier = earlier_output(output)
    if earlier is None:
        return None
    holds = f"{output} holds {len(earlier.ids):,} rows of an earlier run"
    changes = list(_changes(earlier, sources, options, entry))
    if not changes:
        return f"{holds} with the same options, which this one replaces at its end."
    if not overwrite:
        raise ResumeError(
            f"{holds}, which this one would not make again ({'; '.join(changes)}): give another "
            "-o to keep them, or --overwrite to replace them"
        )
    return f"{holds}, which this one replaces at its end: {'; '.join(changes)}."


def _changes(
    earlier: Earlier, sources: Sequence[str], options: Mapping[str, Any], entry: ModelEntry | None
) -> Iterator[str]:
    now = {"model": options.get("model")}
    if entry is not None:
        now = {
            "model": entry["name"],
            "weights_digest": entry["weights"]["digest"],
            "dtype": entry["dtype"],
        }
    for name, value in now.items():
        was = earlier.provenance.get(name)
        if was and value and was != value:
            yield f"the {name.replace('_', ' ')} was {was}, now {value}"
    exact, asked = earlier.provenance.get("exact"), options.get("exact")
    if asked is not None and str(exact).lower() != str(asked).lower():
        yield f"--exact was {exact}, now {asked}"
    before, after = (
        {name: value for name, value in one.items() if name not in _BY_PROVENANCE}
        for one in (earlier.options, options)
    )
    if earlier.options:  # which a file of an old version does not tell
        yield from option_changes(before, after)
    if not any(options.get(name) for name in ("sky", "id_column", "id_header")):
        lost = _lost(earlier.ids, sources)
        if lost:
            yield f"{len(lost):,} of them are of inputs that are not given now, such as {lost[0]}"


def _lost(ids: Sequence[str], sources: Sequence[str]) -> list[str]:
    """The ids of rows whose source is none of these."""
    there = set(map(readable, sources))
    return [one for one in ids if not one.startswith(PREFIX) and not _among(one, there)]


def _among(row_id: str, there: set[str]) -> bool:
    if row_id in there:
        return True
    ends = (place for place in range(len(row_id) - 1, 0, -1) if row_id[place] in _OF_ROWS)
    return any(row_id[:end] in there for end in ends)


def _of_sidecar(path: Path) -> Earlier | None:
    return _of(read_sidecar(path))


def _of_npz(path: Path) -> Earlier | None:
    with np.load(path, allow_pickle=False) as arrays:
        return _of(json.loads(str(arrays[METADATA])) | {"ids": arrays["ids"].tolist()})


def _of_parquet(path: Path) -> Earlier | None:
    _, parquet = import_pyarrow()
    told = parquet_metadata(path)
    names = ("options", "provenance")
    about = {name: json.loads(told[f"vim_embed.{name}".encode()]) for name in names}
    return _of(about | {"ids": parquet.read_table(path, columns=["id"])["id"].to_pylist()})


def _of_safetensors(path: Path) -> Earlier | None:
    about = safetensors_head(path)
    ids = json.loads(about["ids"]) if "ids" in about else read_sidecar(path)["ids"]
    return _of({"ids": ids, "options": json.loads(about["options"]), "provenance": about})


def _of(about: Mapping[str, Any]) -> Earlier | None:
    if not about:
        return None
    return Earlier(ids=about["ids"], options=about["options"], provenance=about["provenance"])


_READERS: dict[str, Callable[[Path], Earlier | None]] = {
    ".npy": _of_sidecar,
    ".npz": _of_npz,
    ".parquet": _of_parquet,
    ".safetensors": _of_safetensors,
}
