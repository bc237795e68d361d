"""A model behind a service: checks it at load, and waits for a service that goes away."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self, TypeVar

import numpy as np

from vim_embed_client.client import Client
from vim_embed_client.errors import (
    ConfigurationError,
    ConnectionLostError,
    DrainingError,
    NotReadyError,
    ProvenanceChangedError,
    QueueFullError,
    ServerUnreachableError,
    TimedOutError,
    UnexpectedStatusError,
    UnknownModelError,
    VimEmbedError,
)
from vim_embed_client.formats import Array
from vim_embed_client.platonic.aliases import Twin, serve_argument, served_name
from vim_embed_client.platonic.model import Spec, check_pooling
from vim_embed_client.results import ModelEntry, ModelList, Provenance

T = TypeVar("T")
V = TypeVar("V")

DEFAULT_PATIENCE_S = 600.0
_POLL_S = 1.0
_ROWS = 64
_AWAY = (
    ServerUnreachableError,
    ConnectionLostError,
    TimedOutError,
    NotReadyError,
    DrainingError,
    QueueFullError,
)
_BAD_GATEWAY = (502, 503, 504)
_HALF = ("float16", "bfloat16")
_WITHIN = "model."  # where the service has an encoder of transformers

# Services that answered this process before: a run in its course waits for them.
_seen: set[str] = set()


class RemoteModel:
    """One model of a service. `connect` is the way to get one.

    within: where in the service's module the model is that the host knows; its layers are named
    from there on, as the host's own adapters name them.
    """

    def __init__(
        self, client: Client, entry: ModelEntry, patience: float, pooling: str, within: str = ""
    ) -> None:
        preprocessing = entry["preprocessing"]
        self.spec: Spec = Spec(
            preprocessing["image_size"],
            preprocessing["interpolation"],
            tuple(preprocessing["mean"]),
            tuple(preprocessing["std"]),
            preprocessing.get("resize_to", 0),
            preprocessing.get("keep_aspect", False),
        )
        check_pooling(pooling, entry["poolings"], entry["name"])
        self._pooling = pooling
        self._within = within
        self._entry = entry
        self._patience = patience
        self._client = client.with_options(rows_per_request=_rows(entry))
        self._provenance: Provenance | None = None

    @classmethod
    def connect(cls, model: str, pooling: str, twin: Twin | None = None) -> Self:
        """Ask the service at VIM_EMBED_URL for a model that is ready to answer.

        twin: of which of the host's own models it is to be one; then the last part of the Hub's
        name will do, too. Raises VimEmbedError at once where there is no service, no such model, a
        wrong key, no such pooling, or the model is not ready. A service that answered this process
        before is waited for.
        """
        patience = patience_from_environment()
        client = Client()
        asked = _Patience(patience if client.base_url in _seen else 0.0, client.base_url)
        try:
            entry = asked.until_done(lambda: _ready_entry(client, model, twin))
            connected = cls(client, entry, patience, pooling, _WITHIN if twin else "")
        except BaseException:
            client.close()
            raise
        _seen.add(client.base_url)
        weakref.finalize(connected, client.close)  # the host only drops its adapters
        return connected

    def describe(self) -> str:
        entry, weights = self._entry, self._entry["weights"]
        revision = f" at {weights['revision']}" if weights["revision"] else ""
        warning = "; RANDOM WEIGHTS: the numbers mean nothing" if weights["random"] else ""
        return (
            f"{entry['name']} at {self._client.base_url}: {weights['source']}{revision} "
            f"({weights['digest']}), {entry['backend']} on {entry['device']} "
            f"in {entry['dtype']}, pooling {self._pooling}{warning}"
        )

    def provenance(self) -> Provenance:
        """What the service says of its answers; before the first one, it embeds a black image."""
        if self._provenance is None:
            self.embed(np.zeros((1, 3, self.spec.image_size, self.spec.image_size), np.uint8))
        assert self._provenance is not None
        return self._provenance

    def embed(self, pixels: Array) -> Array:
        def call() -> Array:
            answer = self._client.embed(
                pixels, model=self._entry["name"], wire=_wire(pixels), pooling=self._pooling
            )
            self._check(answer.provenance)
            return answer.embeddings

        return self._patiently(call)

    def embed_layers(self, pixels: Array, granularity: str) -> Mapping[str, Array]:
        def call() -> Mapping[str, Array]:
            answer = self._client.embed_layers(
                pixels,
                granularity=granularity,
                model=self._entry["name"],
                wire=_wire(pixels),
                pooling=self._pooling,
            )
            self._check(answer.provenance)
            return self._named(answer.layers)

        return self._patiently(call)

    def layer_names(self, granularity: str) -> list[str]:
        names = self._patiently(lambda: self._client.layers(self._entry["name"], granularity))
        return list(self._named(dict.fromkeys(names)))

    def layer_kinds(self, granularity: str) -> dict[str, str]:
        name = self._entry["name"]
        return self._named(self._patiently(lambda: self._client.layer_kinds(name, granularity)))

    def missing(self, models: Iterable[str], *, twins: bool = False) -> list[str]:
        """Which of these names the service does not have, or could not load."""
        listed = self._patiently(self._client.models)
        return missing_twins(listed, models) if twins else missing_models(listed, models)

    def module(self) -> Any:
        """A torch module that asks the service: its parts are there, not here."""
        from vim_embed_client.platonic.module import ServedModule

        return ServedModule(self.embed)

    def half(self) -> Self:
        """The served model of the same weights with a half-precision dtype."""
        if self._entry["dtype"] in _HALF:
            return self
        name, digest = self._entry["name"], self._entry["weights"]["digest"]
        listed = self._patiently(self._client.models)["models"]
        for dtype in _HALF:
            for entry in listed:
                same = entry["state"] == "ready" and entry["weights"]["digest"] == digest
                if same and entry["dtype"] == dtype:
                    return type(self)(
                        self._client, entry, self._patience, self._pooling, self._within
                    )
        raise ConfigurationError(
            f"{self._client.base_url} has no half-precision twin of {name}: start it with "
            f"--model {name} --model {name}-float16, or run without AMP"
        )

    def _named(self, layers: Mapping[str, V]) -> dict[str, V]:
        """Layers by the host's names, without the whole model, which is `last_hidden_state`."""
        whole = self._within.removesuffix(".")
        return {k.removeprefix(self._within): v for k, v in layers.items() if k != whole}

    def _patiently(self, call: Callable[[], T]) -> T:
        return _Patience(self._patience, self._client.base_url).until_done(call)

    def _check(self, provenance: Provenance) -> None:
        """Raise ProvenanceChangedError unless everything so far came from one model."""
        changed = self._provenance.differences(provenance) if self._provenance else []
        if provenance.weights_digest != self._entry["weights"]["digest"]:
            changed.append("weights_digest")
        if provenance.preprocessing_digest != self._entry["preprocessing"]["digest"]:
            changed.append("preprocessing_digest")
        if changed:
            raise ProvenanceChangedError(
                f"{self._client.base_url} changed during the run ({', '.join(sorted(set(changed)))}"
                "): was it restarted with other weights or settings? Start the run again"
            )
        self._provenance = self._provenance or provenance


