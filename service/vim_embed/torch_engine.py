"""The engine that runs models with torch on one device.

On CUDA the rows go through a pinned buffer and are copied on a stream of their own while the
previous batch computes. Running out of memory halves the batch and retries.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vim_embed.engine import ModelStatus, Outputs, Staged
from vim_embed.kernels.select import BackendUnavailable
from vim_embed.models.catalogue import CatalogueEntry
from vim_embed.models.embedder import CheckReport, Embedder
from vim_embed.models.hub import WeightsError
from vim_embed.models.info import EmbedOptions, ModelInfo
from vim_embed.models.load import BATCH_ROWS, load_entry
from vim_embed.pixels import PixelArray

_LOG = logging.getLogger(__name__)


class SelfCheckFailed(RuntimeError):
    """A model whose numbers differ from the reference on this machine."""


@dataclass(frozen=True)
class EngineOptions:
    """How models are loaded and batched. Rows are those of the native size; 0: by device."""

    device: torch.device
    dtype: torch.dtype = torch.float32
    backend: str = "auto"
    random_weights: bool = False
    batch_rows: int = 0
    exact_rows: int = 0


@dataclass(frozen=True)
class TorchBatch:
    """Rows on the device; `ready` waits for the copy where it is still under way."""

    model: str
    pixels: Tensor
    options: EmbedOptions
    copied: torch.cuda.Event | None

    @property
    def rows(self) -> int:
        return self.pixels.shape[0]


class TorchEngine:
    """Loads and runs the models of `entries` on one device."""

    def __init__(self, entries: Sequence[CatalogueEntry], options: EngineOptions) -> None:
        self.options = options
        self._entries = tuple(entries)
        self._models: dict[str, Embedder] = {}
        self._layers: dict[str, dict[str, list[str]]] = {}
        self._status = {e.name: ModelStatus(e.name, e.aliases, "loading") for e in entries}
        cuda = options.device.type == "cuda"
        self._copies = torch.cuda.Stream(options.device) if cuda else None  # type: ignore[no-untyped-call]

    def load(self) -> None:
        """Load and self-check every model, one after the other."""
        for entry in self._entries:
            self._status[entry.name] = self._load_one(entry)

    def status(self) -> Mapping[str, ModelStatus]:
        return dict(self._status)

    def layer_names(self, model: str, granularity: str) -> list[str]:
        return self._layers[model][granularity]

    def layer_kinds(self, model: str) -> Mapping[str, str]:
        return self._models[model].layer_kinds()

    def batch_rows(self, model: str, shape: tuple[int, ...]) -> int:
        """The row budget, divided by how much larger than the native size the images are."""
        rows = self.options.batch_rows or BATCH_ROWS[self.options.device.type]
        native = self._models[model].info.preprocessing.image_size
        return max(1, int(rows * native**2 / (shape[-1] * shape[-2])))

    def memory(self) -> Mapping[tuple[str, str], int]:
        device = self.options.device
        if device.type != "cuda":
            return {}
        return {
            (str(device), "allocated"): torch.cuda.memory_allocated(device),
            (str(device), "reserved"): torch.cuda.memory_reserved(device),
        }

    def stage(self, model: str, parts: Sequence[PixelArray], options: EmbedOptions) -> Staged:
        rows = sum(len(part) for part in parts)
        dtype = torch.from_numpy(np.empty(0, parts[0].dtype)).dtype
        shape = (rows, *parts[0].shape[1:])
        buffer = torch.empty(shape, dtype=dtype, pin_memory=self._copies is not None)
        np.concatenate(parts, out=buffer.numpy())
        if self._copies is None:
            return TorchBatch(model, buffer, options, None)
        with torch.cuda.stream(self._copies):
            pixels = buffer.to(self.options.device, non_blocking=True)
        pixels.record_stream(torch.cuda.default_stream(self.options.device))
        return TorchBatch(model, pixels, options, self._copies.record_event())

    def run(self, staged: Staged) -> Outputs:
        assert isinstance(staged, TorchBatch)
        if staged.copied is not None:
            torch.cuda.default_stream(self.options.device).wait_event(staged.copied)
        model, options = self._models[staged.model], staged.options
        outputs = halving_on_oom(lambda pixels: model.run(pixels, options), staged.pixels)
        return {name: tensor.numpy() for name, tensor in outputs.items()}

    def _load_one(self, entry: CatalogueEntry) -> ModelStatus:
        """Load one model; whatever goes wrong is its state and reason, never the service's end."""
        status = self._status[entry.name]
        try:
            info = self._load_checked(entry)
        except (WeightsError, BackendUnavailable, SelfCheckFailed) as error:
            reason = str(error)
            _LOG.error("model failed to load", extra={"model": entry.name, "reason": reason})
        except Exception as error:
            reason = f"unexpected {type(error).__name__} while loading: {error}"
            _LOG.exception("model failed to load", extra={"model": entry.name})
        else:
            return replace(status, state="ready", reason=None, info=info)
        return replace(status, state="failed", reason=reason)

    def _stage(self, entry: CatalogueEntry, what: str) -> None:
        """What a loading model is doing: logged, and the reason why it is not ready."""
        self._status[entry.name] = replace(self._status[entry.name], reason=what)
        _LOG.info("model loading", extra={"model": entry.name, "stage": what})

    def _load_checked(self, entry: CatalogueEntry) -> ModelInfo:
        opts = self.options
        self._stage(entry, "bringing its weights here and loading them")
        model = load_entry(
            entry,
            device=opts.device,
            dtype=opts.dtype,
            backend=opts.backend,
            random_weights=opts.random_weights,
            batch_rows=opts.batch_rows,
            exact_rows=opts.exact_rows,
        )
        self._stage(entry, "comparing its kernels with the reference")
        report = model.self_check()
        if not report.ok:
            raise SelfCheckFailed(
                f"self-check failed: error {report.error:.2e} against the reference is over "
                f"{report.tolerance:.0e}; try --backend torch"
            )
        self._layers[entry.name] = model.layer_names()
        begin = time.monotonic()

        def progress(done: int, of: int) -> None:
            if done < of:
                left = (time.monotonic() - begin) / done * (of - done) if done else 0.0
                estimate = f", about {left:.0f} s left" if done else ""
                self._stage(entry, f"warming up, {done} of {of} batch sizes done{estimate}")

        model.warm_up(progress)
        self._models[entry.name] = model
        _announce(model, report)
        return model.info


def _announce(model: Embedder, report: CheckReport) -> None:
    info = model.info
    _LOG.info(
        "model ready",
        extra={
            "model": info.name,
            "weights": info.weights.source,
            "digest": info.weights.digest,
            "backend": info.backend,
            "backend_reason": info.backend_reason,
            "device": info.device,
            "dtype": info.dtype,
            "self_check_error": report.error,
        },
    )
    if info.weights.random:
        _LOG.warning(
            "RANDOM WEIGHTS: embeddings mean nothing scientifically", extra={"model": info.name}
        )


def halving_on_oom(
    compute: Callable[[Tensor], dict[str, Tensor]], pixels: Tensor
) -> dict[str, Tensor]:
    """`compute(pixels)`, in halves (and their halves) where the device runs out of memory.

    Raises torch.OutOfMemoryError when a single row does not fit.
    """
    try:
        return compute(pixels)
    except torch.OutOfMemoryError:
        if len(pixels) == 1:
            raise
        _LOG.warning("out of memory: halving the batch", extra={"rows": len(pixels)})
        if pixels.is_cuda:
            torch.cuda.empty_cache()
    parts = [halving_on_oom(compute, half) for half in pixels.chunk(2)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
