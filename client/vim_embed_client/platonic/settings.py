"""What the environment sets for a run inside the host, read once when a model is loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple, Self

from vim_embed_client.errors import ConfigurationError

WIRES = ("uint8", "float32", "float16")
POOLINGS = ("mean", "cls", "patch-mean", "registers", "max", "features")
DEFAULT_AHEAD = 4
DEFAULT_CACHE_GIB = 20.0
DEFAULT_RECORD_FOLDER = "data"
_GIB = 1024**3


class RunSettings(NamedTuple):
    """Settings of one loaded model.

    wire: what the preprocessor makes of galaxies. pooling: in place of the alias's own; None: that.
    ahead: calls that may be under way behind the host's back. cache: the folder of finished rows;
    None: no cache. cache_bytes: the most that it may hold. record: the folder of provenance files;
    None: none are written.
    """

    wire: str = "uint8"
    pooling: str | None = None
    ahead: int = DEFAULT_AHEAD
    cache: Path | None = None
    cache_bytes: int = int(DEFAULT_CACHE_GIB * _GIB)
    record: Path | None = None

    @classmethod
    def from_environment(cls) -> Self:
        """VIM_EMBED_WIRE, _POOLING, _AHEAD, _ROW_CACHE, _ROW_CACHE_GIB and _PROVENANCE.

        Raises ConfigurationError for what none of them takes.
        """
        cache = os.environ.get("VIM_EMBED_ROW_CACHE") or None
        bound = os.environ.get("VIM_EMBED_ROW_CACHE_GIB") or None
        if bound and not cache:
            raise ConfigurationError(
                "VIM_EMBED_ROW_CACHE_GIB has no effect without VIM_EMBED_ROW_CACHE: name a folder"
            )
        gib = _number("VIM_EMBED_ROW_CACHE_GIB", bound, DEFAULT_CACHE_GIB)
        if gib == 0:
            raise ConfigurationError("VIM_EMBED_ROW_CACHE_GIB is 0: unset VIM_EMBED_ROW_CACHE")
        ahead = _number("VIM_EMBED_AHEAD", os.environ.get("VIM_EMBED_AHEAD"), DEFAULT_AHEAD)
        if ahead != int(ahead):
            raise ConfigurationError(f"VIM_EMBED_AHEAD is {ahead:g}: use a whole number of calls")
        wire = _one_of("VIM_EMBED_WIRE", os.environ.get("VIM_EMBED_WIRE"), WIRES)
        record = os.environ.get("VIM_EMBED_PROVENANCE") or DEFAULT_RECORD_FOLDER
        return cls(
            wire=wire or WIRES[0],
            pooling=_one_of("VIM_EMBED_POOLING", os.environ.get("VIM_EMBED_POOLING"), POOLINGS),
            ahead=int(ahead),
            cache=Path(cache).expanduser() if cache else None,
            cache_bytes=int(gib * _GIB),
            record=None if record == "off" else Path(record).expanduser(),
        )


def _one_of(variable: str, value: str | None, known: tuple[str, ...]) -> str | None:
    if value and value not in known:
        raise ConfigurationError(f"{variable} is {value!r}: use one of {', '.join(known)}")
    return value or None


def _number(variable: str, text: str | None, default: float) -> float:
    try:
        value = float(text or default)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ConfigurationError(f"{variable} is {text!r}: use a number from 0")
    return value
