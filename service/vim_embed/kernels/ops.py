"""The operations of a Vim block that have more than one implementation.

A backend implements `MixerOps`; `reference.py` is the specification. All tensors are
channels-last and in time order; "reverse" walks them from the last token to the first.
Accumulation and the scan state are float32 whatever the input dtype (the reference's: float64 for
that dtype).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


def wide(tensor: Tensor) -> Tensor:
    """At least float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


@dataclass(frozen=True)
class Direction:
    """Inputs of one direction of the selective scan, the weights as a model holds them.

    u (B, L, E): after conv and SiLU. step (B, L, R) and step_weight (E, R): their product is the
    step size before bias and softplus. delta_bias (E,). A_log (E, N): log(-A). B, C (B, L, N).
    D (E,): the skip weight. step, B and C may be strided views whose last dimension is contiguous.
    """

    u: Tensor
    step: Tensor
    step_weight: Tensor
    delta_bias: Tensor
    A_log: Tensor
    B: Tensor
    C: Tensor
    D: Tensor

    @property
    def delta(self) -> Tensor:
        """(B, L, E): before bias and softplus."""
        return F.linear(self.step, self.step_weight)

    @property
    def A(self) -> Tensor:
        """(E, N), at least float32, negative."""
        return -torch.exp(wide(self.A_log))


class MixerOps(Protocol):
    """One backend's implementation of the operations inside a Vim block."""

    @property
    def name(self) -> str: ...

    def add_norm(
        self, hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """residual + hidden in float32 (hidden alone when there is none) and its RMS norm.

        hidden (..., D); returns (normed in hidden's dtype, new residual float32).
        """
        ...

    def conv_silu(self, x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool) -> Tensor:
        """Depthwise causal convolution along L, then SiLU.

        x (B, L, E), may be a strided view with contiguous channels; weight (E, K), bias (E,).
        Output (B, L, E) contiguous. Forward: out[t] sees x[t-K+1..t], weight[:, K-1] meets x[t].
        Reverse: out[t] sees x[t..t+K-1], weight[:, K-1] meets x[t].
        """
        ...

    def scan(self, forward: Direction, backward: Direction, z: Tensor | None) -> Tensor:
        """Both selective scans, their skips, the gate and the average: (B, L, E).

        Per direction delta' = softplus(delta + delta_bias),
        h[t] = exp(delta'[t] A) h[t-1] + delta'[t] B[t] u[t], y[t] = C[t]·h[t] + D u[t]
        (Gu & Dao 2023, arXiv:2312.00752, eq. 2-4); out = (y_forward + y_backward) / 2 · silu(z).
        z (B, L, E), may be a strided view with contiguous channels; None: no gate, u's dtype.
        """
        ...
