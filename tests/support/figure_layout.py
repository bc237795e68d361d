"""What the tests of several figures ask of their layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def assert_apart_and_within(figure: Any, boxes: Sequence[Any]) -> None:
    """No box (in display units) leaves the figure or covers another."""
    for box in boxes:
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0
        assert box.y1 <= figure.bbox.y1
    assert not any(one.overlaps(two) for i, one in enumerate(boxes) for two in boxes[:i])
