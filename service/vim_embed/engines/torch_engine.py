"""The engine that runs models with torch on one device.

Rows are staged while the previous batch computes (inference/staging.py). Running out of memory
halves the batch and retries.
"""

from __future__ import annotations

import gc
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vim_embed.engines.certified import load_certified
from vim_embed.engines.interface import EngineFailed, Golden, ModelStatus, Outputs, Staged
from vim_embed.engines.low_priority import at_low_priority
from vim_embed.errors import WeightsError
from vim_embed.inference.cuda_graphs import CAPTURE_TURNS
from vim_embed.inference.embedder import Embedder
from vim_embed.inference.self_check import SELF_CHECK_TOLERANCE, noise_image, self_check
from vim_embed.inference.staging import HostStaging, StagedPixels
from vim_embed.kernels.select import BackendUnavailable
from vim_embed.types.certificate import Certificate, CertificateError
from vim_embed.types.devices import indexed, is_ieee, resolve_dtype
from vim_embed.types.model_info import EMBEDDING, EmbedOptions, LoadCheck, ModelInfo
from vim_embed.types.pixels import PixelArray
from vim_embed.weights.catalogue import CatalogueEntry, parse_model
from vim_embed.weights.download_progress import told_in_words
from vim_embed.weights.load import default_batch_rows, load_entry

_LOG = logging.getLogger(__name__)
_SYNC_SECONDS = 5.0  # that a device gets to answer before it counts as gone
_DEVICE_ERRORS = ("CUDA error", "CUDA driver", "CUBLAS_STATUS", "CUDNN_STATUS")


class SelfCheckFailed(RuntimeError):
    """A model whose numbers differ from the reference on this machine."""


@dataclass(frozen=True)
class EngineOptions:
    """How models are loaded and batched. Rows are those of the native size; 0: by device.

    dtype: a name of types/devices.py, or "auto" (engines/certified.py). on_forward: called with
    the rows of every forward within its launch, to inject faults.
    """

    device: torch.device
    dtype: str = "float32"
    certificates: tuple[Certificate, ...] = ()
    keep_neighbours: float = 0.99
    backend: str = "auto"
    random_weights: bool = False
    batch_rows: int = 0
    exact_rows: int = 0
    on_forward: Callable[[int], None] | None = None


@dataclass(frozen=True)
class TorchBatch:
    """Rows on the device, or still on their way to it."""

    model: str
    staged: StagedPixels
    options: EmbedOptions

    @property
    def rows(self) -> int:
        return self.staged.pixels.shape[0]


@dataclass(frozen=True)
class _Facts:
    """What is asked of a loaded model, also while it loads anew."""

    layers: dict[str, list[str]]
    kinds: dict[str, str]
    golden: Golden


