"""What reaches the caller: the forward alone, `embed` in process, and HTTP, side by side.

Host memory, Python and HTTP can cost a fast model more than its kernels do. Works on every device.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vim_embed.inference.embedder import Embedder
from vim_embed.types.model_info import EmbedOptions

_ROUNDS = 5
WAYS = ("embed, uint8", "embed, float32", "HTTP, uint8")
NOTE = """\
images/s, and in parentheses the share of the forward alone.
Forward alone: images that are tensors on the device already, one call behind the other.
embed: `load_model(...).embed(array)` in this process, rounds by turns with the forward alone.
HTTP: a service of its own with these settings, and client processes on this machine.
All weights are those that the service would load; rows are those of a call or request."""


@dataclass(frozen=True)
class Delivery:
    """Images/s of one model and dtype; of a way that failed, the reason."""

    model: str
    dtype: str
    rows: int
    alone: float
    ways: dict[str, float | str]


def in_process(model: Embedder, rows: int, seconds: float) -> dict[str, float]:
    """Images/s of "alone" and of `embed`, medians of rounds by turns, `seconds` each in all.

    rows: of a call. A model of other bands than RGB takes float32 alone.
    """
    size, channels = model.info.preprocessing.image_size, model.info.channels
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (rows, channels, size, size), dtype=np.uint8)
    floats = pixels.astype(np.float32) / 127.5 - 1
    on_device = torch.from_numpy(pixels if channels == 3 else floats).to(model.device)

    def alone(calls: int) -> None:
        for _ in range(calls):
            last = model.launch(on_device, EmbedOptions())
        last.wait()

    def embed(images: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> Callable[[int], None]:
        def repeat(calls: int) -> None:
            for _ in range(calls):
                model.embed(images)

        return repeat

    calls = {"alone": alone, WAYS[0]: embed(pixels), WAYS[1]: embed(floats)}
    if channels != 3:
        del calls[WAYS[0]]
    return {name: rows * rate for name, rate in _by_turns(calls, seconds / _ROUNDS).items()}


def _by_turns(ways: dict[str, Callable[[int], None]], seconds: float) -> dict[str, float]:
    """Calls a second of each, medians of rounds of about `seconds`, after a warm-up."""
    repeats = {}
    for name, repeat in ways.items():
        repeat(2)
        repeats[name] = max(1, int(seconds / _seconds(repeat, 1)))
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(_ROUNDS):
        for name, repeat in ways.items():
            found[name].append(repeats[name] / _seconds(repeat, repeats[name]))
    return {name: statistics.median(rates) for name, rates in found.items()}


def _seconds(repeat: Callable[[int], None], calls: int) -> float:
    begin = time.perf_counter()
    repeat(calls)
    return max(time.perf_counter() - begin, 1e-9)


def as_text(lines: Sequence[Delivery]) -> str:
    """The table, and why a way has no figure."""
    names = ["model", "dtype", "rows", "forward alone", *WAYS]
    rows = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    reasons = []
    for line in lines:
        cells = [line.model, line.dtype, str(line.rows), f"{line.alone:,.1f}"]
        for way in WAYS:
            rate = line.ways.get(way, "not measured")
            if isinstance(rate, str):
                cells.append("–")
                reasons.append(f"- {way}, {line.model}, {line.dtype}: {rate}")
            else:
                cells.append(f"{rate:,.1f} ({rate / line.alone:.3f})")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n\n".join(part for part in ("\n".join(rows), "\n".join(reasons), NOTE) if part)
