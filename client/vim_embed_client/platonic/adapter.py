"""The adapters that the host's experiments drive, for its release 0.1.0 and its development head.

They have the methods of the host's `ModelAdapter` without inheriting from it, so that importing
them loads neither the host nor torch. Where the pixels go is in remote.py and local.py.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from vim_embed_client.errors import BadAnswerError, ConfigurationError, InputError
from vim_embed_client.formats import Array
from vim_embed_client.pixels import as_array
from vim_embed_client.platonic.aliases import ALIASES, named_by_alias
from vim_embed_client.platonic.model import LAST, Model
from vim_embed_client.platonic.processor import ImageProcessor, wire_from_environment
from vim_embed_client.platonic.requirements import MISSING_SIZES, check_polars, refuse

if TYPE_CHECKING:
    import torch

GRANULARITIES = ("blocks", "residual", "leaves", "all")


class VimAdapter(ABC):
    """One model for the host: `load()`, then pixels in, float32 CPU tensors out.

    model_name: a Hub id or a name of the catalogue. size, alias: the host's names for it.
    processor: images to pixels, once loaded. The alias decides between Vim and the ViT proxies:
    with `vim-proxy`, the name of a Vim stands for the proxy of its size. own_alias: the alias
    where none is given.
    """

    own_alias: ClassVar[str | None] = None

    def __init__(self, model_name: str, size: str, alias: str | None = None) -> None:
        self.model_name = named_by_alias(model_name, size, alias or self.own_alias)
        self._asked = model_name
        self.size = size
        self.alias = alias
        self.processor: ImageProcessor | None = None
        self._use_amp = False
        self._loaded: Model | None = None
        self._half: Model | None = None

    @abstractmethod
    def _load(self) -> Model: ...

    def load(self, compile_model: bool = False) -> None:
        """Make the model ready and print what will answer; failures say what to do.

        compile_model: has no effect: the fastest kernels are always chosen. Raises
        ConfigurationError for what would cost the run its results, unless VIM_EMBED_ALLOW has it.
        """
        check_polars()
        wire = wire_from_environment()
        self._loaded, self._half = self._load(), None
        self.processor = ImageProcessor(self._loaded.spec, wire)
        self._print(self._loaded)
        if self.model_name != self._asked:
            print(f"[{self.alias or self.own_alias}] in place of {self._asked}", flush=True)
        self.enable_amp(self._use_amp)

    @property
    def model(self) -> Any:
        """The loaded torch module, as `pu.arch_map` walks it; an empty one for a service's model.

        Raises ConfigurationError before load().
        """
        return self._model().module()

    def enable_amp(self, enabled: bool = True) -> None:
        """Compute in half precision from now on, or no longer. Raises where that is impossible."""
        self._use_amp = enabled
        if enabled and self._loaded is not None and self._half is None:
            self._half = self._loaded.half()
            self._print(self._half)

    def get_preprocessor(
        self, modes: Iterable[str], resize: bool = False, resize_mode: str = "fill"
    ) -> Any:
        """The host's own preprocessor of galaxies, ending in pixels for this model."""
        from pu.preprocess import PreprocessHF

        self._model()
        known = inspect.signature(PreprocessHF).parameters
        options = {"resize": resize, "resize_mode": resize_mode, "alias": self.alias}
        return PreprocessHF(
            list(modes), self.processor, **{k: v for k, v in options.items() if k in known}
        )

    def embed_for_mode(self, batch: Mapping[str, Any], mode: str) -> torch.Tensor:
        """`batch[mode]` is (B, 3, H, W), resized RGB from 0 to 255 or normalised floats.

        Returns (B, D) float32 on the CPU, in the order of the rows. Raises InputError for pixels
        that cannot be embedded, and another VimEmbedError rather than miss a row.
        """
        pixels = _pixels(batch, mode)
        return _tensor(_complete(self._model().embed(pixels), len(pixels), LAST))

    def supports_layerwise(self) -> bool:
        return True

    def get_layer_names(self, granularity: str = "blocks") -> list[str]:
        """Names of the layers in order; the last is `last_hidden_state`."""
        return self._model().layer_names(_known(granularity))

    def get_num_layers(self, granularity: str = "blocks") -> int:
        return len(self.get_layer_names(granularity))

    def get_layer_info(self, granularity: str = "blocks") -> dict[str, str]:
        """Layer name -> class name of the module, so without `last_hidden_state`."""
        return self._model().layer_kinds(_known(granularity))

    def embed_all_layers_for_mode(
        self, batch: Mapping[str, Any], mode: str, granularity: str = "blocks"
    ) -> dict[str, torch.Tensor]:
        """Layer name -> (B, D) float32 in order; `last_hidden_state` equals `embed_for_mode`."""
        pixels = _pixels(batch, mode)
        layers = self._model().embed_layers(pixels, _known(granularity))
        if not layers or list(layers)[-1] != LAST:
            raise BadAnswerError(f"the layers do not end with {LAST}: {', '.join(layers)}")
        return {k: _tensor(_complete(v, len(pixels), k)) for k, v in layers.items()}

    def _model(self) -> Model:
        if self._loaded is None:
            raise ConfigurationError(f"{self.model_name} is not loaded: call load() first")
        return self._half if self._use_amp and self._half is not None else self._loaded

    def _print(self, model: Model) -> None:
        print(f"[{self.alias or type(self).__name__} {self.size}] {model.describe()}", flush=True)


