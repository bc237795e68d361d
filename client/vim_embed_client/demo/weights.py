"""Which weights the demo asks its own server for. What answered is in the provenance."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from vim_embed_client.errors import ConfigurationError

CHECK = (sys.executable, "-m", "vim_embed.cli", "check")
CHECK_SECONDS = 30.0
RELEASED, PACKAGED = "vim-tiny", "vim-micro"
ABOUT_PACKAGED = (
    f"{PACKAGED} is a small Vim that comes with vim-embed, trained without labels on Hubble's and "
    "on simulated galaxies: a demonstration, not a scientific instrument. It saw most of the "
    "galaxies below when it was trained; its score on galaxies that it never saw is in "
    f"docs/{PACKAGED}.md."
)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """model: for `serve --model`. reason: why the released weights are not taken."""

    model: str
    random: bool = False
    reason: str = ""


def choose(
    model: str | None = None,
    weights: str = "auto",
    *,
    seconds: float = CHECK_SECONDS,
    command: Sequence[str] = CHECK,
) -> Choice:
    """Decide on weights for a model of the catalogue.

    model: None for RELEASED, or PACKAGED in its place. weights: `random`; a path or Hub id, which
    must then work; or `auto`: those that VIM_EMBED_MODELS, the local cache or the Hub gives within
    `seconds`, else the packaged ones, or random ones where a model was asked for by name.
    Raises ConfigurationError where the service refuses the model's name.
    """
    asked, model = model, model or RELEASED
    if weights == "random":
        return Choice(model=model, random=True, reason="they were asked for (--weights random)")
    if weights != "auto":
        return Choice(model=f"{model}={weights}")
    argument = _configured(model)
    reason = _why_not(argument, seconds, command)
    if reason is None:
        return Choice(model=argument)
    if asked is None:
        return Choice(model=PACKAGED, reason=reason)
    return Choice(model=model, random=True, reason=reason)


def _configured(model: str) -> str:
    """The entry of VIM_EMBED_MODELS for this model, which may name a path; else its name."""
    entries = (entry.strip() for entry in os.environ.get("VIM_EMBED_MODELS", "").split(","))
    return next((entry for entry in entries if entry.partition("=")[0] == model), model)


def _why_not(argument: str, seconds: float, command: Sequence[str]) -> str | None:
    # On the CPU with the plain kernels: whether weights can be had has nothing to do with them.
    flags = ("--model", argument, "--device", "cpu", "--backend", "reference", "--json")
    try:
        done = subprocess.run(
            [*command, *flags],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"the weights could not be loaded within {seconds:.0f} s"
    if done.returncode == 0:
        return None
    try:
        return "; ".join(str(status["reason"]) for status in json.loads(done.stdout))
    except (ValueError, KeyError, TypeError):
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ConfigurationError(f"the service refused {argument!r}: {lines[-1]}") from None
