"""What runs models: the interface, and a deterministic engine without torch.

An engine knows models, devices and batches of pixels; it knows neither requests nor HTTP.
`stage` may run in one thread while `run` runs in another, each from one thread at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from vim_embed.models.info import EMBEDDING, EmbedOptions, ModelInfo, Weights
from vim_embed.pixels import PixelArray
from vim_embed.preprocess import Preprocessing

Outputs = dict[str, NDArray[np.float32]]
State = Literal["loading", "ready", "failed"]


@dataclass(frozen=True)
class ModelStatus:
    """A configured model: `info` once it is ready, until then why not, or what it is at."""

    name: str
    aliases: tuple[str, ...]
    state: State
    reason: str | None = None
    info: ModelInfo | None = None


class Staged(Protocol):
    """A batch that is ready to run."""

    @property
    def rows(self) -> int: ...


class Engine(Protocol):
    """Runs batches. One instance serves one device."""

    def load(self) -> None:
        """Load every configured model; a model that fails is recorded as such. Blocking."""

    def status(self) -> Mapping[str, ModelStatus]:
        """Every configured model by name, in the order of the settings."""
        ...

    def layer_names(self, model: str, granularity: str) -> list[str]:
        """The layers that `EmbedOptions(layers=granularity)` gives, in order."""
        ...

    def layer_kinds(self, model: str) -> Mapping[str, str]:
        """Of every layer that is a module, the name of its class."""
        ...

    def batch_rows(self, model: str, shape: tuple[int, ...]) -> int:
        """How many rows of this (3, H, W) shape go well into one batch."""
        ...

    def memory(self) -> Mapping[tuple[str, str], int]:
        """Bytes of GPU memory by (device, `allocated` or `reserved`); empty on a CPU."""
        ...

    def stage(self, model: str, parts: Sequence[PixelArray], options: EmbedOptions) -> Staged:
        """Gather rows (n_i, 3, H, W) of one dtype into a batch, near the device."""
        ...

    def run(self, staged: Staged) -> Outputs:
        """Embed a staged batch: named float32 arrays (rows, D) in row order."""
        ...


@dataclass(frozen=True)
class _ArithmeticBatch:
    pixels: NDArray[np.float64]
    options: EmbedOptions

    @property
    def rows(self) -> int:
        return len(self.pixels)


class ArithmeticEngine:
    """A deterministic engine without torch, for tests of everything above the engine.

    A row's embedding is the mean and the standard deviation of each channel, the position-weighted
    sum of all pixels, and the pooling's index: it changes when rows are swapped or pixels move.
    """

    DIM = 8

    def __init__(self, names: Sequence[str] = ("arithmetic",), *, image_size: int = 8) -> None:
        self.image_size = image_size
        self._names = tuple(names)
        self._ready = False

    def load(self) -> None:
        self._ready = True

    def status(self) -> Mapping[str, ModelStatus]:
        return {
            name: ModelStatus(
                name, (), "ready" if self._ready else "loading", None, self._info(name)
            )
            for name in self._names
        }

    def layer_names(self, model: str, granularity: str) -> list[str]:
        return ["first", "last_hidden_state"]

    def layer_kinds(self, model: str) -> Mapping[str, str]:
        return {"first": "Negation"}

    def batch_rows(self, model: str, shape: tuple[int, ...]) -> int:
        return 16

    def memory(self) -> Mapping[tuple[str, str], int]:
        return {}

    def stage(self, model: str, parts: Sequence[PixelArray], options: EmbedOptions) -> Staged:
        return _ArithmeticBatch(np.concatenate(parts).astype(np.float64), options)

    def run(self, staged: Staged) -> Outputs:
        assert isinstance(staged, _ArithmeticBatch)
        pixels, options = staged.pixels, staged.options
        weights = np.linspace(1, 2, pixels[0].size).reshape(pixels[0].shape)
        place = (pixels * weights).mean(axis=(1, 2, 3))
        pooling = np.full(len(pixels), len(options.pooling))
        spread = [pixels.mean(axis=(2, 3)), pixels.std(axis=(2, 3))]
        out = np.concatenate([*spread, place[:, None], pooling[:, None]], axis=1)
        embedding = out.astype(np.float32)
        if options.layers is None:
            return {EMBEDDING: embedding}
        return {"first": -embedding, "last_hidden_state": embedding}

    def _info(self, name: str) -> ModelInfo:
        half = (0.5, 0.5, 0.5)
        return ModelInfo(
            name=name,
            kind="arithmetic",
            dim=self.DIM,
            dtype="float32",
            device="cpu",
            backend="numpy",
            backend_reason="a deterministic engine for tests",
            weights=Weights(source="none", revision=None, file=None, digest="sha256:0"),
            preprocessing=Preprocessing(
                image_size=self.image_size, interpolation="bicubic", mean=half, std=half
            ),
            min_size=1,
            any_size=True,
        )
