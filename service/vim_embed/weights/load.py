"""From a catalogue entry to an Embedder: locate, read, build, choose the backend, describe."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vim_embed.errors import WeightsError
from vim_embed.inference.backbone import FusedBackbone
from vim_embed.inference.cuda_graphs import CudaCapture
from vim_embed.inference.embedder import Embedder
from vim_embed.inference.precision import own_precision
from vim_embed.kernels.fused.linear import split_products
from vim_embed.kernels.select import FUSED, BackendUnavailable, select_backend
from vim_embed.models.vim import Vim, VimConfig, init_random
from vim_embed.models.vim_fused import FusedVim
from vim_embed.models.vim_fused_support import supports
from vim_embed.types.devices import indexed, is_ieee, resolve_device, resolve_dtype
from vim_embed.types.model_info import POOLINGS, ModelInfo, Weights
from vim_embed.types.preprocessing import (
    VIM_PREPROCESSING,
    VIT_PREPROCESSING,
    Preprocessing,
    of_bands,
)
from vim_embed.types.token_layout import TokenLayout
from vim_embed.weights.catalogue import CatalogueEntry, parse_model
from vim_embed.weights.checkpoint import build_vim, read_checkpoint
from vim_embed.weights.download_progress import Tell
from vim_embed.weights.families import ARCHITECTURES, FAMILIES, Word, published_family, told_size
from vim_embed.weights.file_limits import check_file, check_finite
from vim_embed.weights.hub import Located, digest_files, locate

if TYPE_CHECKING:  # it brings transformers along, which a Vim alone does not need
    from vim_embed.models.encoder import Encoder

_LOG = logging.getLogger(__name__)
_OF_NAME = "the model's name"
_SDPA = "transformers' modules on torch's scaled dot-product attention"
_BATCH_ROWS = {"cpu": 8, "cuda": 64}
_ENCODER_GRAPH_ROWS = 128  # two graphs of 64 leave multiprocessors idle at their ends


@dataclass(frozen=True)
class _Built:
    module: Vim | Encoder
    weights: Weights
    preprocessing: Preprocessing
    family: str
    reason: str
    classifier: str | None
    any_size: bool


@dataclass(frozen=True)
class _Compute:
    backend: str
    reason: str
    fused: FusedBackbone | None = None


def default_batch_rows(device: torch.device, kind: str) -> int:
    """Rows of one batch at the native size, unless set. kind: "vim" or "vit"."""
    if device.type == "cuda" and kind != "vim":
        return _ENCODER_GRAPH_ROWS
    return _BATCH_ROWS[device.type]


def load_model(
    name: str,
    weights: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "float32",
    backend: str = "auto",
    random_weights: bool = False,
    seed: int | None = None,
    exact_rows: int = 0,
) -> Embedder:
    """Load a model for use in this process.

    name: a catalogue name or its Hub id, or any name if `weights` is given: a path, or
    `org/repo[@revision][:file]`, after `FAMILY:` where the file does not tell it (docs/models.md).
    device: "auto", "cpu", "cuda" (the one that is current now), "cuda:1". dtype: "float32",
    "float32-ieee", "float16", "bfloat16". backend: see kernels/select.py; of a Vim alone.
    random_weights: seeded random weights, for demos and tests only; seed: theirs, or 0.
    exact_rows: of every batch in exact mode, as the service's setting; 0: 1 on a CPU, 32 on CUDA.

    Raises ModelArgumentError, WeightsError, BackendUnavailable or ValueError, each naming the fix.
    """
    if seed is not None and not random_weights:
        raise ValueError(f"seed={seed} has an effect with random_weights=True alone: leave it out")
    if exact_rows < 0:
        raise ValueError(f"exact_rows is a number of rows, or 0, not {exact_rows}")
    model = load_entry(
        parse_model(f"{name}={weights}" if weights is not None else name),
        device=resolve_device(device),
        dtype=resolve_dtype(dtype),
        ieee=is_ieee(dtype),
        backend=backend,
        random_weights=random_weights,
        seed=seed or 0,
        exact_rows=exact_rows,
    )
    if backend != "auto" and model.info.kind != "vim":
        raise BackendUnavailable(
            f"{model.info.name} is an encoder of transformers, and has no backends to choose from: "
            f"leave backend={backend!r} out"
        )
    return model


@contextmanager
def _apart_from_the_caller() -> Iterator[None]:
    """Tensors are made on the host, in their own precision, whatever torch's default device, the
    caller's autocast and its inference mode are."""
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    with cpu, own_precision(cpu), own_precision(cuda), torch.inference_mode(mode=False):
        yield


