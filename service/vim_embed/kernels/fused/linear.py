"""Linear layers in float32 on tensor cores: split products (split.cuh) with a bias.

Each row of the input is scaled by a power of two of its own, so any float32 row is taken, whatever
its size. The result is about as close to the exact one as plain float32 products are.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vim_embed.kernels.fused.device_code import DeviceCode, Limits, architecture_of, too_old
from vim_embed.kernels.fused.split_mm import split_mm, split_rows, weight_scale

SOURCE = Path(__file__).with_name("linear.cu")


def macros_of(capability: tuple[int, int]) -> dict[str, int]:
    """What linear.cu is compiled with."""
    return {"DTYPE": 0, "BULK": int(capability >= (9, 0)), "WGMMA": int(capability[0] == 9)}


class LinearKernels:
    """The kernels of linear layers on one device."""

    def __init__(self, device: torch.device, limits: Limits | None = None) -> None:
        """limits: run as on another, older kind of device. Raises CompileError or RuntimeError
        where the kernels cannot be had, ValueError for an older device than they are for."""
        own = Limits.of(device)
        self.device, self.limits = device, limits or own
        capability = self.limits.capability
        if reason := too_old(capability):
            raise ValueError(reason)
        self._code = DeviceCode(
            SOURCE,
            macros_of(capability),
            architecture_of(capability, wgmma=capability[0] == 9),
            device,
            translated=capability != own.capability,
        )

    @staticmethod
    def takes(weight: Tensor) -> bool:
        """Whether there are kernels for a weight (columns, K)."""
        columns, inner = weight.shape
        return columns % 8 == 0 and inner % 32 == 0

    def split_rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(rows, K) float32 as split rows (rows, 2 K), and the factors that undo their scales."""
        count, inner = rows.shape
        out = rows.new_empty(count, 2 * inner, dtype=torch.float16)
        undo = rows.new_empty(count)
        if count:
            self._code.launch("split_rows", (count, 1), 128, 0, [rows, out, undo, inner])
        return out, undo

    def multiply(
        self, rows: Tensor, weight: Tensor, *, scale: float, undo: Tensor, bias: Tensor | None
    ) -> Tensor:
        """scale · undo · rows @ weight^T + bias, of split matrices: (rows, columns) float32."""
        out = undo.new_empty(len(rows), len(weight))
        if len(rows):
            split_mm(
                self._code, self.limits,
                a=rows, b=weight, c=out, scale=scale, row_scales=undo, bias=bias,
            )  # fmt: skip
        return out


def split_products(
    device: torch.device,
) -> Callable[[Tensor, Tensor | None], SplitLinear | None]:
    """What makes a linear layer of a weight and a bias on the device; None where none fits.

    Raises CompileError, RuntimeError or ValueError where the kernels do not work there.
    """
    kernels = LinearKernels(device)
    probe = torch.arange(-512, 512, dtype=torch.float32, device=device).view(32, 32)
    if not torch.allclose(SplitLinear(kernels, probe, None)(probe), probe @ probe.t()):
        raise RuntimeError("the kernels give wrong numbers")

    def made(weight: Tensor, bias: Tensor | None) -> SplitLinear | None:
        return SplitLinear(kernels, weight, bias) if kernels.takes(weight) else None

    return made


class SplitLinear:
    """One linear layer's weights, split, and its forward. It does not change."""

    def __init__(self, kernels: LinearKernels, weight: Tensor, bias: Tensor | None) -> None:
        """weight (columns, K), bias (columns,): float32 on the kernels' device, copied."""
        own = weight_scale(weight)
        self._kernels, self._scale = kernels, 1 / own
        self._weight = split_rows(weight.detach() * own)
        self._bias = None if bias is None else bias.detach().clone()

    @torch.no_grad()
    def __call__(self, tokens: Tensor) -> Tensor:
        """(..., K) float32 to (..., columns)."""
        rows = tokens.reshape(-1, tokens.shape[-1]).contiguous()
        with torch.cuda.device(self._kernels.device):
            split, undo = self._kernels.split_rows(rows)
            out = self._kernels.multiply(
                split, self._weight, scale=self._scale, undo=undo, bias=self._bias
            )
        return out.view(*tokens.shape[:-1], len(self._weight))

    def __deepcopy__(self, memo: object) -> SplitLinear:
        return self
