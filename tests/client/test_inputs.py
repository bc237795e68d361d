"""What is refused before anything is sent, and what is sent without surprising copies."""

from __future__ import annotations

import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vim_embed_client import Client, InputError
from vim_embed_client.formats import CHUNK_BYTES, NpyBody
from vim_embed_client.options import Options
from vim_embed_client.pixels import PixelValueWarning, as_pixels
from vim_embed_client.requests import MAX_CHUNK_BYTES, cut, plan_pixels

from .fake_service import SIZE, FakeService, embed_rows

F32 = np.dtype("float32")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((2, 2), "f4"), r"expected pixels of shape \(B, 3, H, W\), got \(2, 2\)"),
        (np.zeros((1, 2, 3, 4, 5), "f4"), "expected pixels of shape"),
        (np.zeros((2, 1, 8, 8), "f4"), "expected 3 channels"),
        (np.zeros((2, 8, 8, 3), "u1"), r"channels last\? use transpose\(0, 3, 1, 2\)"),
        (np.zeros((0, 3, 8, 8), "f4"), "empty"),
        (np.zeros((2, 3, 0, 8), "f4"), "empty"),
        (np.zeros((2, 3, 8, 8), "i8"), "int64 are not taken: send uint8"),
        (np.zeros((2, 3, 8, 8), "?"), "bool are not taken"),
        (np.zeros((2, 3, 8, 8), "O"), "object are not taken"),
        ("galaxy.png", "are not taken"),
        ([[1, 2], [3]], "must be an array"),
        (
            np.ma.masked_equal(np.zeros((2, 3, 8, 8), "f4"), 0),
            "384 numbers of the array are masked",
        ),
    ],
)
def test_unusable_pixels_are_named(client: Any, values: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        client.embed(values)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_with_non_finite_pixels_are_named(
    client: Any, service: FakeService, value: float
) -> None:
    pixels = np.zeros((900, 3, SIZE, SIZE), np.float32)
    pixels[[5, 899], 1, 3, 3] = value
    with pytest.raises(InputError, match=r"rows \[5, 899\] hold NaN or infinite"):
        client.embed(pixels)
    pixels[:20] = value
    with pytest.raises(InputError, match=r"21 rows, the first \[0, 1, 2, 3, 4, 5, 6, 7, 8, 9\],"):
        client.embed(pixels)
    assert service.seen == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float64"}, "unknown dtype"),
        ({"wire": "int8"}, "unknown wire"),
        ({"wire": "uint8"}, r"float32 \(normalised\) pixels cannot be sent as uint8"),
        ({"mean": (0.5, 0.5)}, "mean must be three finite numbers"),
        ({"mean": (0.5, 0.5, float("nan"))}, "mean must be three finite numbers"),
        ({"std": (0.5, 0.5, 0.0)}, "std must be positive"),
    ],
)
def test_unusable_arguments_are_named(client: Any, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        client.embed(np.zeros((1, 3, 8, 8), np.float32), **options)


def test_uint8_pixels_are_never_passed_off_as_normalised(client: Any) -> None:
    with pytest.raises(InputError, match="resized RGB"):
        client.embed(np.zeros((1, 3, 8, 8), np.uint8), wire="float32")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no images"),
        ([np.zeros((3, 8, 8))], r"image 0 is a ndarray.*embed\(\)"),
        (["/nowhere/galaxy.png"], "cannot read /nowhere/galaxy.png: No such file"),
    ],
)
def test_unusable_images_are_named(client: Any, images: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        client.embed_images(images)


def test_one_image_is_a_batch_of_one(client: Any) -> None:
    pixels = np.ones((3, SIZE, SIZE), np.float32)
    np.testing.assert_array_equal(client.embed(pixels), embed_rows(pixels[None]))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "uint8"])
