"""Results on their way from a device to the host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_FEW_ROWS = 16  # so soon computed that whoever waits had better not sleep


@dataclass(frozen=True)
class OnItsWay:
    """Tensors on the host, filled once `arrived`."""

    tensors: dict[str, Tensor]
    arrived: torch.cuda.Event | None = None

    def is_here(self) -> bool:
        """Whether `wait` would not wait."""
        return self.arrived is None or bool(self.arrived.query())  # type: ignore[no-untyped-call]

    def wait(self) -> dict[str, Tensor]:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.tensors


def to_host(found: Mapping[str, Tensor], *, spin: bool = False) -> OnItsWay:
    """Copies of the tensors, queued behind what computes them on the current stream.

    spin: whoever waits keeps a core busy and goes on 0.1 to 0.3 ms sooner than one that sleeps.
    """
    first = next(iter(found.values()))
    if not first.is_cuda:
        return OnItsWay({name: tensor.to("cpu", copy=True) for name, tensor in found.items()})
    copies = {name: _queued(tensor) for name, tensor in found.items()}
    few = len(first) <= _FEW_ROWS
    arrived = torch.cuda.Event(blocking=not (spin or few))  # type: ignore[no-untyped-call]
    arrived.record(torch.cuda.current_stream(first.device))
    return OnItsWay(copies, arrived)


def _queued(tensor: Tensor) -> Tensor:
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
    return copy.copy_(tensor, non_blocking=True)