@_apart_from_the_caller()
def load_entry(
    entry: CatalogueEntry,
    *,
    device: torch.device,
    dtype: torch.dtype,
    ieee: bool = False,
    backend: str,
    random_weights: bool = False,
    seed: int = 0,
    batch_rows: int = 0,
    urgent: bool = False,
    exact_rows: int = 0,
    tell: Tell | None = None,
) -> Embedder:
    """`load_model` for an entry that is already parsed; its own dtype goes before `dtype`.

    ieee: see types/devices.py. batch_rows: of the largest CUDA graph. urgent: its graphs go before
    what other models compute, which may still load. tell: hears of a download's progress.
    """
    named, device = str(device), indexed(device)
    if entry.dtype:
        dtype, ieee = resolve_dtype(entry.dtype), is_ieee(entry.dtype)
    built = _random(entry, seed) if random_weights else _read(entry, locate(entry, tell))
    check_finite(built.module.state_dict(), Path(built.weights.source), dtype)
    module, compute = built.module, _Compute("sdpa", _SDPA)
    if module.kind == "vim":
        compute = _choose(module, backend, device, dtype, ieee=ieee)
    module = module.to(device=device, dtype=dtype)
    if module.kind != "vim" and device.type == "cuda" and dtype == torch.float32 and not ieee:
        compute = _Compute("sdpa", f"{_SDPA}; {_split_products(module, device)}")
    size = built.preprocessing.image_size
    info = ModelInfo(
        name=entry.name,
        aliases=entry.aliases,
        kind=module.kind,
        family=built.family,
        family_reason=built.reason,
        dim=module.dim,
        features_dim=module.features_dim if built.classifier else 0,
        classifier=built.classifier,
        poolings=_poolings(module.layout(size, size), built.classifier),
        channels=module.channels,
        tokens=module.layout(size, size),
        patch_size=module.patch[0],
        patch_stride=module.patch[1],
        dtype=str(dtype).removeprefix("torch.") + "-ieee" * ieee,
        device=named,
        backend=compute.backend,
        backend_reason=compute.reason,
        weights=built.weights,
        preprocessing=built.preprocessing,
        min_size=module.min_size,
        any_size=built.any_size,
    )
    model = Embedder(info, module, device, compute.fused)
    if device.type == "cuda":
        rows = batch_rows or default_batch_rows(device, module.kind)
        model.use_graphs(rows, CudaCapture(priority=-1 if urgent else 0))
    model.settle_exact(exact_rows)
    return model


def _poolings(layout: TokenLayout, classifier: str | None) -> tuple[str, ...]:
    """What a model's final tokens can be made into."""
    has = {"cls": layout.cls is not None, "registers": layout.registers, "features": classifier}
    return tuple(pooling for pooling in POOLINGS if has.get(pooling, True))


def _choose(
    vim: Vim, backend: str, device: torch.device, dtype: torch.dtype, *, ieee: bool = False
) -> _Compute:
    """Kernels for a Vim that is still in float32; its operations are set to the chosen ones."""
    built: list[FusedBackbone] = []

    def trial() -> str:
        fused, reason = _fused(vim, device, dtype, ieee=ieee)
        built.append(fused)
        return reason

    chosen = select_backend(backend, device, dtype, fused=trial)
    vim.use_ops(chosen.ops)
    if chosen.name == FUSED:
        return _Compute(FUSED, chosen.reason, built[0])
    if device.type == "cuda" and backend == "auto":
        _LOG.warning("slower kernels", extra={"reason": chosen.reason})
    return _Compute(chosen.name, chosen.reason)


def _fused(
    vim: Vim, device: torch.device, dtype: torch.dtype, *, ieee: bool
) -> tuple[FusedBackbone, str]:
    """The fused forward, tried on one image, and what it is. Raises BackendUnavailable.

    Compilers, drivers and full devices fail in more ways than can be listed, some of them only at
    the first launch, and other kernels can still answer.
    """
    works, reason = supports(vim.config, dtype, device)
    if not works:
        raise BackendUnavailable(f"{FUSED}: {reason}")
    try:
        fused = FusedVim(vim, dtype, device, ieee=ieee)
        try:
            _try_one_image(fused, vim.config.image_size)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or not fused.give_up_clusters():
                raise
            _try_one_image(fused, vim.config.image_size)
            reason += f"; without clusters of blocks ({_problem(error)})"
        return fused, f"{reason}; {fused.products}"
    except Exception as error:
        raise BackendUnavailable(f"{FUSED}: {_problem(error)}") from error


