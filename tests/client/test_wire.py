"""npy and safetensors against the libraries that define them."""

from __future__ import annotations

import contextlib
import io
import json
import struct
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load, save
from safetensors.torch import save as save_torch

from vim_embed_client import BadAnswerError
from vim_embed_client.formats import NpyBody, parse_npy, parse_safetensors, safetensors_chunks
from vim_embed_client.pixels import as_pixels, wire_dtype

TENSORS: dict[str, NDArray[Any]] = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.arange(4, dtype=np.float16).reshape(2, 2),
}


def _npy(array: NDArray[Any], *, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
def test_bodies_are_what_numpy_saves(dtype: str) -> None:
    array = np.random.default_rng(0).integers(0, 200, (2, 3, 5, 7)).astype(dtype)
    assert b"".join(NpyBody(array, dtype=array.dtype)) == _npy(array)


def test_npy_is_read() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(parse_npy(_npy(array)), array)
    np.testing.assert_array_equal(parse_npy(_npy(np.asfortranarray(array))), array)


def test_pickled_arrays_are_refused() -> None:
    with pytest.raises(BadAnswerError, match="Python objects"):
        parse_npy(_npy(np.array([{}], object), allow_pickle=True))


def test_safetensors_are_read() -> None:
    tensors, metadata = parse_safetensors(save(TENSORS, {"k": "v"}))
    assert metadata == {"k": "v"}
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(tensors[name], tensor)
        assert tensors[name].dtype == tensor.dtype


def test_safetensors_are_written(tmp_path: Any) -> None:
    path = tmp_path / "out.safetensors"
    path.write_bytes(b"".join(safetensors_chunks(TENSORS, {"k": "é"})))
    for name, tensor in load(path.read_bytes()).items():
        np.testing.assert_array_equal(tensor, TENSORS[name])
    with safe_open(path, "numpy") as file:
        assert file.metadata() == {"k": "é"}


def _file(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _entry(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changes}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 2**63) + b"{}",
        _file(b"not json"),
        _file(b"[" * 100_000),
        _file([]),
        _file({"a": 1}),
        _file(_entry(data_offsets=[0, 8]), b"1234"),
        _file(_entry(data_offsets=[-4, 0]), b"1234"),
        _file(_entry(data_offsets=[4, 0]), b"1234"),
        _file(_entry(dtype="BF16"), b"1234"),
        _file(_entry(shape=[2]), b"1234"),
        _file(_entry(shape=[2**70]), b"1234"),
        _file(_entry(shape="x"), b"1234"),
    ],
)
def test_unsound_safetensors_are_refused(content: bytes) -> None:
    with pytest.raises(BadAnswerError, match="not a sound safetensors file"):
        parse_safetensors(content)


@given(st.integers(0, 200), st.binary(max_size=8))
def test_damaged_files_are_read_or_refused_never_worse(place: int, junk: bytes) -> None:
    for content, parse in ((_npy(TENSORS["b"]), parse_npy), (save(TENSORS), parse_safetensors)):
        damaged = content[:place] + junk + content[place + len(junk) :]
        with contextlib.suppress(BadAnswerError):
            parse(damaged)


def test_bfloat16_beside_other_tensors() -> None:
    values = torch.tensor([[1.5, -2.0, 3e38]], dtype=torch.bfloat16)
    tensors, _ = parse_safetensors(save_torch({"half": values, "embedding": torch.ones(1, 2)}))
    np.testing.assert_array_equal(tensors["half"], values.float().numpy())
    np.testing.assert_array_equal(tensors["embedding"], np.ones((1, 2), np.float32))


@pytest.mark.parametrize("dtype", [">f8", ">f4", ">f2"])
def test_big_endian_pixels_are_what_they_are(dtype: str) -> None:
    pixels = np.linspace(-1, 1, 3 * 8 * 8).reshape(1, 3, 8, 8)
    taken = as_pixels(pixels.astype(dtype))
    body = b"".join(NpyBody(taken, dtype=wire_dtype(taken, "auto")))
    sent = np.load(io.BytesIO(body), allow_pickle=False)
    assert sent.dtype.isnative
    np.testing.assert_array_equal(sent, pixels.astype(dtype).astype(sent.dtype))
