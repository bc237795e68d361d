"""Watches a float32 forward from inside: how large activations get, and where.

A *stage* is one output inside the model under its module's name, such as `layers.3.mixer.in_proj`.
A Vim's convolutions, step sizes and scans are no modules; they are seen through its operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vim_embed.kernels.ops import Direction, MixerOps
from vim_embed.models.vim import BiMamba, RMSNorm, Vim


@dataclass
class Stage:
    """One output over all images. peak: the largest magnitude. row: the image that has it.

    squares: sum of squares of each channel, over `count` tokens.
    """

    peak: float = 0.0
    row: int = 0
    squares: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    count: int = 0

    @property
    def channel_rms(self) -> Tensor:
        """(C,) root mean square of each channel."""
        return (self.squares / max(1, self.count)).sqrt()


class Observer:
    """Gathers stages of the forwards of one module while `watching`."""

    def __init__(self, module: nn.Module) -> None:
        self.stages: dict[str, Stage] = {}
        self.norms: list[Tensor] = []
        self._module = module
        self._first_row = 0

    @contextmanager
    def watching(self, first_row: int) -> Iterator[None]:
        """See the forwards of a batch whose first row has this number."""
        self._first_row = first_row
        hooks = [
            module.register_forward_hook(self._hook(name))
            for name, module in self._module.named_modules()
            if not list(module.children())
        ]
        mixers = [(n, m) for n, m in self._module.named_modules() if isinstance(m, BiMamba)]
        before = [mixer.ops for _, mixer in mixers]
        for name, mixer in mixers:
            mixer.ops = _WatchedOps(mixer.ops, name, self)
        try:
            yield
        finally:
            for (_, mixer), ops in zip(mixers, before, strict=True):
                mixer.ops = ops
            for hook in hooks:
                hook.remove()

    def see(self, name: str, output: Tensor) -> None:
        """Take an output (B, …, C), or of a convolution (B, C, h, w), into account."""
        values = output.detach().float()
        channels = values.movedim(1, -1) if values.ndim == 4 else values
        stage = self.stages.setdefault(name, Stage())
        peaks = channels.abs().flatten(1).amax(dim=1)
        row = int(peaks.argmax())
        if float(peaks[row]) >= stage.peak:
            stage.peak, stage.row = float(peaks[row]), self._first_row + row
        flat = channels.reshape(-1, channels.shape[-1])
        squares = flat.double().square().sum(dim=0).cpu()
        stage.squares = squares if stage.count == 0 else stage.squares + squares
        stage.count += len(flat)

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(module, RMSNorm):
                normed, stream = output
                self.see(name, normed)
                self.see(f"{name}.stream", stream)
                if isinstance(self._module, Vim) and module is self._module.norm_f:
                    self.norms.append(stream.float().norm(dim=-1).cpu())
            elif isinstance(output, Tensor) and output.ndim > 1:
                self.see(name, output)

        return hook


class _WatchedOps:
    """A mixer's operations, whose outputs the observer sees."""

    def __init__(self, ops: MixerOps, mixer: str, observer: Observer) -> None:
        self._ops, self._mixer, self._observer = ops, mixer, observer
        self.name = ops.name

    def add_norm(
        self, hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        return self._ops.add_norm(hidden, residual, weight, eps)

    def conv_silu(self, x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool) -> Tensor:
        out = self._ops.conv_silu(x, weight, bias, reverse=reverse)
        self._observer.see(f"{self._mixer}.conv1d{'_b' if reverse else ''}", out)
        return out

    def scan(self, forward: Direction, backward: Direction, z: Tensor | None) -> Tensor:
        for direction, end in ((forward, ""), (backward, "_b")):
            self._observer.see(f"{self._mixer}.dt_proj{end}", direction.delta)
        out = self._ops.scan(forward, backward, z)
        self._observer.see(f"{self._mixer}.scan", out)
        return out