def _try_one_image(fused: FusedVim, size: int) -> None:
    fused(torch.zeros(1, 3, size, size))
    if fused.device.type == "cuda" and torch.cuda.is_available():
        torch.cuda.synchronize(fused.device)


def _problem(error: Exception) -> str:
    return str(error).strip() or type(error).__name__


def _split_products(encoder: Encoder, device: torch.device) -> str:
    """Let linear layers take split products on tensor cores, if these work; what they take.

    They fail in as many ways as the fused forward does, and torch's own products still answer.
    """
    try:
        encoder.use_products(split_products(device))
    except Exception as error:
        return f"plain float32 products (split ones are unavailable: {_problem(error)})"
    return "float32 products as three half-precision ones"


def _read(entry: CatalogueEntry, found: Located) -> _Built:
    for file in found.files:
        check_file(file)
    weights = Weights(
        source=found.source,
        revision=found.revision,
        file=found.path.name if found.path.is_file() else None,
        digest=digest_files(found.files),
    )
    if found.kind == "vit":
        from vim_embed.weights.encoder_files import load_encoder, read_preprocessing

        if entry.family or entry.copy:
            raise WeightsError(f"{found.path} is an encoder of transformers, which has no families")
        encoder = load_encoder(found.path)
        return _Built(
            encoder,
            weights,
            read_preprocessing(found.path, encoder),
            encoder.family.model_type,
            "its config.json",
            encoder.family.classifier,
            any_size=encoder.family.any_size,
        )
    built = build_vim(read_checkpoint(found.path, entry.copy), found.path, _words(entry, found))
    config = built.module.config
    _check_architecture(entry, config, found.path)
    return _Built(
        built.module,
        replace(weights, tensors=built.read),
        _vim_preprocessing(config),
        built.family.name,
        built.reason,
        built.family.classifier,
        any_size=True,
    )


def _vim_preprocessing(config: VimConfig) -> Preprocessing:
    if config.channels != 3:
        return of_bands(config.image_size, VIM_PREPROCESSING.interpolation, config.channels)
    return replace(VIM_PREPROCESSING, image_size=config.image_size)


def _words(entry: CatalogueEntry, found: Located) -> list[Word]:
    """Who says which family a file is of, beside the file itself."""
    words = []
    if entry.family:
        words.append(Word("your setting", FAMILIES[entry.family]))
    if entry.architecture in ARCHITECTURES:
        words.append(Word(f"the name {entry.architecture}", ARCHITECTURES[entry.architecture][0]))
    for what, name in (("file", found.path.name), ("repository", entry.repo)):
        family = published_family(name) if name else None
        if name and family is not None:
            words.append(Word(f"the name of its {what} ({name})", family, told_size(name)))
    return words


def _check_architecture(entry: CatalogueEntry, config: VimConfig, path: Path) -> None:
    if entry.architecture not in ARCHITECTURES:
        return
    wanted = ARCHITECTURES[entry.architecture][1]
    for field in ("dim", "depth", "stride", "registers", "reduction"):
        have, want = getattr(config, field), getattr(wanted, field)
        if have != want:
            raise WeightsError(
                f"{path} is not {entry.architecture}: its {field} is {have}, not {want}. "
                f"Load it under a name of your own: --model my-vim={path}"
            )


def _random(entry: CatalogueEntry, seed: int) -> _Built:
    if entry.path is not None:
        raise WeightsError(
            f"random weights would take the place of {entry.path}: leave out one of the two"
        )
    if entry.architecture is None:
        raise WeightsError(f"{entry.name!r} has no known architecture to fill with random weights")
    if entry.kind == "vit":
        from vim_embed.models.vit import random_vit

        vit = random_vit(entry.architecture, seed)
        weights = _random_weights(vit, seed)
        return _Built(vit, weights, VIT_PREPROCESSING, "vit", _OF_NAME, "cls", any_size=False)
    family, config = ARCHITECTURES[entry.architecture]
    vim = family.module(config)
    init_random(vim, seed)
    return _Built(
        vim.requires_grad_(False).eval(),
        _random_weights(vim, seed),
        replace(VIM_PREPROCESSING, image_size=config.image_size),
        family.name,
        _OF_NAME,
        family.classifier,
        any_size=True,
    )


def _random_weights(module: Vim | Encoder, seed: int) -> Weights:
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return Weights(
        source=f"random weights, seed {seed}",
        revision=None,
        file=None,
        digest=f"random-sha256:{digest.hexdigest()}",
        random=True,
    )