class TorchEngine:
    """Loads and runs the models of `entries` on one device."""

    def __init__(self, entries: Sequence[CatalogueEntry], options: EngineOptions) -> None:
        self.options = options
        self.device = str(options.device)
        self._entries = {entry.name: entry for entry in entries}
        self._models: dict[str, Embedder] = {}
        self._facts: dict[str, _Facts] = {}
        self._status = {e.name: ModelStatus(e.name, e.aliases, "loading") for e in entries}
        self._loading = threading.Lock()
        self._launching = threading.Lock()  # of two forwards at once, one is launched at a time
        self._staging = HostStaging(options.device)

    @property
    def at_once(self) -> int:
        return 2 if self.options.device.type == "cuda" else 1

    @property
    def stages_ahead(self) -> bool:
        return self.options.device.type == "cuda"

    def load(self) -> None:
        """Load and self-check every model, one after the other."""
        for entry in list(self._entries.values()):
            self._status[entry.name] = self._load_one(entry)

    def known_name(self, name: str) -> str:
        for entry in self._entries.values():
            if name == entry.name or name in entry.aliases:
                return entry.name
        if "=" in name:
            raise ValueError(f"{name!r}: models are loaded by name, files come from the settings")
        return parse_model(name).name

    def load_model(self, name: str) -> None:
        entry = self._entries.get(name) or parse_model(name)
        if entry.name in self._models:
            return
        self._entries[entry.name] = entry
        before = self._status.get(entry.name) or ModelStatus(entry.name, entry.aliases, "loading")
        self._status[entry.name] = replace(before, state="loading", reason=None)
        self._status[entry.name] = self._load_one(_as_before(entry, before.info))
        _warn_of_other_weights(before.info, self._status[entry.name].info)

    def unload(self, name: str) -> None:
        self._status[name] = replace(
            self._status[name], state="unloaded", reason="it was unloaded", info=None
        )
        self._facts.pop(name, None)
        self._free(name)

    def rest(self, name: str, reason: str) -> None:
        status = self._status[name]
        if status.info is not None:
            self._status[name] = replace(status, state="idle", reason=reason)
            self._free(name)

    def _free(self, name: str) -> None:
        self._models.pop(name, None)
        gc.collect()
        if self.options.device.type == "cuda":
            torch.cuda.empty_cache()

    def restart(self) -> None:
        """Load anew what was loaded; requests meanwhile wait. One model at a time.

        A launch that hangs holds whatever lock it took: what comes after it gets locks of its own.
        """
        self._launching = threading.Lock()  # of two forwards at once, one is launched at a time
        CAPTURE_TURNS.abandon(str(indexed(self.options.device)))
        self._check_device()
        self._staging = HostStaging(self.options.device)
        for name in [name for name, status in self._status.items() if status.state == "ready"]:
            self._models.pop(name, None)
            gc.collect()
            info = self._load_checked(self._entries[name])
            self._status[name] = replace(self._status[name], reason=None, info=info)

    def status(self) -> Mapping[str, ModelStatus]:
        return dict(self._status)

    def golden(self, model: str) -> Golden:
        if self._status[model].state != "ready":
            raise KeyError(model)
        return self._facts[model].golden

    def layer_names(self, model: str, granularity: str) -> list[str]:
        return self._facts[model].layers[granularity]

    def layer_kinds(self, model: str) -> Mapping[str, str]:
        return self._facts[model].kinds

    def batch_rows(self, model: str, shape: tuple[int, ...]) -> int:
        """The row budget, divided by how much larger than the native size the images are."""
        info = self._status[model].info
        if info is None:
            return 1
        rows = self.options.batch_rows or default_batch_rows(self.options.device, info.kind)
        native = info.preprocessing.image_size
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
        with self._on_device(), failing_with_the_device():
            return TorchBatch(model, self._staging(parts), options)

    def run(self, staged: Staged) -> Outputs:
        assert isinstance(staged, TorchBatch)
        model = self._models.get(staged.model)
        if model is None:
            raise KeyError(f"{staged.model} is not loaded")
        launching = self._launching
        with self._on_device(), failing_with_the_device():
            outputs = halving_on_oom(
                lambda pixels: self._forward(model, pixels, staged.options, launching),
                staged.staged.ready(),
            )
        return {name: tensor.numpy() for name, tensor in outputs.items()}

    def _forward(
        self, model: Embedder, pixels: Tensor, options: EmbedOptions, launching: threading.Lock
    ) -> dict[str, Tensor]:
        with launching:
            if launching is not self._launching:
                raise EngineFailed("the engine was restarted meanwhile")
            if self.options.on_forward is not None:
                self.options.on_forward(len(pixels))
            on_its_way = model.launch(pixels, options)
        return on_its_way.wait()

    def _on_device(self) -> AbstractContextManager[object]:
        cuda = self.options.device.type == "cuda"
        return torch.cuda.device(self.options.device) if cuda else nullcontext()

    def _check_device(self) -> None:
        """Raise EngineFailed where the device answers no more: only a new process gets it back."""
        if self.options.device.type != "cuda":
            return
        problems: list[str] = []

        def synchronise() -> None:
            try:
                torch.cuda.synchronize(self.options.device)
            except RuntimeError as error:
                problems.append(str(error).splitlines()[0])
            else:
                problems.append("")

        waiting = threading.Thread(target=synchronise, name="vim-embed-device", daemon=True)
        waiting.start()
        waiting.join(_SYNC_SECONDS)
        problem = problems[0] if problems else f"no answer within {_SYNC_SECONDS:.0f} s"
        if problem:
            raise EngineFailed(f"{self.device} is lost to this process ({problem})")

    def _load_one(self, entry: CatalogueEntry) -> ModelStatus:
        """Load one model; whatever goes wrong is its state and reason, never the service's end."""
        status = self._status[entry.name]
        try:
            with self._loading:
                info = self._load_beside_others(entry)
        except (WeightsError, BackendUnavailable, CertificateError, SelfCheckFailed) as error:
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

    def _load_beside_others(self, entry: CatalogueEntry) -> ModelInfo:
        """At low priority as soon as there are others to be served; the first has all there is."""
        if any(status.state == "ready" for status in self._status.values()):
            return at_low_priority(lambda: self._load_checked(entry))
        return self._load_checked(entry)

    def _load_in(self, entry: CatalogueEntry, dtype: str) -> Embedder:
        opts = self.options
        return load_entry(
            entry,
            device=opts.device,
            dtype=resolve_dtype(dtype),
            ieee=is_ieee(dtype),
            backend=opts.backend,
            random_weights=opts.random_weights,
            batch_rows=opts.batch_rows,
            exact_rows=opts.exact_rows,
            urgent=True,
            tell=told_in_words(lambda what: self._stage(entry, what)),
        )

    def _load_checked(self, entry: CatalogueEntry) -> ModelInfo:
        opts = self.options
        self._stage(entry, "bringing its weights here and loading them")
        with self._on_device():
            model = load_certified(
                entry,
                opts.dtype,
                opts.certificates,
                opts.keep_neighbours,
                lambda dtype: self._load_in(entry, dtype),
            )
            self._stage(entry, "comparing its kernels with the reference")
            report = self_check(model)
            if not report.ok:
                raise SelfCheckFailed(_advice(report))
            layers = model.layer_sizes()
            numbers = {granularity: sum(sizes.values()) for granularity, sizes in layers.items()}
            model.info = replace(model.info, self_check=report, layer_numbers=numbers)
            begin = time.monotonic()

            def progress(done: int, of: int) -> None:
                if done < of:
                    left = (time.monotonic() - begin) / done * (of - done) if done else 0.0
                    estimate = f", about {left:.0f} s left" if done else ""
                    self._stage(entry, f"warming up, {done} of {of} batch sizes done{estimate}")

            model.warm_up(progress)
            names = {granularity: list(sizes) for granularity, sizes in layers.items()}
            facts = _Facts(names, model.layer_kinds(), _golden(model))
        self._facts[entry.name], self._models[entry.name] = facts, model
        _announce(model, report)
        return model.info


