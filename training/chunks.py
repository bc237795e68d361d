"""Gradients of a loss over a whole batch, computed a few images at a time (Gao et al. 2021,
arXiv:2101.06983).

On a CPU a chunk's activations stay in cache, and each thread has chunks of its own: threads wait
for each other three times a step, not in every operation. Sums are taken in the order of the
chunks, so that the result does not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor, nn

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Chunks:
    """Runs chunks of images on threads of its own. images: of a chunk."""

    def __init__(self, threads: int, images: int) -> None:
        self.images = images
        self.pool = ThreadPoolExecutor(threads, initializer=lambda: torch.set_num_threads(1))

    def gradients(
        self,
        encode: Callable[[Tensor], Tensor],
        loss: Callable[[Tensor], Tensor],
        images: Tensor,
        parameters: Sequence[nn.Parameter],
    ) -> Tensor:
        """The loss of all codes; its gradients are put into the parameters."""
        codes = self._map(encode, torch.split(images, self.images))
        joined = torch.cat([code.detach() for code in codes]).requires_grad_()
        value = loss(joined)
        (slope,) = torch.autograd.grad(value, joined)

        def back(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
            return torch.autograd.grad(pair[0], parameters, pair[1])

        found = self._map(back, list(zip(codes, torch.split(slope, self.images), strict=True)))
        for parameter, *parts in zip(parameters, *found, strict=True):
            parameter.grad = torch.stack(parts).sum(0)
        return value.detach()

    def submit(self, make: Callable[[int], _Result], number: int) -> Future[_Result]:
        """Something for later, on one of the threads."""
        return self.pool.submit(make, number)

    def _map(self, function: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
        return list(self.pool.map(function, items))
