"""Several devices with the same models, described as one.

Each device's engine runs in a worker of its own (batching/worker.py); this is what the rest of the
service asks which models there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from vim_embed.engines.interface import Engine, ModelStatus
from vim_embed.types.model_info import joined

_ORDER = ("ready", "loading", "idle", "failed", "unloaded")


class EngineGroup:
    """The models of several engines. A model is ready as soon as one device has it."""

    def __init__(self, members: Sequence[Engine]) -> None:
        self.members = tuple(members)

    def load(self) -> None:
        """Load every device's models, the devices at the same time."""
        self._on_all(lambda engine: engine.load())

    def known_name(self, name: str) -> str:
        return self.members[0].known_name(name)

    def load_model(self, name: str) -> None:
        self._on_all(lambda engine: engine.load_model(name))

    def unload(self, name: str) -> None:
        self._on_all(lambda engine: engine.unload(name))

    def rest(self, name: str, reason: str) -> None:
        self._on_all(lambda engine: engine.rest(name, reason))

    def status(self) -> Mapping[str, ModelStatus]:
        """The best state of each model; its info names every device that has it."""
        each = [engine.status() for engine in self.members]
        return {name: _joined([k[name] for k in each if name in k]) for name in each[0]}

    def layer_names(self, model: str, granularity: str) -> list[str]:
        return self._with(model).layer_names(model, granularity)

    def layer_kinds(self, model: str) -> Mapping[str, str]:
        return self._with(model).layer_kinds(model)

    def batch_rows(self, model: str, shape: tuple[int, ...]) -> int:
        return self._with(model).batch_rows(model, shape)

    def memory(self) -> Mapping[tuple[str, str], int]:
        return {place: size for e in self.members for place, size in e.memory().items()}

    def _with(self, model: str) -> Engine:
        """A device that has it, or will have it again. Raises KeyError."""
        for engine in self.members:
            status = engine.status().get(model)
            if status is not None and status.answers:
                return engine
        raise KeyError(model)

    def _on_all(self, do: Callable[[Engine], None]) -> None:
        with ThreadPoolExecutor(len(self.members)) as pool:
            list(pool.map(do, self.members))


def _joined(statuses: Sequence[ModelStatus]) -> ModelStatus:
    best = min(statuses, key=lambda status: _ORDER.index(status.state))
    infos = [status.info for status in statuses if status.info is not None]
    return best if best.info is None else replace(best, info=joined(infos))
