"""JSON bodies: looked over with a budget before anything of them becomes an object or an array.

simdjson writes a body down in one flat table, whatever it holds, so a body can be refused before
it costs more than that. Python's own reader makes an object of every value: `[{},{},…]` takes 30
times its bytes there. Lists of numbers go from the table into an array without such objects.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from vim_embed.errors import InvalidInput, MalformedRequest, UnsupportedMediaType
from vim_embed.http.body.workspace import Workspace
from vim_embed.types.pixels import PixelArray

# Its releases come without a wheel for the newest Python, where it is left out at first.
HAS_SIMDJSON = importlib.util.find_spec("simdjson") is not None
if HAS_SIMDJSON:
    import simdjson

Buffer = bytes | bytearray | memoryview
_VALUES = 10_000  # beside the lists of numbers; the outputs of a v2 request are the most
_KEYS = 64  # of one object: a look for one goes through all
_DEPTH = 16
_DIMENSIONS = 8
_COUNTED = 0xFFFFFF  # simdjson counts no further
_AT_ONCE = 1 << 18  # numbers that are checked and converted together
# Of memory for each comma, colon or opening bracket: its value takes two words of the table, a
# float64 when it is copied out, and each token the four bytes of its position.
_TOKEN_BYTES = 32
_JSON_NAMES: dict[type, str] = {
    str: "a text",
    type(None): "null",
    int: "a number",
    float: "a number",
}
_NESTED = "is not a regular nested list of numbers"


class JsonBody:
    """A body that was looked over. Its lists of numbers stay in the table until they are wanted."""

    def __init__(self, text: bytes, numbers: tuple[str, ...]) -> None:
        """numbers: the keys on the way to where lists of numbers may be, as ("inputs", "data").

        Raises MalformedRequest or InvalidInput.
        """
        self._numbers = numbers
        self._left = _VALUES
        self._lists = 0  # outside of the lists of numbers
        self._brackets: int | None = text.count(b"[")
        self.content = self._plain(_parsed(text), (), 0)

    def array(self, numbers: Any, dtype: np.dtype[Any], workspace: Workspace) -> PixelArray:
        """A nested or flat list of numbers, from `content`, as an array of `dtype`.

        A number too large for a float dtype becomes infinite, which `check_pixels` refuses.
        Raises InvalidInput.
        """
        if not isinstance(numbers, simdjson.Array):
            raise InvalidInput(
                f"inputs {_NESTED}, but {_JSON_NAMES.get(type(numbers), type(numbers).__name__)}: "
                "bytes go as an object of base64, shape and dtype"
            )
        shape = _shape_of(numbers)
        try:
            flat = np.frombuffer(numbers.as_buffer(of_type="d"), np.float64)
        except TypeError as error:
            raise InvalidInput(
                "inputs holds values that are not numbers: send numbers alone"
            ) from error
        if shape == (_COUNTED,):
            shape = (flat.size,)
        self._check_regular(numbers, shape, flat.size)
        whole = np.frombuffer(workspace.allocate(flat.size * dtype.itemsize), dtype)
        for start in range(0, flat.size, _AT_ONCE):
            part = flat[start : start + _AT_ONCE]
            if dtype == np.uint8:
                _check_bytes(part)
            with np.errstate(over="ignore"):
                whole[start : start + _AT_ONCE] = part
        return whole[: flat.size].reshape(shape)

    def _plain(self, node: Any, path: tuple[str, ...], depth: int) -> Any:
        """The node as Python's own objects, but for the lists of numbers. path: its keys."""
        if isinstance(node, simdjson.Array) and path == self._numbers:
            return node
        self._left -= 1
        if self._left < 0:
            raise MalformedRequest(f"the JSON holds over {_VALUES} values beside the pixels")
        if depth > _DEPTH:
            raise MalformedRequest(f"the JSON is nested over {_DEPTH} deep beside the pixels")
        if isinstance(node, simdjson.Object):
            return self._dict(node, path, depth)
        if isinstance(node, simdjson.Array):
            self._lists += 1
            return [self._plain(child, path, depth + 1) for child in node]
        if isinstance(node, str) and "[" in node:
            self._brackets = None  # how many of them are lists is not known any more
        return node

    def _dict(self, node: simdjson.Object, path: tuple[str, ...], depth: int) -> dict[str, Any]:
        if len(node) > _KEYS:
            raise MalformedRequest(f"an object of the JSON has over {_KEYS} keys")
        found: dict[str, Any] = {}
        for key in node:
            if key in found:
                raise MalformedRequest(f"the key {key[:40]!r} is there twice")
            if "[" in key:
                self._brackets = None
            found[key] = self._plain(node[key], (*path, key), depth + 1)
        return found

    def _check_regular(self, numbers: simdjson.Array, shape: tuple[int, ...], values: int) -> None:
        """Raises InvalidInput for lists of unequal lengths, or lists among numbers."""
        lists = sum(math.prod(shape[:depth]) for depth in range(len(shape)))
        regular = values == math.prod(shape) and _is_regular(numbers, shape)
        if self._brackets is None:
            regular = regular and not _has_lists_among_numbers(numbers, len(shape))
        else:
            regular = regular and self._brackets == self._lists + lists
        if not regular:
            raise InvalidInput(f"inputs {_NESTED}: all lists of one level must be equally long")


