"""A model in this process, through the service package and its settings (VIM_EMBED_*)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from vim_embed_client.errors import ServiceNotInstalledError
from vim_embed_client.formats import Array
from vim_embed_client.platonic.model import Spec, check_pooling
from vim_embed_client.results import Provenance

if TYPE_CHECKING:
    from vim_embed.inference.embedder import Embedder
    from vim_embed.settings import Settings
    from vim_embed.weights.catalogue import CatalogueEntry


@dataclass(frozen=True)
class LocalModel:
    """One model of this process. `load` is the way to get one."""

    _entry: CatalogueEntry
    _settings: Settings
    _embedder: Embedder
    _pooling: str

    @classmethod
    def load(cls, model: str, pooling: str) -> Self:
        """Load a catalogue name or Hub id as `vim-embed-server serve` would.

        VIM_EMBED_MODELS may name other weights for it (vim-tiny=/data/my_vim.pth).
        Raises ServiceNotInstalledError, or the service package's own errors.
        """
        try:
            from vim_embed.settings import Settings
            from vim_embed.weights.catalogue import parse_model
            from vim_embed.weights.load import load_model  # noqa: F401  needs torch
        except ModuleNotFoundError as error:
            raise ServiceNotInstalledError(
                f'models in this process need {error.name}: pip install "vim-embed[service]", '
                "or use vim-remote with a running service"
            ) from None
        settings = Settings()
        wanted = parse_model(model)
        configured = (parse_model(argument) for argument in settings.models)
        entry = next((e for e in configured if e.name == wanted.name), wanted)
        embedder = _loaded(entry, settings)
        check_pooling(pooling, embedder.info.poolings, entry.name)
        return cls(entry, settings, embedder, pooling)

    @property
    def spec(self) -> Spec:
        found = self._embedder.info.preprocessing
        return Spec(
            found.image_size,
            found.interpolation,
            found.mean,
            found.std,
            found.resize_to,
            found.keep_aspect,
        )

    def describe(self) -> str:
        info = self._embedder.info
        weights = info.weights
        revision = f" at {weights.revision}" if weights.revision else ""
        dtype_reason = f" ({info.dtype_reason})" if info.dtype_reason else ""
        warning = "; RANDOM WEIGHTS: the numbers mean nothing" if weights.random else ""
        return (
            f"{info.name} in this process: {weights.source}{revision} ({weights.digest}), "
            f"{info.backend} on {info.device} in {info.dtype}{dtype_reason}, "
            f"pooling {self._pooling}{warning}"
        )

    def provenance(self) -> Provenance:
        import vim_embed

        info, exact = self._embedder.info, self._settings.exact
        return Provenance(
            model=info.name,
            revision=info.weights.revision or "",
            weights_digest=info.weights.digest,
            family=info.family,
            preprocessing_digest=info.preprocessing.digest,
            pooling=self._pooling,
            dtype=info.dtype,
            backend=info.backend,
            device=info.device,
            exact=exact,
            exact_rows=str(info.exact_rows) if exact else "",
            random_weights=info.weights.random,
            version=vim_embed.__version__,
        )

    def embed(self, pixels: Array) -> Array:
        return self._embedder.embed(pixels, self._pooling, exact=self._settings.exact)

    def embed_layers(self, pixels: Array, granularity: str) -> Mapping[str, Array]:
        exact = self._settings.exact
        return self._embedder.embed_layers(pixels, granularity, self._pooling, exact=exact)

    def layer_names(self, granularity: str) -> list[str]:
        return self._embedder.layer_names()[granularity]

    def layer_kinds(self, granularity: str) -> dict[str, str]:
        kinds = self._embedder.layer_kinds()
        return {name: kinds[name] for name in self.layer_names(granularity) if name in kinds}

    def module(self) -> Any:
        return self._embedder.module

    def half(self) -> Self:
        if not self._embedder.info.dtype.startswith("float32"):
            return self
        from vim_embed.engines.in_process import load_in_process

        embedder = load_in_process(self._entry, self._settings, dtype="float16")
        return type(self)(self._entry, self._settings, embedder, self._pooling)


def _loaded(entry: CatalogueEntry, settings: Settings) -> Embedder:
    """With those of the settings' certificates that are for it; the others are for other models."""
    from vim_embed.engines.certified import check_used, read_certificates
    from vim_embed.engines.in_process import load_in_process

    mine = [one for one in read_certificates(settings.certificates) if one.is_for(entry.name)]
    check_used(mine, [entry], settings.dtype)
    return load_in_process(entry, settings, mine)
