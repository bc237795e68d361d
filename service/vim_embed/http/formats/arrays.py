"""Bytes to arrays and back: npy, JSON and safetensors. Pure functions, no HTTP objects.

Nothing here unpickles. Array data is not copied on the way in: the result is a view of the body.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
import threading
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from vim_embed.errors import InvalidInput, MalformedRequest
from vim_embed.types.pixels import PixelArray

Buffer = bytes | bytearray | memoryview
# numpy reads headers with Python's own parser, which several threads at once confuse in Python
# 3.11 ("AST constructor recursion depth mismatch", seen on sound files).
_HEADER_LOCK = threading.Lock()
_MAX_NPY_HEADER = 10_000
_KNOWN_HEADERS = 256  # batches of one size come again and again
_JSON_DTYPES = ("uint8", "float16", "float32", "float64")


def read_npy(body: Buffer) -> PixelArray:
    """The one array of a `.npy` body. Raises MalformedRequest or InvalidInput."""
    data = memoryview(body)
    head = bytes(data[: _npy_head_bytes(data)])
    try:
        shape, fortran, dtype = _read_npy_head(head)
    except Exception as error:  # whatever Python's tokenizer and parser raise
        raise MalformedRequest(
            f"the body is not a .npy file as numpy.save writes it ({error})"
        ) from error
    if dtype.hasobject:
        raise InvalidInput(
            "object arrays are refused, since reading them could run code: send uint8 or float32"
        )
    return _view(data[len(head) :], shape, dtype, fortran=fortran)


def read_safetensors(body: Buffer) -> PixelArray:
    """The tensor `pixel_values` of a safetensors body. Raises MalformedRequest or InvalidInput."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors: dict[str, PixelArray] = load(bytes(body))
    except (SafetensorError, KeyError, ValueError) as error:
        raise MalformedRequest(f"the body is not a safetensors file ({error})") from error
    if "pixel_values" not in tensors:
        found = ", ".join(sorted(tensors)[:10]) or "none"
        raise InvalidInput(f"no tensor named 'pixel_values' in the body; found: {found}")
    return tensors["pixel_values"]


def read_json(body: Buffer) -> PixelArray:
    """The array under `inputs`: nested lists, or base64 with shape and dtype."""
    try:
        content = json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise MalformedRequest(f"the body is not JSON ({error})") from error
    if not isinstance(content, dict) or "inputs" not in content:
        raise MalformedRequest('the body must be {"inputs": …}, a nested list or base64 object')
    inputs = content["inputs"]
    if isinstance(inputs, dict):
        return _read_base64(inputs)
    return array_of_lists(inputs, _json_dtype(content.get("dtype", "float32")))


def npy_bytes(array: NDArray[Any]) -> bytes:
    """A `.npy` file."""
    array = np.ascontiguousarray(array)
    return b"".join([_npy_head(array.shape, array.dtype), array.data])


def safetensors_bytes(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file of the arrays; `metadata["layers"]` lists their names in order."""
    from safetensors.numpy import save

    listed = {**metadata, "layers": json.dumps(list(arrays))}
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return bytes(save(contiguous, metadata=listed))


def json_array(array: NDArray[Any], encoding: str) -> object:
    """An array for a JSON answer: nested lists, or a base64 object (little-endian)."""
    if encoding == "float":
        return array.tolist()
    raw = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return {
        "base64": base64.b64encode(raw.tobytes()).decode(),
        "shape": list(array.shape),
        "dtype": array.dtype.name,
    }


def array_of_lists(inputs: object, dtype: np.dtype[Any]) -> PixelArray:
    """Nested or flat lists of numbers as an array of `dtype`. Raises InvalidInput.

    A number too large for a float dtype becomes infinite, which `check_pixels` refuses.
    """
    try:
        array = np.array(inputs)
    except (ValueError, OverflowError, RecursionError) as error:
        raise InvalidInput(f"inputs is not a regular nested list of numbers ({error})") from error
    if array.dtype.kind not in "iuf":
        raise InvalidInput("inputs holds values that are not numbers: send numbers alone")
    if dtype == np.uint8 and not ((array >= 0) & (array <= 255) & (array % 1 == 0)).all():
        raise InvalidInput("inputs has values that are no whole numbers from 0 to 255, as uint8 is")
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(dtype)


def _npy_head_bytes(data: memoryview) -> int:
    """Where the data of a `.npy` file begins, by what its first bytes say."""
    wide = bytes(data[6:7]) == b"\x02"
    start = 12 if wide else 10
    return start + min(int.from_bytes(data[8:start], "little"), _MAX_NPY_HEADER + 1)


@lru_cache(_KNOWN_HEADERS)
def _read_npy_head(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran's order, dtype. Raises what numpy and Python's parser raise."""
    file = io.BytesIO(head)
    read = {
        (1, 0): npy_format.read_array_header_1_0,
        (2, 0): npy_format.read_array_header_2_0,
    }[npy_format.read_magic(file)]
    with _HEADER_LOCK:
        found: tuple[tuple[int, ...], bool, np.dtype[Any]] = read(
            file, max_header_size=_MAX_NPY_HEADER
        )
    return found


@lru_cache(_KNOWN_HEADERS)
def _npy_head(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    file = io.BytesIO()
    described = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    npy_format.write_array_header_1_0(file, described)
    return file.getvalue()


def _view(
    data: memoryview, shape: tuple[int, ...], dtype: np.dtype[Any], *, fortran: bool = False
) -> PixelArray:
    """`data` as an array, without copying, if it has exactly the bytes that the header promises."""
    if any(type(side) is not int or side < 0 for side in shape):  # a bool is an int, too
        raise MalformedRequest(f"the header gives an impossible shape {shape}")
    promised = math.prod(shape) * dtype.itemsize
    if promised != data.nbytes:
        raise MalformedRequest(
            f"the header promises {promised} bytes for shape {shape} {dtype}, "
            f"but {data.nbytes} follow: the body was cut short or its header is wrong"
        )
    array = np.frombuffer(data, dtype=dtype)
    return array.reshape(shape, order="F" if fortran else "C")


def _read_base64(inputs: dict[str, Any]) -> PixelArray:
    missing = [key for key in ("base64", "shape", "dtype") if key not in inputs]
    if missing:
        raise MalformedRequest(f"the inputs object lacks {', '.join(missing)}")
    shape = inputs["shape"]
    if not isinstance(shape, list) or not all(type(side) is int for side in shape):
        raise MalformedRequest("shape must be a list of whole numbers, as [B, 3, H, W]")
    try:
        raw = base64.b64decode(inputs["base64"], validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise MalformedRequest(f"base64 cannot be decoded ({error})") from error
    dtype = _json_dtype(inputs["dtype"]).newbyteorder("<")
    return _view(memoryview(bytearray(raw)), tuple(shape), dtype)


def _json_dtype(name: object) -> np.dtype[Any]:
    if name not in _JSON_DTYPES:
        raise InvalidInput(f"dtype {name!r} is not taken: use one of {', '.join(_JSON_DTYPES)}")
    return np.dtype(str(name))
