"""Arrays as the text of nested lists of numbers, a piece at a time.

`json.dumps` of a whole array holds the interpreter's lock until it is done, seconds for a large
answer, and makes an object of every number meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

_AT_ONCE = 16_384  # numbers


def number_pieces(array: NDArray[Any]) -> Iterator[str]:
    """What `json.dumps(array.tolist(), allow_nan=False)` gives, in pieces.

    Raises ValueError for what JSON has no number for.
    """
    if array.size <= _AT_ONCE:
        yield json.dumps(array.tolist(), allow_nan=False)
        return
    parts = array if array.ndim > 1 else (
        array[begin : begin + _AT_ONCE] for begin in range(0, len(array), _AT_ONCE)
    )  # fmt: skip
    for number, part in enumerate(parts):
        yield ", " if number else "["
        if array.ndim > 1:
            yield from number_pieces(part)
        else:
            yield json.dumps(part.tolist(), allow_nan=False)[1:-1]
    yield "]"
