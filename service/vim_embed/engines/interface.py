"""What runs models: the interface, and a deterministic engine without torch.

An engine knows models, devices and batches of pixels; it knows neither requests nor HTTP.
`stage` may run in one thread while `run` runs in others, as many of them as `at_once` says, if the
engine `stages_ahead`.
A failure is a request's or a batch's, unless it is EngineFailed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from vim_embed.types.model_info import CheckReport, EmbedOptions, ModelInfo
from vim_embed.types.pixels import PixelArray

Outputs = dict[str, NDArray[np.float32]]
# idle: the memory was given back because nobody asked; the next request loads it again.
State = Literal["loading", "ready", "idle", "failed", "unloaded"]


@dataclass(frozen=True)
class ModelStatus:
    """A configured model: `info` once it is ready, until then why not, or what it is at.

    An idle model keeps its info, also while it is loaded again.
    """

    name: str
    aliases: tuple[str, ...]
    state: State
    reason: str | None = None
    info: ModelInfo | None = None

    @property
    def answers(self) -> bool:
        """Whether a request for it is answered: at once, or when it is loaded again."""
        again = self.state == "loading" and self.info is not None
        return self.state in ("ready", "idle") or again


class EngineFailed(RuntimeError):
    """The engine can run nothing more until `restart`; raised by that: for good."""


@dataclass(frozen=True)
class Golden:
    """A golden sample (1, 3, H, W) uint8, its embedding (1, D) float32 when the model was sound,
    and the relative L2 error that is allowed.
    """

    pixels: PixelArray
    expected: NDArray[np.float32]
    tolerance: float

    def compare(self, found: NDArray[np.float32]) -> CheckReport:
        error = np.linalg.norm(found - self.expected) / np.linalg.norm(self.expected)
        same = found.tobytes() == self.expected.tobytes()
        return CheckReport(float(error), self.tolerance, same)


class Staged(Protocol):
    """A batch that is ready to run."""

    @property
    def rows(self) -> int: ...


class ModelRegistry(Protocol):
    """Which models there are, on one device or on several alike."""

    def load(self) -> None:
        """Load every configured model; a model that fails is recorded as such. Blocking."""
        ...

    def known_name(self, name: str) -> str:
        """The name of a configured or catalogued model, or of its alias. Raises ValueError."""
        ...

    def load_model(self, name: str) -> None:
        """Load one more model by its known name, or an unloaded one again."""
        ...

    def unload(self, name: str) -> None:
        """Give a model's memory back; it must not be running."""
        ...

    def rest(self, name: str, reason: str) -> None:
        """Give a model's memory back until `load_model`; what is known of it stays.

        It must not be running. A device that never had the model keeps its state.
        """
        ...

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


class Engine(ModelRegistry, Protocol):
    """Runs batches on one device."""

    @property
    def device(self) -> str:
        """As torch names it: cpu, cuda:0."""
        ...

    @property
    def at_once(self) -> int:
        """Calls of `run` that may be under way: 2 where the device takes the next forward while it
        computes one, and goes on to it by itself.
        """
        ...

    @property
    def stages_ahead(self) -> bool:
        """Whether a batch is staged, by another thread, while one runs. Not where the threads that
        run batches compute: each that does by turns has OpenMP threads of its own, and these sleep
        between any two operations as soon as there are more of them than cores.
        """
        ...

    def golden(self, model: str) -> Golden:
        """What a loaded model must go on giving. Raises KeyError."""
        ...

    def restart(self) -> None:
        """Begin anew after a failure, with the models that were loaded.

        A call of `run` that never ends may still be under way. Raises EngineFailed if this process
        cannot recover.
        """
        ...

    def stage(self, model: str, parts: Sequence[PixelArray], options: EmbedOptions) -> Staged:
        """Gather rows (n_i, 3, H, W) of one dtype into a batch, near the device."""
        ...

    def run(self, staged: Staged) -> Outputs:
        """Embed a staged batch: named float32 arrays (rows, D) in row order."""
        ...