def _as_before(entry: CatalogueEntry, info: ModelInfo | None) -> CatalogueEntry:
    """The entry at the revision that an idle model was loaded from, whatever the Hub has now."""
    if info is None or entry.repo is None or entry.path is not None:
        return entry
    return replace(entry, revision=entry.revision or info.weights.revision)


def _warn_of_other_weights(before: ModelInfo | None, now: ModelInfo | None) -> None:
    if before is not None and now is not None and before.weights.digest != now.weights.digest:
        digests = {"before": before.weights.digest, "now": now.weights.digest}
        _LOG.warning("the model was loaded with other weights", extra={"model": now.name} | digests)


def _advice(report: LoadCheck) -> str:
    worst = report.worst
    if not math.isfinite(worst.error):
        return (
            f"self-check failed: the forward gives NaN or infinite values ({worst.what}, "
            f"{worst.image}); try --dtype float32, and if that fails too, other weights"
        )
    return (
        f"self-check failed: {worst.what} of {worst.image} differs from the reference by "
        f"{worst.error:.2e}, and {worst.tolerance:.0e} is allowed; try --backend torch"
    )


def _golden(model: Embedder) -> Golden:
    """The noise of the check at load, embedded as requests are."""
    image = noise_image(model.info)
    found = model.run(image.to(model.device), EmbedOptions())[EMBEDDING]
    return Golden(image.numpy(), found.numpy(), SELF_CHECK_TOLERANCE[model.dtype])


def _announce(model: Embedder, report: LoadCheck) -> None:
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
            "dtype_reason": info.dtype_reason,
            "self_check_error": report.error,
        },
    )
    if info.weights.random:
        _LOG.warning(
            "RANDOM WEIGHTS: embeddings mean nothing scientifically", extra={"model": info.name}
        )


@contextmanager
def failing_with_the_device() -> Iterator[None]:
    """Tell a lost device, after which nothing runs in this process, from a fault of one batch."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if isinstance(error, EngineFailed) or not is_device_error(error):
            raise
        raise EngineFailed(str(error).splitlines()[0]) from error


def is_device_error(error: RuntimeError) -> bool:
    """Whether torch raised it for CUDA itself."""
    return any(text in str(error) for text in _DEVICE_ERRORS)


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