class _Patience:
    """Tries a call again while its service is away, for `seconds` from the first failure."""

    def __init__(self, seconds: float, url: str) -> None:
        self._seconds = seconds
        self._url = url
        self._until: float | None = None

    def until_done(self, call: Callable[[], T]) -> T:
        while True:
            try:
                return call()
            except VimEmbedError as error:
                if not _is_away(error):
                    raise
                self._wait(error)

    def _wait(self, error: VimEmbedError) -> None:
        """Sleep; raise `error` where the time is over."""
        now = time.monotonic()
        if self._until is None:
            self._until = now + self._seconds
            if self._seconds:
                print(
                    f"[vim-embed] {self._url} is away ({error}); "
                    f"waiting up to {self._seconds:g} s for it",
                    flush=True,
                )
        if now >= self._until:
            raise error
        time.sleep(min(_POLL_S, self._until - now))


def patience_from_environment() -> float:
    """Seconds from VIM_EMBED_PATIENCE. Raises ConfigurationError for anything else."""
    text = os.environ.get("VIM_EMBED_PATIENCE") or str(DEFAULT_PATIENCE_S)
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ConfigurationError(
            f"VIM_EMBED_PATIENCE is {text!r}: use the seconds to wait for a service that goes away"
        )
    return seconds


def _is_away(error: VimEmbedError) -> bool:
    if isinstance(error, UnexpectedStatusError):
        return error.status_code in _BAD_GATEWAY
    return isinstance(error, _AWAY)


