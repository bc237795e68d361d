"""From pixels to checked rows: out of the cache, or from the model, and counted in the record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict

import numpy as np

from vim_embed_client.errors import BadAnswerError, ConfigurationError
from vim_embed_client.formats import Array
from vim_embed_client.platonic.model import LAST, Model
from vim_embed_client.platonic.row_cache import Row, RowCache, row_keys

Layers = Mapping[str, Array]


class Rows:
    """Rows of one loaded model. cache: where finished ones are kept; None: nowhere.

    wire: in which floats travel, on which the numbers depend. widths: of each layer, by granularity
    (none for the embedding alone), once rows were computed.
    """

    def __init__(self, model: Model, cache: RowCache | None, wire: str) -> None:
        self.model = model
        self.widths: dict[str, dict[str, int]] = {}
        self._cache = cache
        self._wire = wire

    def embed(self, pixels: Array) -> Layers:
        """(B, 3, H, W) to `last_hidden_state` alone, (B, D), every row finite and none zero.

        Raises BadAnswerError for rows that would let a run end with meaningless numbers.
        """
        return self._layers(pixels, "", lambda some: {LAST: self.model.embed(some)})

    def embed_layers(self, pixels: Array, granularity: str) -> Layers:
        """As `embed`, of every layer; the last is `last_hidden_state`."""
        return self._layers(
            pixels, granularity, lambda some: self.model.embed_layers(some, granularity)
        )

    def _layers(
        self, pixels: Array, granularity: str, compute: Callable[[Array], Layers]
    ) -> Layers:
        layers = self._cached_or_computed(pixels, granularity, compute)
        self.widths[granularity] = {name: rows.shape[1] for name, rows in layers.items()}
        return layers

    def _cached_or_computed(
        self, pixels: Array, granularity: str, compute: Callable[[Array], Layers]
    ) -> Layers:
        cache = self._cache
        if cache is None:
            return _checked(compute(pixels), len(pixels))
        keys = row_keys(pixels, self._identity(granularity))
        found = self._found(cache, keys)
        missing = [index for index, key in enumerate(keys) if key not in found]
        if missing:
            some = pixels if len(missing) == len(pixels) else pixels[missing]
            fresh = _checked(compute(some), len(missing))
            if len(missing) == len(pixels):
                self._keep(cache, keys, fresh)
                return fresh
            self._keep(cache, [keys[index] for index in missing], fresh)
            found |= {keys[index]: _row(fresh, place) for place, index in enumerate(missing)}
        rows = [found[key] for key in keys]
        return _checked(
            {name: np.stack([row[name] for row in rows]) for name in rows[0]}, len(rows)
        )

    def _identity(self, granularity: str) -> dict[str, object]:
        """All that numbers depend on beside pixels; two GPUs of one kind are one."""
        said = asdict(self.model.provenance())
        kinds = {name.split(":")[0] for name in str(said["device"]).split(",")}
        return {**said, "device": sorted(kinds), "wire": self._wire, "layers": granularity}

    def _found(self, cache: RowCache, keys: list[bytes]) -> dict[bytes, Row]:
        try:
            return cache.get(keys)
        except ConfigurationError as error:
            return self._go_on_without(error)

    def _keep(self, cache: RowCache, keys: list[bytes], layers: Layers) -> None:
        try:
            cache.put((key, _row(layers, index)) for index, key in enumerate(keys))
        except ConfigurationError as error:
            self._go_on_without(error)

    def _go_on_without(self, error: Exception) -> dict[bytes, Row]:
        """A cache that fails in mid run costs later runs their gain, and this one nothing."""
        if self._cache is not None:
            print(f"[vim-embed] going on without a cache: {error}", flush=True)
        self._cache = None
        return {}


def _row(layers: Layers, index: int) -> Row:
    return {name: rows[index] for name, rows in layers.items()}


def _checked(layers: Layers, count: int) -> Layers:
    if not layers or list(layers)[-1] != LAST:
        raise BadAnswerError(f"the layers do not end with {LAST}: {', '.join(layers)}")
    for name, rows in layers.items():
        _check_complete(rows, count, name)
    return layers


def _check_complete(rows: Array, count: int, name: str) -> None:
    """Raise BadAnswerError where a run would end with missing or meaningless rows."""
    if rows.ndim != 2 or len(rows) != count:
        raise BadAnswerError(f"{count} rows went in, but {name} came back as {rows.shape}")
    bad = ~np.isfinite(rows).all(axis=1)
    if name == LAST:
        bad |= ~rows.any(axis=1)
    if bad.any():
        raise BadAnswerError(
            f"{name} of rows {np.flatnonzero(bad)[:10].tolist()} is zero or not finite: check the "
            "model's weights, and compute in float32 if it is served in half precision"
        )