@contextmanager
def read(body: Buffer, numbers: tuple[str, ...], workspace: Workspace) -> Iterator[JsonBody]:
    """The body looked over; its memory is counted meanwhile. Raises as JsonBody and Workspace.

    Raises UnsupportedMediaType where simdjson is not installed.
    """
    if not HAS_SIMDJSON:
        raise UnsupportedMediaType(
            "this service reads no JSON: pysimdjson is missing, which has no wheel for Python 3.14 "
            "yet. Send npy or safetensors, or install it there with a C++ compiler: "
            "pip install pysimdjson"
        )
    size = len(body)
    with workspace.working(size):
        text = bytes(body)
        plain = text.isascii() and b"\\" not in text
        # Copies of all: simdjson's, its strings, two of base64; Python's text may be four times
        # as wide as the body's.
        copies = size * (4 if plain else 8)
        tokens = text.count(b",") + text.count(b":") + text.count(b"[") + text.count(b"{")
        with workspace.working(copies + _TOKEN_BYTES * tokens):
            yield JsonBody(text, numbers)


def _parsed(text: bytes) -> Any:
    try:
        return simdjson.Parser().parse(text)
    except (ValueError, RuntimeError) as error:
        if b"NaN" in text or b"Infinity" in text:
            raise InvalidInput(
                "NaN and Infinity are no JSON: mask or replace such pixels first"
            ) from error
        if any(name in str(error) for name in ("NUMBER_ERROR", "BIGINT_ERROR")):
            raise MalformedRequest(
                "a number of the body is not written as JSON has it (as 0.5, -1 or 1e-3), or does "
                "not fit into 64 bits"
            ) from error
        raise MalformedRequest(f"the body is not JSON in UTF-8 ({error})") from error


def _shape_of(node: simdjson.Array) -> tuple[int, ...]:
    """By the first list of each level."""
    shape: list[int] = []
    while isinstance(node, simdjson.Array):
        shape.append(len(node))
        if len(shape) > _DIMENSIONS:
            raise InvalidInput(f"inputs is nested over {_DIMENSIONS} deep: send (B, 3, H, W)")
        if not shape[-1]:
            break
        node = node[0]
    return tuple(shape)


def _is_regular(node: Any, shape: tuple[int, ...]) -> bool:
    if not isinstance(node, simdjson.Array):
        return False
    if len(shape) == 1:
        return len(node) in (shape[0], _COUNTED)
    return len(node) == shape[0] and all(_is_regular(child, shape[1:]) for child in node)


def _has_lists_among_numbers(node: Any, depth: int) -> bool:
    if depth == 1:
        return any(isinstance(child, simdjson.Array) for child in node)
    return any(_has_lists_among_numbers(child, depth - 1) for child in node)


def _check_bytes(numbers: np.ndarray[Any, np.dtype[np.float64]]) -> None:
    if not ((numbers >= 0) & (numbers <= 255) & (numbers % 1 == 0)).all():
        raise InvalidInput("inputs has values that are no whole numbers from 0 to 255, as uint8 is")
