"""The adapters that the host's experiments drive, for its release 0.1.0 and its development head.

They have the methods of the host's `ModelAdapter` without inheriting from it, so that importing
them loads neither the host nor torch. Where the pixels go is in remote.py and local.py.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.formats import Array
from vim_embed_client.pixels import as_array, as_pixels
from vim_embed_client.platonic.ahead import Ahead
from vim_embed_client.platonic.aliases import (
    ALIASES,
    TWINS,
    Names,
    Twin,
    named_by_alias,
    serve_argument,
)
from vim_embed_client.platonic.model import LAST, Model
from vim_embed_client.platonic.processor import ImageProcessor
from vim_embed_client.platonic.record import SUFFIX, RunRecord
from vim_embed_client.platonic.requirements import MISSING_SIZES, check_polars, refuse
from vim_embed_client.platonic.row_cache import RowCache
from vim_embed_client.platonic.rows import Layers, Rows
from vim_embed_client.platonic.settings import RunSettings

if TYPE_CHECKING:
    import torch

GRANULARITIES = ("blocks", "residual", "leaves", "all")
_UNPOOLED = "features"  # what layers do not have
_GALAXIES = "galaxies"  # the one mode of the host's physics tests, which take no pair


class VimAdapter(ABC):
    """One model for the host: `load()`, then pixels in, float32 CPU tensors out.

    model_name: a Hub id or a name of the catalogue. size, alias: the host's names for it.
    processor: images to pixels, once loaded. The alias decides between Vim and the ViT proxies:
    with `vim-proxy`, the name of a Vim stands for the proxy of its size. own_alias: the alias
    where none is given. pooling: unless VIM_EMBED_POOLING names another.
    """

    own_alias: ClassVar[str | None] = None
    pooling: ClassVar[str] = "mean"

    def __init__(self, model_name: str, size: str, alias: str | None = None) -> None:
        self.model_name = named_by_alias(model_name, size, alias or self.own_alias)
        self._asked = model_name
        self.size = size
        self.alias = alias
        self.processor: ImageProcessor | None = None
        self._settings = RunSettings()
        self._use_amp = False
        self._loaded: Rows | None = None
        self._half: Rows | None = None
        self._cache: RowCache | None = None
        self._ahead: Ahead | None = None
        self._modes: list[str] = []
        self._records: dict[str, RunRecord] = {}
        self._sent: Counter[str] = Counter()

    @abstractmethod
    def _load(self, pooling: str) -> Model: ...

    def load(self, compile_model: bool = False) -> None:
        """Make the model ready and print what will answer; failures say what to do.

        compile_model: has no effect: the fastest kernels are always chosen. Raises
        ConfigurationError for what would cost the run its results, unless VIM_EMBED_ALLOW has it.
        """
        check_polars()
        self._settings = settings = RunSettings.from_environment()
        model = self._load(settings.pooling or self.pooling)
        self._cache = RowCache(settings.cache, settings.cache_bytes) if settings.cache else None
        self._loaded, self._half = Rows(model, self._cache, settings.wire), None
        self._ahead = Ahead(settings.ahead) if settings.ahead else None
        self._records, self._sent = {}, Counter()
        self.processor = ImageProcessor(model.spec, settings.wire)
        self._print(model)
        if self.model_name != self._asked:
            print(f"[{self.alias or self.own_alias}] in place of {self._asked}", flush=True)
        self.enable_amp(self._use_amp)

    @property
    def model(self) -> Any:
        """The loaded torch module, as `pu.arch_map` walks it; an empty one for a service's model.

        Raises ConfigurationError before load().
        """
        return self._rows().model.module()

    def enable_amp(self, enabled: bool = True) -> None:
        """Compute in half precision from now on, or no longer. Raises where that is impossible."""
        self._use_amp = enabled
        if enabled and self._loaded is not None and self._half is None:
            half = self._loaded.model.half()
            self._half = Rows(half, self._cache, self._settings.wire)
            self._print(half)

    def get_preprocessor(
        self, modes: Iterable[str], resize: bool = False, resize_mode: str = "fill"
    ) -> Any:
        """The host's own preprocessor of galaxies, ending in pixels for this model."""
        from pu.preprocess import PreprocessHF

        self._rows()
        self._modes = list(modes)
        self._records, self._sent = {}, Counter()  # of the run over data that begins
        known = inspect.signature(PreprocessHF).parameters
        options = {"resize": resize, "resize_mode": resize_mode, "alias": self.alias}
        return PreprocessHF(
            list(self._modes), self.processor, **{k: v for k, v in options.items() if k in known}
        )

    def embed_for_mode(self, batch: Mapping[str, Any], mode: str) -> torch.Tensor:
        """`batch[mode]` is (B, 3, H, W), resized RGB from 0 to 255 or normalised floats.

        Returns (B, D) float32 on the CPU, in the order of the rows. The first call waits for its
        numbers; later ones give tensors that wait when they are used, while VIM_EMBED_AHEAD calls
        at most are under way. Raises InputError for pixels that cannot be embedded; another
        VimEmbedError rather than miss a row, which names its batch and comes with the next call
        or with the tensor's first use.
        """
        rows = self._rows()
        return self._call(batch, mode, "", rows.embed)[LAST]

    def supports_layerwise(self) -> bool:
        return (self._settings.pooling or self.pooling) != _UNPOOLED

    def get_layer_names(self, granularity: str = "blocks") -> list[str]:
        """Names of the layers in order; the last is `last_hidden_state`."""
        return self._rows().model.layer_names(_known(granularity))

    def get_num_layers(self, granularity: str = "blocks") -> int:
        return len(self.get_layer_names(granularity))

    def get_layer_info(self, granularity: str = "blocks") -> dict[str, str]:
        """Layer name -> class name of the module, so without `last_hidden_state`."""
        return self._rows().model.layer_kinds(_known(granularity))

    def embed_all_layers_for_mode(
        self, batch: Mapping[str, Any], mode: str, granularity: str = "blocks"
    ) -> dict[str, torch.Tensor]:
        """Layer name -> (B, D) float32 in order; `last_hidden_state` equals `embed_for_mode`."""
        rows = self._rows()
        _known(granularity)
        return self._call(
            batch, mode, granularity, lambda pixels: rows.embed_layers(pixels, granularity)
        )

    def _call(
        self,
        batch: Mapping[str, Any],
        mode: str,
        granularity: str,
        compute: Callable[[Array], Layers],
    ) -> dict[str, torch.Tensor]:
        """The rows of a batch: waited for, or behind the caller's back where that is wanted."""
        rows, pixels = self._rows(), _pixels(batch, mode)
        first = self._sent[mode]
        self._sent[mode] += len(pixels)
        place = f"rows {first} to {first + len(pixels) - 1} of {mode}"
        record = partial(self._record, rows.model, mode, granularity)

        def call(taken: Array) -> dict[str, torch.Tensor]:
            with _naming(place):
                layers = compute(taken)
                record(layers[LAST])
            return {name: _tensor(found) for name, found in layers.items()}

        if self._ahead is None:
            return call(pixels)
        widths = rows.widths.get(granularity)
        if widths is None:  # so that what is wrong from the start is said at the start
            waited: dict[str, torch.Tensor] = self._ahead.submit(lambda: call(pixels)).result()
            return waited
        from vim_embed_client.platonic.lazy import lazy_layers

        kept, check = _kept(batch[mode], pixels)

        def checked_call() -> dict[str, torch.Tensor]:
            found = call(kept)
            with _naming(place):
                check()
            return found

        return lazy_layers(self._ahead.submit(checked_call), len(pixels), widths)

    def _record(self, model: Model, mode: str, granularity: str, rows: Array) -> None:
        """Count rows in the file beside the host's table; runs where the rows are computed."""
        physics = not self._modes and mode == _GALAXIES
        folder, alias = self._settings.record, self.alias
        if folder is None or alias is None or not (self._modes or physics):
            return
        stem = f"{'physics' if physics else self._modes[-1]}_{alias}"
        column = f"{alias}_{self.size.lstrip('0')}_{mode}".lower()
        if granularity:
            stem, column = f"{stem}_layerwise", f"{LAST}_{mode}"
        record = self._records.get(stem)
        if record is None:
            about = {**asdict(model.provenance()), "asked_for": self.model_name}
            record = RunRecord(folder / (stem + SUFFIX), self.size, about)
            self._records[stem] = record
        record.add(column, rows)

    def _rows(self) -> Rows:
        if self._loaded is None:
            raise ConfigurationError(f"{self.model_name} is not loaded: call load() first")
        return self._half if self._use_amp and self._half is not None else self._loaded

    def _print(self, model: Model) -> None:
        print(f"[{self.alias or type(self).__name__} {self.size}] {model.describe()}", flush=True)


