"""Arrays in every layout that a body may give them: the same values come out."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save

from support.serving import npy
from vim_embed.errors import MalformedRequest, PayloadTooLarge, QueueFull
from vim_embed.http.body.arena import Arena
from vim_embed.http.body.workspace import Workspace
from vim_embed.http.formats import json_bodies
from vim_embed.http.formats.arrays import read_json, read_npy, read_safetensors
from vim_embed.http.formats.multipart import read_files

FLOATS = np.random.default_rng(5).standard_normal((2, 3, 8, 5)).astype(np.float32)
BYTES = np.random.default_rng(6).integers(0, 256, (2, 3, 8, 5), dtype=np.uint8)


@pytest.fixture
def workspace() -> Workspace:
    return Workspace(Arena.private(1 << 24))


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8", "<f2", ">f2"])
@pytest.mark.parametrize("fortran", [False, True])
def test_npy(dtype: str, fortran: bool) -> None:
    array = FLOATS.astype(dtype)
    read = read_npy(npy(np.asfortranarray(array) if fortran else array))
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.float16, torch.float32, torch.float64, torch.bfloat16]
)
def test_safetensors(workspace: Workspace, dtype: torch.dtype) -> None:
    """bfloat16 is read too, and another tensor of a dtype that is not taken does not matter."""
    tensor = torch.from_numpy(BYTES if dtype == torch.uint8 else FLOATS).to(dtype)
    others = {"a": torch.zeros(2, dtype=torch.bfloat16), "z": torch.zeros(1, dtype=torch.int64)}
    read = read_safetensors(save({"pixel_values": tensor, **others}), workspace)
    wide = tensor.float() if dtype == torch.bfloat16 else tensor
    np.testing.assert_array_equal(read, wide.numpy())
    assert read.dtype == wide.numpy().dtype


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(2, 3, 8, 5), (3, 8, 10), (240,), (1, 1, 1, 240), (240, 1)])
def test_json(workspace: Workspace, dtype: str, shape: tuple[int, ...]) -> None:
    array = (BYTES if dtype == "uint8" else FLOATS.astype(dtype)).reshape(shape)
    content = {"dtype": dtype, "inputs": array.tolist()}
    read = read_json(json.dumps(content).encode(), workspace)
    noted = json.dumps({"note": "[[", **content}).encode()  # as v2 takes it: brackets count less
    with json_bodies.read(noted, ("inputs",), workspace) as body:
        again = body.array(body.content["inputs"], np.dtype(dtype), workspace)
    for found in (read, again):
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, array)


def test_json_in_base64(workspace: Workspace) -> None:
    raw = base64.b64encode(FLOATS.tobytes()).decode()
    inputs = {"base64": raw, "shape": list(FLOATS.shape), "dtype": "float32"}
    np.testing.assert_array_equal(
        read_json(json.dumps({"inputs": inputs}).encode(), workspace), FLOATS
    )


def test_what_reading_takes_is_counted() -> None:
    """An arena that holds the body but not what becomes of it refuses, and is free afterwards."""
    body = json.dumps({"inputs": [0] * 100_000}).encode()
    arena = Arena.private(4 << 20)
    with pytest.raises(PayloadTooLarge, match="inflight-bytes"):
        read_json(body, Workspace(arena))
    assert arena.held == 0
    arena = Arena.private(8 << 20)
    workspace = Workspace(arena)
    assert read_json(body, workspace).shape == (100_000,)
    assert 400_000 <= arena.held < 410_000, "the array stays"
    other = Workspace(arena)
    other.count(6 << 20)
    with pytest.raises(QueueFull):
        read_json(body, Workspace(arena))
    other.release()
    workspace.release()
    assert arena.held == 0


FORM = "multipart/form-data; boundary=b"


def form(*files: tuple[str, bytes]) -> bytes:
    head = b'--b\r\nContent-Disposition: form-data; name="i"; filename="%s"\r\n\r\n'
    return b"".join(head % name.encode() + data + b"\r\n" for name, data in files) + b"--b--\r\n"


@pytest.mark.parametrize(
    "data",
    [b"", b"x", b"\r\n--", b"\r\n--b", b"--b", b"\r\n" * 999, b"\r\n--a" * 99, b"\0" * 3_000_000],
    ids=range(8),
)
def test_files_of_a_form_are_views_of_it(workspace: Workspace, data: bytes) -> None:
    if data.endswith(b"\r\n--b"):
        data += b"x"[:0] + b"-no"  # a boundary would end the part here
    whole = memoryview(form(("a é.png", data), ("", b"2"), ("b", data[::-1])))
    files = read_files(whole, FORM, 3, workspace)
    assert [(name, bytes(view)) for name, view in files] == [
        ("a é.png", data), ("", b"2"), ("b", data[::-1])
    ]  # fmt: skip
    assert all(view.obj is whole.obj for _, view in files)


NO_FILES = {
    "a field": b'Content-Disposition: form-data; name="pooling"\r\n',
    "a field with a type": b'Content-Type: image/x\r\nContent-Disposition: form-data; name="i"\r\n',
    "an extended name": b"Content-Disposition: form-data; name=i; filename*=UTF-8''a.png\r\n",
    "a name that looks like one": b'Content-Disposition: form-data; name="a; filename=x"\r\n',
    "a type alone": b"Content-Type: image/png\r\n",
    "no headers": b"",
}


@pytest.mark.parametrize("head", NO_FILES.values(), ids=NO_FILES)
@pytest.mark.parametrize("first", [True, False])
def test_no_part_of_a_form_is_left_out(workspace: Workspace, head: bytes, first: bool) -> None:
    """The rows of the images behind it would be taken for others'."""
    part, files = b"--b\r\n" + head + b"\r\n1\r\n", form(("a", b"1"), ("b", b"2"))
    body = part + files if first else files.removesuffix(b"--b--\r\n") + part + b"--b--\r\n"
    with pytest.raises(MalformedRequest, match=f"part {1 if first else 3} .* file name"):
        read_files(memoryview(body), FORM, 9, workspace)


def test_nothing_follows_a_form(workspace: Workspace) -> None:
    body = form(("a", b"1--b--"), ("b", b""))
    assert len(read_files(memoryview(body + b"\r\n \n"), FORM, 9, workspace)) == 2
    for rest in (body, b"x", b"\r\nx", b" " * 1000):
        with pytest.raises(MalformedRequest, match="follow the form"):
            read_files(memoryview(body + rest), FORM, 9, workspace)
