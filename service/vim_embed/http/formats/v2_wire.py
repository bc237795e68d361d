"""Open Inference Protocol v2: bodies to requests and pixels, arrays to answers. No HTTP objects.

A body is JSON alone, JSON followed by the raw bytes of its binary tensors, or raw bytes alone.
Raw array data is not copied on the way in; lists of numbers are read in bounded memory.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from vim_embed.errors import InvalidInput, MalformedRequest
from vim_embed.http.body.workspace import Workspace
from vim_embed.http.formats import json_bodies
from vim_embed.http.formats.json_numbers import number_pieces
from vim_embed.http.formats.v2_messages import DATATYPES, InferParameters, InferRequest, InputTensor
from vim_embed.types.pixels import PixelArray

INPUT = "pixel_values"
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}
_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_LEVEL = 1  # embeddings hardly compress: do not try hard
# Of memory for a number of an answer: its text, of up to 24 characters, three times; its bytes.
_JSON_VALUE_BYTES, _BINARY_VALUE_BYTES = 96, 20


@dataclass(frozen=True)
class Output:
    """A named array of an answer."""

    name: str
    array: NDArray[Any]
    binary: bool


def read_infer(
    body: memoryview, header_length: int | None, image_size: int, workspace: Workspace
) -> tuple[InferRequest, PixelArray]:
    """A request and its pixels.

    header_length: bytes of the JSON part; None: all of the body; 0: none, the body is one float32
    image of the native size. Raises MalformedRequest or InvalidInput.
    """
    if header_length == 0:
        return _raw_request(body, image_size)
    if header_length is not None and header_length > len(body):
        raise MalformedRequest(
            f"Inference-Header-Content-Length is {header_length}, but the body has {len(body)} "
            "bytes: it counts the JSON part, before compression"
        )
    raw = body[len(body) if header_length is None else header_length :]
    with json_bodies.read(body[:header_length], ("inputs", "data"), workspace) as json_body:
        lists = _lists_of(json_body.content)
        request = _parse(json_body.content)
        names = [output.name for output in request.outputs]
        if len(set(names)) < len(names):
            raise InvalidInput("an output is requested twice: name each once")
        tensor, dtype = _input(request, raw)
        if tensor.data is None:
            return request, _of_raw(tensor, raw, dtype)
        return request, _in_shape(json_body.array(lists[0], dtype, workspace), tensor.shape)


def compressed(body: bytes, encoding: str) -> bytes:
    """The body with a Content-Encoding of `gzip` or `deflate`."""
    return zlib.compress(body, _LEVEL, _WINDOWS[encoding])


def wants_compression(accept_encoding: str) -> str | None:
    """The encoding to answer in: only when it is all that is asked for.

    General clients list several out of habit; for float arrays none is worth its time.
    """
    asked = accept_encoding.strip().lower()
    return asked if asked in _WINDOWS else None


def infer_answer(head: Mapping[str, object], outputs: Sequence[Output]) -> tuple[bytes, int | None]:
    """The answer's body, and the bytes of its JSON part if raw ones follow."""
    described, raw = list[bytes](), list[bytes]()
    for output in outputs:
        little = np.ascontiguousarray(output.array, output.array.dtype.newbyteorder("<"))
        tensor: dict[str, object] = {
            "name": output.name,
            "shape": list(little.shape),
            "datatype": _NAMES[little.dtype],
        }
        if output.binary:
            tensor["parameters"] = {"binary_data_size": little.nbytes}
            raw.append(little.tobytes())
        described.append(_described(tensor, None if output.binary else little.reshape(-1)))
    text = b"".join(
        [json.dumps(head).encode()[:-1], b', "outputs": [', b", ".join(described), b"]}"]
    )
    return b"".join([text, *raw]), len(text) if raw else None


def rendering_bytes(outputs: Sequence[Output]) -> int:
    """Memory that `infer_answer`, `compressed` and the outputs take together, at most."""
    each = {True: _BINARY_VALUE_BYTES, False: _JSON_VALUE_BYTES}
    return sum(output.array.size * each[output.binary] for output in outputs)


