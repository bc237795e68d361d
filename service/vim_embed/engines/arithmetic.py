"""A deterministic engine without torch, for tests of everything above the engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vim_embed.engines.interface import Golden, ModelStatus, Outputs, Staged, State
from vim_embed.types.model_info import (
    EMBEDDING,
    GRANULARITIES,
    CheckedOutput,
    EmbedOptions,
    LoadCheck,
    ModelInfo,
    Weights,
)
from vim_embed.types.pixels import PixelArray
from vim_embed.types.preprocessing import Preprocessing

_KNOWN = ("ready", "idle")


@dataclass(frozen=True)
class _ArithmeticBatch:
    pixels: NDArray[np.float64]
    options: EmbedOptions

    @property
    def rows(self) -> int:
        return len(self.pixels)


class ArithmeticEngine:
    """A deterministic engine without torch, for tests of everything above the engine.

    `device` is its name. A row's embedding is the mean and the standard deviation of each channel,
    the position-weighted sum of all pixels, and the pooling's index: it changes when rows are
    swapped or pixels move.
    """

    DIM = 8
    at_once = 1
    stages_ahead = True

    def __init__(
        self, names: Sequence[str] = ("arithmetic",), *, image_size: int = 8, device: str = "cpu"
    ) -> None:
        self.image_size = image_size
        self.device = device
        self._states: dict[str, State] = dict.fromkeys(names, "loading")

    def load(self) -> None:
        self._states = dict.fromkeys(self._states, "ready")

    def known_name(self, name: str) -> str:
        if name not in self._states:
            raise ValueError(f"no model {name!r}: use one of {', '.join(self._states)}")
        return name

    def load_model(self, name: str) -> None:
        self._states[name] = "ready"

    def unload(self, name: str) -> None:
        self._states[name] = "unloaded"

    def rest(self, name: str, reason: str) -> None:
        self._states[name] = "idle"

    def restart(self) -> None:
        return None

    def golden(self, model: str) -> Golden:
        random = np.random.default_rng(0)
        shape = (1, 3, self.image_size, self.image_size)
        pixels = random.integers(0, 256, shape, dtype=np.uint8)
        batch = _ArithmeticBatch(pixels.astype(np.float64), EmbedOptions())
        return Golden(pixels, ArithmeticEngine.run(self, batch)[EMBEDDING], 1e-6)

    def status(self) -> Mapping[str, ModelStatus]:
        return {
            name: ModelStatus(name, (), state, None, self._info(name) if state in _KNOWN else None)
            for name, state in self._states.items()
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
            device=self.device,
            backend="numpy",
            backend_reason="a deterministic engine for tests",
            weights=Weights(source="none", revision=None, file=None, digest="sha256:0"),
            preprocessing=Preprocessing(
                image_size=self.image_size, interpolation="bicubic", mean=half, std=half
            ),
            min_size=1,
            layer_numbers=dict.fromkeys(GRANULARITIES, 2 * self.DIM),
            any_size=True,
            self_check=LoadCheck(
                outputs=(CheckedOutput(what="mean", error=0.0, tolerance=1e-4, image="zeros"),),
                images=("zeros",),
            ),
        )