class RemoteAdapter(VimAdapter):
    """`vim-remote`: through the service at VIM_EMBED_URL.

    names: of all sizes that a run of this alias goes through. twin: of which of the host's models.
    """

    own_alias = "vim-remote"
    names: ClassVar[tuple[str, ...]] = ALIASES["vim-remote"]
    twin: ClassVar[Twin | None] = None

    def _load(self, pooling: str) -> Model:
        from vim_embed_client.platonic.remote import RemoteModel

        model = RemoteModel.connect(self.model_name, pooling, self.twin)
        wanted = self.names if self.alias == self.own_alias else ()
        missing = model.missing(wanted, twins=self.twin is not None)
        if missing:
            serve = " ".join(f"--model {serve_argument(name)}" for name in missing)
            refuse(
                f"the service lacks {', '.join(missing)}: an experiment over all sizes of "
                f"{self.alias} stops there, and platonic-universe 0.1.0 writes its table only at "
                f"the end. Start the service with {serve} too, or run one size, "
                f"--model {self.alias}-{self.size}",
                unless=MISSING_SIZES,
            )
        return model


class RemoteProxyAdapter(RemoteAdapter):
    """`vim-remote-proxy`: the ViT proxies through the service at VIM_EMBED_URL."""

    own_alias = "vim-remote-proxy"
    names = ALIASES["vim-remote-proxy"]