class RemoteAdapter(VimAdapter):
    """`vim-remote`: through the service at VIM_EMBED_URL."""

    own_alias = "vim-remote"

    def _load(self) -> Model:
        from vim_embed_client.platonic.remote import RemoteModel

        model = RemoteModel.connect(self.model_name)
        missing = model.missing(ALIASES.get(self.alias or "", ()))
        if missing:
            refuse(
                f"the service lacks {', '.join(missing)}: an experiment over all sizes of "
                f"{self.alias} stops there, and platonic-universe 0.1.0 writes its table only at "
                "the end. Start the service with --model for each size",
                unless=MISSING_SIZES,
            )
        return model


class RemoteProxyAdapter(RemoteAdapter):
    """`vim-remote-proxy`: the ViT proxies through the service at VIM_EMBED_URL."""

    own_alias = "vim-remote-proxy"


class InProcessAdapter(VimAdapter):
    """`vim`: in this process, through the service package."""

    own_alias = "vim"

    def _load(self) -> Model:
        from vim_embed_client.platonic.local import LocalModel

        return LocalModel.load(self.model_name)


class InProcessProxyAdapter(InProcessAdapter):
    """`vim-proxy`: the ViT proxies in this process."""

    own_alias = "vim-proxy"


ADAPTERS: tuple[type[VimAdapter], ...] = (
    InProcessAdapter,
    InProcessProxyAdapter,
    RemoteAdapter,
    RemoteProxyAdapter,
)


def _known(granularity: str) -> str:
    if granularity not in GRANULARITIES:
        raise InputError(
            f"unknown granularity {granularity!r}: use one of {', '.join(GRANULARITIES)}"
        )
    return granularity


def _pixels(batch: Mapping[str, Any], mode: str) -> Array:
    """Pixels of a mode; what an Arrow cache widened to other integers becomes uint8 again."""
    if mode not in batch:
        raise InputError(f"the batch has no {mode!r}, but {', '.join(map(repr, batch))}")
    array = as_array(batch[mode])
    if array.ndim != 4:
        raise InputError(f"expected {mode} pixels of shape (B, 3, H, W), got {array.shape}")
    if array.dtype.kind not in "iu" or array.dtype == np.uint8 or not array.size:
        return array
    if array.min() < 0 or array.max() > 255:
        raise InputError(
            f"{mode} pixels of {array.dtype} must be RGB from 0 to 255, "
            f"got {array.min()} to {array.max()}: pass floats if they are normalised"
        )
    return array.astype(np.uint8)


def _complete(array: Array, rows: int, name: str) -> Array:
    """`array`, unless it would let a run end with missing or meaningless rows."""
    if array.ndim != 2 or len(array) != rows:
        raise BadAnswerError(f"{rows} rows went in, but {name} came back as {array.shape}")
    bad = ~np.isfinite(array).all(axis=1)
    if name == LAST:
        bad |= ~array.any(axis=1)
    if bad.any():
        raise BadAnswerError(
            f"{name} of rows {np.flatnonzero(bad)[:10].tolist()} is zero or not finite: check the "
            "model's weights, and compute in float32 if it is served in half precision"
        )
    return array


def _tensor(array: Array) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.require(array, np.float32, ["C", "W"]))