def test_torch_tensors_are_taken(client: Any, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.randint(0, 200, (3, 3, SIZE, SIZE)).to(getattr(torch, dtype))
    if dtype == "float32":
        tensor.requires_grad_()
    plain = tensor.detach().float().numpy()
    expected = embed_rows(plain.astype("uint8") if dtype == "uint8" else plain)
    np.testing.assert_array_equal(client.embed(tensor), expected)


def test_strided_arrays_are_sent_in_their_order(client: Any, tmp_path: Path) -> None:
    channels_last = np.random.default_rng(5).standard_normal((7, SIZE, SIZE, 3)).astype("f4")
    strided = channels_last.transpose(0, 3, 1, 2)[::-2]
    np.testing.assert_array_equal(client.embed(strided), embed_rows(np.ascontiguousarray(strided)))


def test_contiguous_pixels_are_not_copied() -> None:
    pixels = np.zeros((4, 3, 8, 8), np.float32)
    assert np.shares_memory(as_pixels(pixels), pixels)
    _, *chunks = NpyBody(pixels, dtype=F32)
    assert all(np.shares_memory(np.frombuffer(chunk, "u1"), pixels) for chunk in chunks)


@pytest.mark.parametrize("dtype", ["float64", ">f4"])
def test_converting_takes_little_memory(dtype: str) -> None:
    pixels = np.zeros((64, 3, 224, 224), dtype)
    tracemalloc.start()
    total = sum(len(chunk) for chunk in NpyBody(as_pixels(pixels), dtype=F32))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 128 + pixels.size * 4
    assert peak < 8 * CHUNK_BYTES < total


@pytest.mark.parametrize("shape", [(3, 3, 224, 224), (2, 3, 700, 700), (900, 3, 8, 8)])
def test_bodies_are_sent_in_chunks(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    chunks = list(NpyBody(pixels, dtype=F32))
    assert max(map(len, chunks)) <= CHUNK_BYTES
    assert b"".join(chunks)[128:] == pixels.tobytes()


def _options(rows: int) -> Options:
    return Client(rows_per_request=rows)._options


def test_batches_are_also_split_by_size() -> None:
    row = np.zeros((1, 3, 1248, 1248), np.float32)
    pixels = np.broadcast_to(row, (10, *row.shape[1:]))
    plan = plan_pixels(pixels, _options(64), layers=None)
    assert [chunk.stop - chunk.start for chunk in plan.chunks] == [3, 3, 3, 1]


@given(st.lists(st.integers(0, MAX_CHUNK_BYTES * 2), min_size=1), st.integers(1, 9))
def test_cuts_cover_all_items_within_the_limits(sizes: list[int], rows: int) -> None:
    ranges = cut(sizes, rows=rows)
    assert [i for start, stop in ranges for i in range(start, stop)] == list(range(len(sizes)))
    for start, stop in ranges:
        assert 1 <= stop - start <= rows
        assert stop - start == 1 or sum(sizes[start:stop]) <= MAX_CHUNK_BYTES


def test_a_memory_map_is_read_as_it_is_sent(client: Any, tmp_path: Path) -> None:
    pixels: NDArray[Any] = np.random.default_rng(6).random((5, 3, SIZE, SIZE))
    np.save(tmp_path / "rows.npy", pixels)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    np.testing.assert_array_equal(client.embed(mapped), embed_rows(pixels.astype("f4")))


NORMALISED = np.random.default_rng(3).standard_normal((2, 3, 4, 4)).astype("f4")


@pytest.mark.parametrize(
    ("values", "fix"),
    [
        (np.random.default_rng(0).random((2, 3, 4, 4)), "numpy.rint(255 * pixels)"),
        (np.random.default_rng(1).integers(0, 256, (2, 3, 4, 4)).astype("f4"), "astype('uint8')"),
        (np.random.default_rng(2).random((2, 3, 4, 4)) * 4000, "as uint8"),
        (NORMALISED, None),
        (NORMALISED - NORMALISED.min(), None),  # none is negative, and none is far from 0
        (np.zeros((2, 3, 4, 4), "f4"), None),
        (np.zeros((2, 3, 4, 4), np.uint8), None),
    ],
)
def test_floats_that_do_not_look_normalised_are_remarked_on(values: Any, fix: str | None) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plan_pixels(values, _options(64), layers=None)
    assert [type(one.message) for one in caught] == ([PixelValueWarning] if fix else [])
    assert not fix or fix in str(caught[0].message)
