"""Finds the one model among the tensors of a checkpoint: in which container, under which prefix.

Trainers wrap a state dict (`model`, `state_dict`, `model_state_dict`, `net`), put names in front of
its keys (`module.`, `backbone.`, `_orig_mod.`, several at once), and keep averaged copies beside
it. Whatever they are called, a model is where its patch embedding is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vim_embed.errors import WeightsError
from vim_embed.weights.file_limits import check_tensors
from vim_embed.weights.names import Copy

_ANCHOR = "patch_embed.proj.weight"
_MAX_NESTING = 6
# Containers whose authors' own loaders read the averaged copy where there is one.
_EMA_FIRST = ("state_dict",)


@dataclass(frozen=True)
class FoundModel:
    """A state dict with plain key names, and where it was.

    container: the keys that lead to it ("" for the file itself), joined by dots.
    """

    state: dict[str, Tensor]
    container: str
    prefix: str

    @property
    def averaged(self) -> bool:
        """Whether its place calls it an exponential moving average."""
        return "ema" in f"{self.container}.{self.prefix}".lower().replace("_", ".").split(".")

    @property
    def place(self) -> str:
        """For people: `state_dict`, prefix `backbone.`."""
        inside = self.container or "the file itself"
        return f"{inside}, prefix {self.prefix}" if self.prefix else inside


def find_model(content: Mapping[object, object], path: Path, copy: Copy | None) -> FoundModel:
    """The one model in a checkpoint's content.

    copy: the averaged or the plain one where there are both. Raises WeightsError that lists the
    places where there is none, or more than one that differ.
    """
    tensors = dict(_containers(content, ""))
    found = [model for name, state in tensors.items() for model in _models(name, state)]
    if not found:
        raise WeightsError(f"{path} is not a Vim checkpoint: {_what_is_there(tensors)}")
    for model in found:
        check_tensors(model.state, path)
    distinct: list[FoundModel] = []
    for model in found:
        if not any(_equal(model, other) for other in distinct):
            distinct.append(model)
    wanted = copy or _own_choice(distinct)
    chosen = distinct
    if copy or len(distinct) > 1:
        chosen = [model for model in distinct if model.averaged == (wanted == "ema")]
    if len(chosen) == 1:
        return chosen[0]
    places = "; ".join(model.place for model in distinct)
    if not chosen:
        raise WeightsError(f"{path} holds no {copy} weights; it holds: {places}")
    raise WeightsError(
        f"{path} holds several models that differ: {places}. Save the one you mean as a file of "
        f"its own"
    )


def _containers(
    content: Mapping[object, object], name: str, depth: int = 0
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every mapping within `content` that holds tensors under names, by the way to it."""
    own = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if own:
        yield name, own
    if depth == _MAX_NESTING:
        return
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _containers(value, f"{name}.{key}".lstrip("."), depth + 1)


def _models(container: str, state: Mapping[str, Tensor]) -> Iterator[FoundModel]:
    prefixes = [key.removesuffix(_ANCHOR) for key in state if _anchored(key)]
    for prefix in prefixes:
        longer = tuple(p for p in prefixes if p != prefix and p.startswith(prefix))
        own = {
            key.removeprefix(prefix): value
            for key, value in state.items()
            if key.startswith(prefix) and not (longer and key.startswith(longer))
        }
        yield FoundModel(own, container, prefix)


def _anchored(key: str) -> bool:
    return key == _ANCHOR or key.endswith("." + _ANCHOR)


def _own_choice(found: list[FoundModel]) -> Copy:
    """Which copy the authors of such a file evaluate: timm's and Lightning's the average."""
    first = {model.container.split("_ema")[0] for model in found}
    return "ema" if any(name in _EMA_FIRST for name in first) else "plain"


def _equal(one: FoundModel, other: FoundModel) -> bool:
    return one.state.keys() == other.state.keys() and all(
        tensor.shape == other.state[key].shape and torch.equal(tensor, other.state[key])
        for key, tensor in one.state.items()
    )


def _what_is_there(tensors: Mapping[str, Mapping[str, Tensor]]) -> str:
    if not tensors:
        return "it holds no tensors under names"
    listed = []
    for name, state in tensors.items():
        keys = ", ".join(sorted(state)[:4])
        listed.append(f"{len(state)} tensors in {name or 'the file itself'} ({keys}, …)")
    return f"no {_ANCHOR} in " + "; ".join(listed[:6])
