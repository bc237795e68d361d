"""Which of a model's final tokens is what: plain data, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """The final tokens of one image size.

    grid: rows and columns of patches (or of a feature map), which keep their row-major order.
    cls: index of the class token among all tokens, or None. registers: indices of the registers.
    others: of further tokens that are no patches, such as DeiT's for distillation.
    """

    grid: tuple[int, int]
    cls: int | None = None
    registers: tuple[int, ...] = ()
    others: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """All final tokens."""
        return self.grid[0] * self.grid[1] + len(self.special)

    @cached_property
    def special(self) -> tuple[int, ...]:
        """Indices of the tokens that are no patches, ascending."""
        own = () if self.cls is None else (self.cls,)
        return tuple(sorted((*own, *self.registers, *self.others)))

    @cached_property
    def patches(self) -> tuple[int, ...]:
        """Indices of the patches, in row-major order of the grid."""
        special = set(self.special)
        return tuple(index for index in range(self.count) if index not in special)
