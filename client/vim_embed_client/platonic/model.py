"""What an adapter needs of a model, wherever it runs; the two kinds are remote.py and local.py."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, Protocol, Self

from vim_embed_client.errors import ConfigurationError
from vim_embed_client.formats import Array
from vim_embed_client.results import Provenance

LAST = "last_hidden_state"


class Spec(NamedTuple):
    """How an image becomes pixels: resized to image_size squared, scaled to [0, 1], normalised.

    interpolation: a Pillow filter in lower case. mean, std: of the channels, in RGB order.
    resize_to: first resized to this many pixels squared, then image_size is cut out of the centre;
    0: without a cut. keep_aspect: that side is the shorter one, of an image in proportion.
    """

    image_size: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize_to: int = 0
    keep_aspect: bool = False


class Model(Protocol):
    """A loaded model. Pixels are (B, 3, H, W): uint8 resized RGB, or normalised floats."""

    @property
    def spec(self) -> Spec: ...

    def describe(self) -> str:
        """Which weights and which backend answer, in one line."""
        ...

    def provenance(self) -> Provenance:
        """What the numbers depend on beside the pixels."""
        ...

    def embed(self, pixels: Array) -> Array:
        """(B, D) float32, in the order of the rows."""
        ...

    def embed_layers(self, pixels: Array, granularity: str) -> Mapping[str, Array]:
        """Layer name -> (B, D) float32; the last is `last_hidden_state`, what `embed` gives."""
        ...

    def layer_names(self, granularity: str) -> list[str]:
        """Names of `embed_layers`, in its order."""
        ...

    def layer_kinds(self, granularity: str) -> dict[str, str]:
        """Layer name -> class of the module; `last_hidden_state` is no module."""
        ...

    def module(self) -> Any:
        """The torch module, in evaluation mode; one without submodules where it is elsewhere."""
        ...

    def half(self) -> Self:
        """The same weights computed in half precision. Raises ConfigurationError without."""
        ...


def check_pooling(pooling: str, known: Collection[str], model: str) -> None:
    """Raise ConfigurationError for a pooling that a model has not."""
    if pooling not in known:
        takes = ", ".join(name for name in known if name != "tokens")
        raise ConfigurationError(
            f"{model} cannot be pooled by {pooling}: set VIM_EMBED_POOLING to one of {takes}"
        )
