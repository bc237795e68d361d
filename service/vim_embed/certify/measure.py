"""Runs a model in the dtype to certify and in float32 on the reference operations."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vim_embed.certify.images import ImageSet
from vim_embed.certify.neighbours import Agreement, agreement
from vim_embed.certify.observe import Observer
from vim_embed.inference.embedder import Embedder
from vim_embed.models.vim import Vim
from vim_embed.types.devices import is_ieee, resolve_dtype
from vim_embed.types.model_info import EMBEDDING, EmbedOptions
from vim_embed.weights.catalogue import CatalogueEntry
from vim_embed.weights.load import load_entry

EMULATED_ROWS = 32  # of which rounding alone is measured
_TOKENS = EmbedOptions(pooling="tokens")
_TIMED = 3  # batches

Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is certified. against: the original, where the model was made of another's weights."""

    entry: CatalogueEntry
    against: CatalogueEntry | None = None
    device: torch.device
    dtype: str
    backend: str = "auto"
    random_weights: bool = False
    batch_rows: int = 8

    def load(self, dtype: str, backend: str, *, original: bool = False) -> Embedder:
        """The model (or the original) in a dtype. Raises what `load_entry` raises."""
        entry = (self.against or self.entry) if original else self.entry
        return load_entry(
            replace(entry, dtype=None),
            device=self.device,
            dtype=resolve_dtype(dtype),
            ieee=is_ieee(dtype),
            backend=backend,
            random_weights=self.random_weights,
            batch_rows=self.batch_rows,
            exact_rows=1,
        )


@dataclass
class Errors:
    """Relative L2 errors (n,) of rows, by what was compared: tokens, the worst token, poolings."""

    rows: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def median(self, what: str) -> float:
        """Over the rows that are finite; NaN where none is."""
        finite = self.rows[what][np.isfinite(self.rows[what])]
        return float(np.median(finite)) if len(finite) else float("nan")

    def worst(self, what: str) -> tuple[int, float]:
        """The row with the largest error, and that; a row that is not finite is the worst."""
        values = np.where(np.isnan(self.rows[what]), np.inf, self.rows[what])
        row = int(values.argmax())
        return row, float(values[row])


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All that was measured.

    rounding: the median error of tokens that rounding to the dtype alone makes, on EMULATED_ROWS
    images, by the reference operations on the original's weights; kernels: what the certified run
    has on the same images. Both NaN where there is no such emulation. norms: (n, L) of the tokens
    ahead of the final norm, of a model that is no Vim after it.
    """

    fast: Embedder
    images: ImageSet
    agreements: list[Agreement]
    errors: Errors
    observer: Observer
    norms: NDArray[np.float32]
    overflowing: list[int]
    rounding: float
    kernels: float
    speed: float


def measure(plan: Plan, fast: Embedder, images: ImageSet, progress: Progress) -> Measured:
    """Both runs over all images. progress: told of rows done, twice each."""
    original = plan.load("float32", "reference", original=True)
    module = cast(nn.Module, original.module.in_reference())  # type: ignore[operator]
    reference = Embedder(original.info, module, plan.device)
    observer = Observer(module)
    poolings = [p for p in fast.info.poolings if p != "tokens"]
    expected: dict[str, list[Tensor]] = {p: [] for p in poolings}
    found: dict[str, list[Tensor]] = {p: [] for p in poolings}
    parts: dict[str, list[Tensor]] = {"tokens": [], "worst token": []}
    norms: list[Tensor] = []
    for first, block in images.batches(plan.batch_rows):
        pixels = torch.from_numpy(block).to(plan.device)
        with observer.watching(first):
            right = reference.compute(pixels, _TOKENS)[EMBEDDING]
        progress(len(block))
        tokens = fast.compute(pixels, _TOKENS)[EMBEDDING]
        for pooling in poolings:
            expected[pooling].append(_pooled(reference, right, pooling, pixels))
            found[pooling].append(_as_served(fast, tokens, pooling, pixels))
        for name, error in zip(parts, token_errors(tokens, right), strict=True):
            parts[name].append(error)
        if not isinstance(module, Vim):
            norms.append(right.norm(dim=-1).cpu())
        progress(len(block))
    errors = Errors({name: torch.cat(part).double().numpy() for name, part in parts.items()})
    agreements = []
    for pooling in poolings:
        one, two = torch.cat(expected[pooling]).numpy(), torch.cat(found[pooling]).numpy()
        agreements.append(agreement(pooling, one, two))
        errors.rows[pooling] = row_errors(two, one)
    bad = [row for row, error in enumerate(errors.rows["tokens"]) if not np.isfinite(error)]
    rounding, kernels = _rounding(plan, reference, fast, images)
    return Measured(
        fast=fast,
        images=images,
        agreements=agreements,
        errors=errors,
        observer=observer,
        norms=torch.cat(observer.norms or norms).numpy(),
        overflowing=bad,
        rounding=rounding,
        kernels=kernels,
        speed=_speed(plan, fast, images),
    )


def token_errors(found: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) relative L2 of all tokens of a row, and of its worst token; of (B, L, D)."""
    apart, size = (found - expected).norm(dim=-1), expected.norm(dim=-1)
    whole = apart.norm(dim=-1) / size.norm(dim=-1)
    return whole.cpu(), (apart / size).amax(dim=-1).cpu()


