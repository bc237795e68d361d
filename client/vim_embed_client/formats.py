"""Arrays to bytes and back: npy and safetensors, without pickles and without big copies.

Knows the formats only; which of them a route takes is in requests.py.
"""

from __future__ import annotations

import io
import json
import math
import mmap
import struct
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from vim_embed_client.errors import BadAnswerError

Array = NDArray[Any]

NPY = "application/x-npy"
SAFETENSORS = "application/vnd.safetensors"
CHUNK_BYTES = 1 << 20

# numpy reads headers with Python's own parser, which several threads at once confuse in Python
# 3.11 ("AST constructor recursion depth mismatch", seen on sound files).
NPY_HEADER_LOCK = threading.Lock()

_SAFETENSORS_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip
_SAFETENSORS_NAMES = {np.dtype(value): key for key, value in _SAFETENSORS_DTYPES.items()}


class NpyBody(httpx.SyncByteStream, httpx.AsyncByteStream):
    """An array as the npy file that `numpy.save` would write, in pieces of at most CHUNK_BYTES.

    The array may be strided, memory-mapped or of another dtype than `dtype`: about one chunk of
    it is copied at a time, and none where it is already contiguous and of that dtype.
    """

    def __init__(self, array: Array, *, dtype: np.dtype[Any]) -> None:
        self._array = array
        self._dtype = dtype.newbyteorder("<")
        self._header = npy_header(array.shape, self._dtype)

    @property
    def headers(self) -> dict[str, str]:
        length = len(self._header) + self._array.size * self._dtype.itemsize
        return {"Content-Type": NPY, "Content-Length": str(length)}

    def __iter__(self) -> Iterator[bytes]:
        yield self._header
        for block in row_blocks(self._array, itemsize=self._dtype.itemsize):
            flat = np.ascontiguousarray(block, dtype=self._dtype).reshape(-1).view(np.uint8)
            for start in range(0, flat.size, CHUNK_BYTES):
                yield flat[start : start + CHUNK_BYTES].data  # type: ignore[misc]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self:
            yield chunk


def row_blocks(array: Array, *, itemsize: int) -> Iterator[Array]:
    """Consecutive rows of `array` in groups of about CHUNK_BYTES, at least one row each."""
    row_bytes = max(1, array[0].size * itemsize)
    step = max(1, CHUNK_BYTES // row_bytes)
    for start in range(0, len(array), step):
        yield array[start : start + step]


def npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """The bytes before the data of an npy file in C order."""
    buffer = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


def parse_npy(content: bytes) -> Array:
    """The array in an npy file: a read-only view of `content`.

    Raises BadAnswerError for anything but one plain numeric array of exactly that length.
    """
    buffer = io.BytesIO(content)
    try:
        with NPY_HEADER_LOCK:
            shape, fortran_order, dtype = _read_npy_header(buffer)
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        array = np.frombuffer(content, dtype, offset=buffer.tell())
        return array.reshape(shape, order="F" if fortran_order else "C")
    except Exception as error:  # numpy lets its tokenizer's and parser's own errors through
        raise BadAnswerError(f"the answer is not a sound npy array ({error})") from None


def _read_npy_header(buffer: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(buffer)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(buffer)
    return np.lib.format.read_array_header_2_0(buffer)


def parse_safetensors(content: bytes | mmap.mmap) -> tuple[dict[str, Array], dict[str, str]]:
    """The tensors (read-only views of `content`, in file order) and metadata of a file.

    bfloat16 becomes float32, which holds it exactly.

    Raises BadAnswerError where the header or a tensor's place in the file is not sound.
    """
    try:
        (size,) = struct.unpack_from("<Q", content)
        if size > len(content) - 8:
            raise ValueError("the header is longer than the file")
        header: dict[str, Any] = json.loads(content[8 : 8 + size])
        metadata = header.pop("__metadata__", {})
        data = memoryview(content)[8 + size :]
        return {name: _tensor(data, entry) for name, entry in header.items()}, metadata
    except Exception as error:  # a foreign header can be wrong in any way
        raise BadAnswerError(f"the answer is not a sound safetensors file ({error})") from None


def _tensor(data: memoryview, entry: Mapping[str, Any]) -> Array:
    start, stop = entry["data_offsets"]
    if not 0 <= start <= stop <= len(data):
        raise ValueError("a tensor lies outside the file")
    if entry["dtype"] == "BF16":  # the upper half of a float32, for which numpy has no name
        upper = np.frombuffer(data[start:stop], "<u2").astype(np.uint32)
        return (upper << 16).view(np.float32).reshape(entry["shape"])
    return np.frombuffer(data[start:stop], _SAFETENSORS_DTYPES[entry["dtype"]]).reshape(
        entry["shape"]
    )


def safetensors_header(
    tensors: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]], metadata: Mapping[str, str]
) -> bytes:
    """The bytes of a safetensors file before its tensors, which follow in this order."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        size = dtype.itemsize * math.prod(shape)
        entry = {"dtype": _SAFETENSORS_NAMES[dtype], "shape": list(shape)}
        header[name] = entry | {"data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def safetensors_chunks(
    tensors: Mapping[str, Array], metadata: Mapping[str, str]
) -> Iterator[bytes]:
    """The bytes of a safetensors file: the header, then each tensor."""
    yield safetensors_header({name: (t.dtype, t.shape) for name, t in tensors.items()}, metadata)
    for tensor in tensors.values():
        yield np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data  # type: ignore[misc]
