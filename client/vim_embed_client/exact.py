"""Whole numbers that floats no longer tell apart, such as ids of 19 digits in a float column."""

from __future__ import annotations

import re
from typing import Any

EXACT = 1 << 53  # beyond which a float64 does not tell all whole numbers apart

# As pandas writes them: 4.611686018427388e+18, and 4611686018427387904.0.
_FLOAT = re.compile(r"[-+]?[0-9]+(\.[0-9]+(e[-+]?[0-9]+)?|e\+[0-9]+)", re.I)

FIX = "save the column as whole numbers or as text"


def inexact(value: Any, exact: int = EXACT) -> bool:
    """Whether a value is a float, or the text of one, beyond what floats hold exactly.

    exact: up to which number the column's floats tell all whole numbers apart.
    """
    if isinstance(value, str) and _FLOAT.fullmatch(value):
        return abs(float(value)) > EXACT
    return isinstance(value, float) and abs(value) > exact