def row_errors(found: NDArray[np.float32], expected: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n,) relative L2 of rows (n, D)."""
    apart = np.linalg.norm(found.astype(np.float64) - expected, axis=1)
    errors: NDArray[np.float64] = apart / np.linalg.norm(expected.astype(np.float64), axis=1)
    return errors


def _pooled(model: Embedder, tokens: Tensor, pooling: str, pixels: Tensor) -> Tensor:
    height, width = pixels.shape[-2:]
    return model.pooled(tokens, pooling, height, width).cpu()


def _as_served(model: Embedder, tokens: Tensor, pooling: str, pixels: Tensor) -> Tensor:
    """Pooled as requests are: the fused forward has kernels of its own for class tokens."""
    if pooling == "cls" and model.info.backend == "fused":
        return model.compute(pixels, EmbedOptions(pooling=pooling))[EMBEDDING].cpu()
    return _pooled(model, tokens, pooling, pixels)


def _rounding(
    plan: Plan, reference: Embedder, fast: Embedder, images: ImageSet
) -> tuple[float, float]:
    if not isinstance(reference.module, Vim) or fast.info.dtype.startswith("float32"):
        return float("nan"), float("nan")
    emulated = plan.load(plan.dtype, "reference", original=True)
    by_rounding: list[Tensor] = []
    by_kernels: list[Tensor] = []
    for pixels in _some(images, plan):
        right, rounded, found = (
            model.compute(pixels, _TOKENS)[EMBEDDING] for model in (reference, emulated, fast)
        )
        by_rounding.append(token_errors(rounded, right)[0])
        by_kernels.append(token_errors(found, right)[0])
    return _median(by_rounding), _median(by_kernels)


def _some(images: ImageSet, plan: Plan) -> Iterator[Tensor]:
    step = max(1, len(images) // EMULATED_ROWS)
    some = ImageSet(images.pixels[::step][:EMULATED_ROWS], [], images.source)
    for _, block in some.batches(plan.batch_rows):
        yield torch.from_numpy(block).to(plan.device)


def _median(parts: list[Tensor]) -> float:
    values = torch.cat(parts)
    return float(values[values.isfinite()].nanmedian())


def _speed(plan: Plan, fast: Embedder, images: ImageSet) -> float:
    """Images/s of the certified run over those of float32 by the same choice of kernels."""
    if fast.info.dtype.startswith("float32"):
        return 1.0
    plain = plan.load("float32", plan.backend)
    _, block = next(images.batches(plan.batch_rows))
    pixels = torch.from_numpy(block).to(plan.device)
    seconds = {}
    for name, model in (("plain", plain), ("fast", fast)):
        model.run(pixels, EmbedOptions())
        times = []
        for _ in range(_TIMED):
            begin = time.perf_counter()
            model.run(pixels, EmbedOptions())
            times.append(time.perf_counter() - begin)
        seconds[name] = min(times)
    return seconds["plain"] / seconds["fast"]
