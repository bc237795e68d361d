"""What would cost a run its results after hours: said, and refused unless it is allowed."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version

from vim_embed_client.errors import ConfigurationError

POLARS_2 = "polars-2"
MISSING_SIZES = "missing-sizes"
_WORDS = (POLARS_2, MISSING_SIZES)


def polars_fault(found: str) -> str:
    """What is wrong with this version of polars for the host, or nothing. Empty: not installed."""
    major = found.partition(".")[0]
    if not major.isdigit() or int(major) < 2:
        return ""
    return (
        f"polars {found}: both versions of platonic-universe embed all galaxies of the first size "
        'with it, fail with ShapeError and write no table: pip install "polars<2"'
    )


def check_polars() -> None:
    """Raise ConfigurationError for the polars of this Python, unless VIM_EMBED_ALLOW has it."""
    try:
        fault = polars_fault(version("polars"))
    except PackageNotFoundError:
        return
    if fault:
        refuse(fault, unless=POLARS_2)


def refuse(fault: str, *, unless: str) -> None:
    """Raise ConfigurationError for a fault; where VIM_EMBED_ALLOW has the word, print it."""
    words = [
        word.strip() for word in os.environ.get("VIM_EMBED_ALLOW", "").split(",") if word.strip()
    ]
    unknown = set(words) - set(_WORDS)
    if unknown:
        raise ConfigurationError(
            f"VIM_EMBED_ALLOW is {', '.join(sorted(unknown))}: use {' or '.join(_WORDS)}"
        )
    if unless not in words:
        raise ConfigurationError(f"{fault}. To run all the same, set VIM_EMBED_ALLOW={unless}")
    print(f"[VIM_EMBED_ALLOW={unless}] {fault}", flush=True)
