"""Rows that are still on their way, as a tensor: whoever needs their numbers waits for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor

_TENSOR: Any = Tensor
# What gives a tensor on the CPU in float32 that needs no gradient back as it is.
_SAME = (Tensor.cpu, Tensor.float, Tensor.detach)
_KNOWN_BEFORE = (Tensor.size, Tensor.dim, _TENSOR.ndim.__get__, _TENSOR.shape.__get__)


class LazyRows(Tensor):
    """(B, D) float32 on the CPU, whose shape is known and whose numbers may still be computed.

    Every operation of torch and numpy works; it waits for the numbers, and raises what they
    failed with. wait: gives the plain tensor; called once or more, from any thread.
    """

    _wait: Callable[[], Tensor]

    @staticmethod
    def __new__(cls, rows: int, dim: int, wait: Callable[[], Tensor]) -> LazyRows:
        empty: LazyRows = Tensor._make_wrapper_subclass(cls, (rows, dim), dtype=torch.float32)
        return empty

    def __init__(self, rows: int, dim: int, wait: Callable[[], Tensor]) -> None:
        self._wait = wait

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Functions and methods, also those that never reach an operation, such as numpy()."""
        if func in _SAME and len(args) == 1 and not kwargs:
            return args[0]
        if func in _KNOWN_BEFORE:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs or {})
        return func(*_waited(args), **_waited(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's own stub has it otherwise
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Operations that are reached without a function, as from torch.as_tensor."""
        return func(*_waited(args), **_waited(kwargs or {}))


def _waited(value: Any) -> Any:
    """`value` with plain tensors in place of lazy ones, in lists and tuples and dicts too."""
    if isinstance(value, LazyRows):
        return value.__dict__["_wait"]()
    if type(value) in (list, tuple):
        return type(value)(_waited(each) for each in value)
    if isinstance(value, dict):
        return {name: _waited(each) for name, each in value.items()}
    return value


def lazy_layers(
    future: Future[dict[str, Tensor]], rows: int, widths: Mapping[str, int]
) -> dict[str, Tensor]:
    """Layer name -> (rows, width), of layers that a future will have."""

    def waiting(name: str) -> Callable[[], Tensor]:
        return lambda: future.result()[name]

    return {name: LazyRows(rows, width, waiting(name)) for name, width in widths.items()}