class InProcessAdapter(VimAdapter):
    """`vim`: in this process, through the service package."""

    own_alias = "vim"

    def _load(self, pooling: str) -> Model:
        from vim_embed_client.platonic.local import LocalModel

        return LocalModel.load(self.model_name, pooling)


class InProcessProxyAdapter(InProcessAdapter):
    """`vim-proxy`: the ViT proxies in this process."""

    own_alias = "vim-proxy"


ADAPTERS: tuple[type[VimAdapter], ...] = (
    InProcessAdapter,
    InProcessProxyAdapter,
    RemoteAdapter,
    RemoteProxyAdapter,
)


def for_one_size(adapter: type[VimAdapter], alias: str) -> type[VimAdapter]:
    """The adapter under an alias of one size, `vim-remote-tiny`."""
    return type(f"{adapter.__name__}OfOneSize", (adapter,), {"own_alias": alias, "names": ()})


def twin_of(host_alias: str, alias: str, names: Names) -> type[RemoteAdapter]:
    """The remote twin of one of the host's own models; names: of its sizes in the host's table.

    Raises ConfigurationError for a model that has no twin.
    """
    if host_alias not in TWINS:
        raise ConfigurationError(
            f"this vim-embed knows no remote twin of {host_alias}: upgrade it, or attach again"
        )
    twin = TWINS[host_alias]
    own = {"own_alias": alias, "names": tuple(names.values())}
    return type("TwinAdapter", (RemoteAdapter,), {**own, "twin": twin, "pooling": twin.pooling})


@contextmanager
def _naming(place: str) -> Iterator[None]:
    """Errors within say which rows they are about."""
    try:
        yield
    except Exception as error:
        error.add_note(f"while embedding {place}")
        raise


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
        return as_pixels(array)
    if array.min() < 0 or array.max() > 255:
        raise InputError(
            f"{mode} pixels of {array.dtype} must be RGB from 0 to 255, "
            f"got {array.min()} to {array.max()}: pass floats if they are normalised"
        )
    return array.astype(np.uint8)


def _kept(values: Any, pixels: Array) -> tuple[Array, Callable[[], None]]:
    """Pixels that stay as they are while they are sent, and a check of that for afterwards.

    torch counts changes of a tensor, so its memory can be shared; other memory is copied.
    """
    try:
        version = values._version
    except (AttributeError, RuntimeError):  # no tensor, or one of inference mode
        return pixels.copy(), lambda: None

    def check() -> None:
        if values._version != version:
            raise InputError(
                "the pixels were changed before they were embedded: give each batch a tensor of "
                "its own, or set VIM_EMBED_AHEAD=0"
            )

    return pixels, check


def _tensor(array: Array) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.require(array, np.float32, ["C", "W"]))