def _described(tensor: Mapping[str, object], flat: NDArray[Any] | None) -> bytes:
    """A tensor of the JSON part, with its data if these are not raw."""
    text = json.dumps(tensor).encode()
    if flat is None:
        return text
    return b"".join(
        [text[:-1], b', "data": ', *(piece.encode() for piece in number_pieces(flat)), b"}"]
    )


def _raw_request(body: memoryview, image_size: int) -> tuple[InferRequest, PixelArray]:
    shape, dtype = (1, 3, image_size, image_size), DATATYPES["FP32"]
    if len(body) != math.prod(shape) * dtype.itemsize:
        raise InvalidInput(
            f"a raw request (Inference-Header-Content-Length: 0) is one FP32 image {shape}, "
            f"{math.prod(shape) * dtype.itemsize} bytes, got {len(body)}: for others send JSON too"
        )
    parameters = InferParameters(binary_data_output=True)
    request = InferRequest(inputs=[], parameters=parameters)
    return request, np.frombuffer(body, dtype).reshape(shape)


def _lists_of(content: object) -> list[object]:
    """Take the data out of the inputs, whose lists are no Python objects; True stays for each."""
    inputs = content.get("inputs") if isinstance(content, dict) else None
    lists = []
    for tensor in inputs if isinstance(inputs, list) else ():
        if isinstance(tensor, dict) and tensor.get("data") is not None:
            lists.append(tensor["data"])
            tensor["data"] = True
    return lists


def _parse(content: object) -> InferRequest:
    try:
        return InferRequest.model_validate(content)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        told = "; ".join(
            f"{'.'.join(map(str, p['loc'])) or 'body'}: {p['msg']}" for p in problems[:5]
        )
        of_parameters = all(p["loc"][:1] == ("parameters",) for p in problems)
        if of_parameters:
            known = ", ".join(InferParameters.model_fields)
            raise InvalidInput(f"invalid parameters ({told}); known: {known}") from error
        raise MalformedRequest(f"the request is not as the protocol has it ({told})") from error


def _input(request: InferRequest, raw: memoryview) -> tuple[InputTensor, np.dtype[Any]]:
    """The one input and its dtype, once it is clear where its data are."""
    names = [tensor.name for tensor in request.inputs]
    if names != [INPUT]:
        raise InvalidInput(f"there is one input, {INPUT}; got {', '.join(names) or 'none'}")
    (tensor,) = request.inputs
    if tensor.datatype not in DATATYPES:
        raise InvalidInput(
            f"datatype {tensor.datatype!r} is not taken: send UINT8 for resized RGB, FP32 or FP16 "
            "for normalised pixels"
        )
    size = tensor.parameters.binary_data_size
    if (size is None) == (tensor.data is None):
        raise MalformedRequest(f"{INPUT} needs either data or binary_data_size, not both or none")
    if len(raw) != (size or 0):
        raise MalformedRequest(
            f"the input promises {size or 0} raw bytes, but {len(raw)} follow the JSON part: check "
            "binary_data_size and Inference-Header-Content-Length"
        )
    return tensor, DATATYPES[tensor.datatype]


def _of_raw(tensor: InputTensor, raw: memoryview, dtype: np.dtype[Any]) -> PixelArray:
    promised = math.prod(tensor.shape) * dtype.itemsize
    if promised != len(raw):
        raise MalformedRequest(
            f"shape {tensor.shape} of {tensor.datatype} is {promised} bytes, but binary_data_size "
            f"is {len(raw)}"
        )
    return np.frombuffer(raw, dtype).reshape(tensor.shape)


def _in_shape(array: PixelArray, shape: list[int]) -> PixelArray:
    """Flat data, or data that are nested as the shape says, in that shape."""
    if array.ndim != 1 and list(array.shape) != shape:
        raise MalformedRequest(f"shape is {shape}, but data is nested as {array.shape}")
    if array.size != math.prod(shape):
        raise MalformedRequest(
            f"shape {shape} has {math.prod(shape)} values, but data has {array.size}"
        )
    return array.reshape(shape)