def missing_models(listed: ModelList, wanted: Iterable[str]) -> list[str]:
    """Which of the wanted names a service does not have, or could not load."""
    served = {
        name
        for entry in listed["models"]
        if entry["state"] != "failed"
        for name in (entry["name"], *entry["aliases"])
    }
    return [name for name in wanted if name not in served]


def missing_twins(listed: ModelList, wanted: Iterable[str]) -> list[str]:
    """As `missing_models`, of names in the host's tables of its own models."""
    found = {model: find_twin(listed, model) for model in wanted}
    return [name for name, entry in found.items() if entry is None or entry["state"] == "failed"]


def find_twin(listed: ModelList, model: str) -> ModelEntry | None:
    """The served model that is the host's `model`: by its name, an alias, or where it is from."""
    entries = listed["models"]
    for fits in (
        lambda entry: entry["name"] == served_name(model),
        lambda entry: model in entry["aliases"],
        lambda entry: entry.get("weights", {}).get("source") == model,
    ):
        for entry in entries:
            if fits(entry):
                return entry
    return None


def _ready_entry(client: Client, model: str, twin: Twin | None) -> ModelEntry:
    entry = _twin_entry(client, model, twin) if twin else _named_entry(client, model)
    if entry["state"] == "loading":
        raise NotReadyError(
            f"{model} is still loading at {client.base_url}: run again "
            "once `vim-embed health` says that it is ready"
        )
    if entry["state"] != "ready":
        raise ConfigurationError(
            f"{model} failed to load at {client.base_url}: {entry['reason']}. "
            "Restart the service with weights that load"
        )
    if twin and entry.get("family") not in twin.families:
        raise ConfigurationError(
            f"{entry['name']} at {client.base_url} is a model of the family "
            f"{entry.get('family')!r}, not {' or '.join(twin.families)}: serve {model} with "
            f"`vim-embed-server serve --model {serve_argument(model)}`"
        )
    return entry


def _named_entry(client: Client, model: str) -> ModelEntry:
    try:
        return client.model(model)
    except UnknownModelError as error:
        raise UnknownModelError(
            f"{client.base_url} does not serve {model} ({error.message}): start the service with "
            "--model for each size of the run, `vim-embed models` lists what it has",
            request_id=error.request_id,
        ) from None


def _twin_entry(client: Client, model: str, twin: Twin) -> ModelEntry:
    listed = client.models()
    entry = find_twin(listed, model)
    if entry is None:
        names = ", ".join(each["name"] for each in listed["models"])
        raise UnknownModelError(
            f"{client.base_url} does not serve {model}, but {names}: start the service with "
            f"`vim-embed-server serve --model {serve_argument(model)}`, or with a folder of its "
            f"files, --model {served_name(model)}=hf:FOLDER"
        )
    return entry


def _rows(entry: ModelEntry) -> int:
    """Rows of one request that the service's limits admit, even of float32 pixels."""
    limits = entry["limits"]
    row_bytes = 3 * entry["preprocessing"]["image_size"] ** 2 * 4
    return max(1, min(_ROWS, limits["max_rows"], limits["max_body_bytes"] // row_bytes - 1))


def _wire(pixels: Array) -> str:
    half = os.environ.get("VIM_EMBED_WIRE") == "float16" and pixels.dtype.kind == "f"
    return "float16" if half else "auto"
