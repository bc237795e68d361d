"""Bytes to arrays and back: npy, JSON and safetensors. Pure functions, no HTTP objects.

Nothing here unpickles. npy data is not copied on the way in: the result is a view of the body.
What else takes memory is counted in the request's workspace.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from vim_embed.errors import InvalidInput, MalformedRequest
from vim_embed.http.body.workspace import Workspace
from vim_embed.http.formats import json_bodies
from vim_embed.types.pixels import PixelArray

Buffer = bytes | bytearray | memoryview
# numpy reads headers with Python's own parser, which several threads at once confuse in Python
# 3.11 ("AST constructor recursion depth mismatch", seen on sound files).
_HEADER_LOCK = threading.Lock()
_MAX_NPY_HEADER = 10_000
_KNOWN_HEADERS = 256  # batches of one size come again and again
_JSON_DTYPES = ("uint8", "float16", "float32", "float64")
_SAFETENSORS_DTYPES = {"U8": "u1", "F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2"}
_MAX_SAFETENSORS_HEADER = 1_000_000  # of one tensor it has a hundred
_TENSOR_MULTIPLE = 32  # of the header's bytes: what all that it describes takes as objects
_NUMBERS = "biufc"  # kinds of dtypes whose arrays `check_pixels` takes or refuses by name
_MAX_DIMENSIONS = 8
_MAX_SIDE = 2**31  # far beyond any body
_SHOWN = 100


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
    if dtype.kind not in _NUMBERS:
        raise InvalidInput(f"dtype {dtype} is not taken: send uint8 or float32")
    return _view(data[len(head) :], shape, dtype, fortran=fortran)


def read_safetensors(body: Buffer, workspace: Workspace) -> PixelArray:
    """The tensor `pixel_values` of a safetensors body. Raises MalformedRequest or InvalidInput.

    bfloat16 becomes float32, which holds all of its values.
    """
    from safetensors import SafetensorError, deserialize

    header = int.from_bytes(body[:8], "little")
    if header > _MAX_SAFETENSORS_HEADER:
        raise MalformedRequest(
            f"the safetensors header is over {_MAX_SAFETENSORS_HEADER} bytes, or the body is no "
            "safetensors file"
        )
    with workspace.working(2 * len(body) + _TENSOR_MULTIPLE * header):
        try:
            tensors: dict[str, dict[str, Any]] = dict(deserialize(bytes(body)))  # type: ignore[no-untyped-call]
        except (SafetensorError, KeyError, ValueError, OverflowError) as error:
            raise MalformedRequest(f"the body is not a safetensors file ({error})") from error
        if "pixel_values" not in tensors:
            found = ", ".join(sorted(tensors)[:10]) or "none"
            raise InvalidInput(f"no tensor named 'pixel_values' in the body; found: {found}")
        return _tensor(tensors["pixel_values"], workspace)


def read_json(body: Buffer, workspace: Workspace) -> PixelArray:
    """The array under `inputs`: nested lists, or base64 with shape and dtype."""
    with json_bodies.read(body, ("inputs",), workspace) as json_body:
        content = json_body.content
        if not isinstance(content, dict) or "inputs" not in content:
            raise MalformedRequest('the body must be {"inputs": …}, a nested list or base64 object')
        _check_keys(content, ("inputs", "dtype"), "the body")
        inputs = content["inputs"]
        if isinstance(inputs, dict):
            if "dtype" in inputs and content.get("dtype", inputs["dtype"]) != inputs["dtype"]:
                raise MalformedRequest("the body and its inputs name two dtypes: leave one out")
            return _read_base64(inputs, workspace)
        return json_body.array(inputs, _json_dtype(content.get("dtype", "float32")), workspace)


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


def base64_array(array: NDArray[Any]) -> dict[str, object]:
    """An array for a JSON answer, its bytes little-endian."""
    raw = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return {
        "base64": base64.b64encode(raw.tobytes()).decode(),
        "shape": list(array.shape),
        "dtype": array.dtype.name,
    }


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
    if any(type(side) is not int or not 0 <= side <= _MAX_SIDE for side in shape):
        # A bool is an int, too.
        raise MalformedRequest(f"the header gives an impossible shape {_cut(shape)}")
    if len(shape) > _MAX_DIMENSIONS:
        raise InvalidInput(
            f"expected a (B, 3, H, W) array, got {len(shape)} dimensions: {_cut(shape)}"
        )
    promised = math.prod(shape) * dtype.itemsize
    if promised != data.nbytes:
        raise MalformedRequest(
            f"the header promises {promised} bytes for shape {shape} {dtype}, "
            f"but {data.nbytes} follow: the body was cut short or its header is wrong"
        )
    array = np.frombuffer(data, dtype=dtype)
    try:
        return array.reshape(shape, order="F" if fortran else "C")
    except ValueError as error:  # one side is 0, and the others are too many for numpy's sizes
        raise MalformedRequest(f"the header gives an impossible shape {_cut(shape)}") from error


def _cut(shape: Sequence[object]) -> str:
    """The shape, of which a message need not show all."""
    text = str(tuple(shape))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _tensor(described: Mapping[str, Any], workspace: Workspace) -> PixelArray:
    """A safetensors tensor, in memory of the workspace."""
    name, data = described["dtype"], described["data"]
    if name not in _SAFETENSORS_DTYPES:
        raise InvalidInput(
            f"dtype {name} is not taken: send U8 for resized RGB, or F32, F16 or BF16 for "
            "normalised pixels"
        )
    dtype = np.dtype(_SAFETENSORS_DTYPES[name])
    shape = tuple(described["shape"])
    if name != "BF16":
        raw = workspace.allocate(len(data))
        raw[:] = data
        return _view(raw, shape, dtype)
    high = _view(memoryview(data), shape, dtype)
    wide = np.frombuffer(workspace.allocate(2 * len(data)), "<u4")[: high.size].reshape(high.shape)
    np.left_shift(high, 16, out=wide, dtype=np.uint32)
    return wide.view("<f4")


def _check_keys(content: Mapping[str, Any], known: Sequence[str], place: str) -> None:
    """Raise InvalidInput for keys that would have no effect."""
    unknown = [key for key in content if key not in known]
    if unknown:
        raise InvalidInput(
            f"{', '.join(unknown)[:_SHOWN]} would have no effect in {place}, which has "
            f"{', '.join(known)}: options are parameters of the URL (?pooling=cls)"
        )


def _read_base64(inputs: dict[str, Any], workspace: Workspace) -> PixelArray:
    keys = ("base64", "shape", "dtype")
    _check_keys(inputs, keys, "the inputs object")
    missing = [key for key in keys if key not in inputs]
    if missing:
        raise MalformedRequest(f"the inputs object lacks {', '.join(missing)}")
    shape = inputs["shape"]
    if not isinstance(shape, list) or not all(type(side) is int for side in shape):
        raise MalformedRequest("shape must be a list of whole numbers, as [B, 3, H, W]")
    try:
        decoded = base64.b64decode(inputs["base64"], validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise MalformedRequest(f"base64 cannot be decoded ({error})") from error
    raw = workspace.allocate(len(decoded))
    raw[:] = decoded
    return _view(raw, tuple(shape), _json_dtype(inputs["dtype"]).newbyteorder("<"))


def _json_dtype(name: object) -> np.dtype[Any]:
    if name not in _JSON_DTYPES:
        raise InvalidInput(f"dtype {name!r} is not taken: use one of {', '.join(_JSON_DTYPES)}")
    return np.dtype(str(name))
