"""Rows of several requests become one batch, whichever threads copy them."""

from __future__ import annotations

import ctypes
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vim_embed.kernels.cpu import compile as native
from vim_embed.kernels.cpu.host_copy import SOURCE, ParallelCopy, Sending
from vim_embed.types.preprocessing import Rounding

pytestmark = pytest.mark.skipif(native.find_compiler() is None, reason="no C++ compiler here")


def parts_of(lengths: list[int], shape: tuple[int, ...], dtype: str) -> list[NDArray[np.generic]]:
    generator = np.random.default_rng()
    parts = [generator.integers(0, 200, (n, *shape)).astype(dtype) for n in lengths]
    for part in parts:
        part.flags.writeable = False
    return parts


def put_together(parts: list[NDArray[np.generic]], skip: int = 0) -> NDArray[np.generic]:
    """Into memory that begins `skip` numbers behind where it is aligned, poisoned before."""
    rows, shape = sum(map(len, parts)), parts[0].shape[1:]
    size = rows * int(np.prod(shape))
    memory = np.full(skip + size + 1, 255, np.uint8).astype(parts[0].dtype)
    out = memory[skip : skip + size].reshape(rows, *shape)
    ParallelCopy()(parts, out)
    assert memory[:skip].tolist() == [255] * skip
    assert memory[-1] == 255
    return out


@pytest.mark.parametrize("lengths", [[1], [64], [1, 40, 2, 21], [0, 3]])
@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
@pytest.mark.parametrize("shape", [(3, 64, 64), (4, 5, 7), (3, 100, 101), (1,)])
def test_every_number_is_in_its_place(lengths: list[int], dtype: str, shape: tuple[int]) -> None:
    parts = parts_of(lengths, shape, dtype)
    for skip in (0, 1, 3):
        assert np.array_equal(put_together(parts, skip), np.concatenate(parts))


def test_parts_in_any_memory_order() -> None:
    (part,) = parts_of([6], (3, 40, 50), "float32")
    parts = [part[::-1], part[::2], np.asfortranarray(part), part.transpose(0, 1, 3, 2)[..., :50]]
    with pytest.raises(ValueError, match=r"parts of .*\(6, 3, 50, 40\) float32 do not fill"):
        put_together(parts)
    assert np.array_equal(put_together(parts[:3]), np.concatenate(parts[:3]))


@pytest.mark.parametrize(
    "out", [np.empty((3, 8), np.float32), np.empty((4, 8), np.float16), np.empty((8, 4)).T]
)
def test_parts_that_do_not_fill_it_are_refused(out: NDArray[np.generic]) -> None:
    with pytest.raises(ValueError, match="do not fill"):
        ParallelCopy()([np.zeros((2, 8), np.float32), np.zeros((2, 8), np.float32)], out)


def test_from_many_threads_at_once() -> None:
    batches = [parts_of([n, 5], (3, 200, 200), "uint8") for n in range(1, 25)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(put_together, batches * 4))
    for out, parts in zip(found, batches * 4, strict=True):
        assert np.array_equal(out, np.concatenate(parts))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(64, 3, 64, 64), (2, 3, 5, 7), (1, 4, 1, 3), (3, 1, 100, 101)])
def test_rounding_is_torch_s(dtype: str, shape: tuple[int, ...]) -> None:
    """Of any finite number: ties, subnormal ones and what becomes infinite are among them."""
    generator = np.random.default_rng()
    bits = generator.integers(0, 2**32, shape, dtype=np.uint32)
    rows = np.where(np.isfinite(bits.view(np.float32)), bits.view(np.float32), 0.0)
    near = generator.normal(0, 1, shape).astype(np.float32)
    few = generator.integers(-3000, 3000, shape).astype(np.float32)
    of = generator.integers(0, 3, shape)
    rows = np.choose(of, [rows, near, few]).astype(np.float32)
    offset = tuple(generator.normal(0, 2, shape[1]).astype(np.float32).tolist())
    out = np.full(shape, -1, np.int16)
    assert ParallelCopy().rounded(rows, out, Rounding(dtype, offset)) or not rounds()
    added = torch.from_numpy(rows) + torch.tensor(offset).view(-1, 1, 1)
    expected = added.to(getattr(torch, dtype)).view(torch.int16).numpy()
    assert np.array_equal(out, expected) or not rounds()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0, 0, 0), (4, 1, 30, 44), (6, 2, 63, 64)])
def test_what_is_not_finite_is_told(value: float, place: tuple[int, ...]) -> None:
    rows = np.random.default_rng().normal(0, 1, (7, 3, 64, 65)).astype(np.float32)
    out, how = np.zeros(rows.shape, np.int16), Rounding("float16", (0.0, 0.0, 0.0))
    assert ParallelCopy().rounded(rows, out, how) == rounds()
    rows[place] = value
    assert not ParallelCopy().rounded(rows, out, how)


def test_only_rows_that_fit_are_rounded() -> None:
    how = Rounding("float16", (0.0,))
    out = np.zeros((2, 1, 4, 4), np.int16)
    for rows in (
        np.zeros((2, 1, 4, 5), np.float32),
        np.zeros((2, 1, 4, 4)),
        np.zeros((2, 1, 4, 4), np.float32).transpose(0, 1, 3, 2),
    ):
        with pytest.raises(ValueError, match="do not fill"):
            ParallelCopy().rounded(rows, out, how)


class Device:
    """Memory that slices are sent to, as to a device's: in their order, one behind the other."""

    def __init__(self, like: NDArray[np.generic], fails_at: int = -1) -> None:
        self.memory = np.full(like.nbytes, 255, np.uint8)
        self.slices: list[tuple[int, int]] = []
        address = self.memory.ctypes.data
        kind = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p
        )

        def send(to: int, start: int, size: int, stream: int) -> int:
            assert stream == 7
            if len(self.slices) == fails_at:
                return 719
            ctypes.memmove(to, start, size)
            self.slices.append((to - address, size))
            return 0

        self._send = kind(send)
        self.sending = Sending.by(ctypes.cast(self._send, ctypes.c_void_p), address, 7)

    def holds_the_beginning_of(self, out: NDArray[np.generic]) -> bool:
        sent = self.sending.sent
        ends = np.cumsum([size for _, size in self.slices]).tolist()
        in_order = [at for at, _ in self.slices] == [0, *ends[:-1]][: len(ends)]
        whole = out.reshape(-1).view(np.uint8)
        rest = (self.memory[sent:] == 255).all()
        return in_order and np.array_equal(self.memory[:sent], whole[:sent]) and bool(rest)


@pytest.mark.parametrize("lengths", [[64], [1, 40, 2, 21], [1]])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_what_is_there_is_sent_meanwhile(lengths: list[int], dtype: str) -> None:
    parts = parts_of(lengths, (3, 200, 201), dtype)
    out = np.full((sum(lengths), 3, 200, 201), 9, dtype)
    device = Device(out)
    ParallelCopy()(parts, out, device.sending)
    assert np.array_equal(out, np.concatenate(parts))
    assert device.holds_the_beginning_of(out)
    if out.nbytes > 4 * 2**20:
        assert 0 < out.nbytes - device.sending.sent <= 2.25 * 2**20, (
            "the last slice is the caller's"
        )
        assert max(size for _, size in device.slices) <= 2.25 * 2**20


@pytest.mark.skipif(native.cpu_capability() == "DEFAULT", reason="no instructions to round with")
@pytest.mark.parametrize("rows", [1, 40])
def test_rounded_rows_are_sent_meanwhile(rows: int) -> None:
    pixels = np.random.default_rng().normal(0, 1, (rows, 3, 224, 223)).astype(np.float32)
    out = np.zeros(pixels.shape, np.int16)
    device = Device(out)
    how = Rounding("float16", (0.0, 0.0, 0.0))
    assert ParallelCopy().rounded(pixels, out, how, device.sending)
    assert np.array_equal(out, pixels.astype(np.float16).view(np.int16))
    assert device.holds_the_beginning_of(out)
    assert (device.sending.sent > 0) == (rows > 20)


def test_a_device_that_takes_no_more_is_told() -> None:
    parts = parts_of([64], (3, 200, 200), "uint8")
    out = np.zeros((64, 3, 200, 200), np.uint8)
    device = Device(out, fails_at=1)
    with pytest.raises(RuntimeError, match="CUDA driver: error 719"):
        ParallelCopy()(parts, out, device.sending)
    assert device.sending.sent == sum(size for _, size in device.slices)
    assert len(device.slices) == 1


def rounds() -> bool:
    """Whether the CPU has the instructions; then there is no way round."""
    return native.cpu_capability() != "DEFAULT"


def test_old_systems_have_all_that_it_asks_for() -> None:
    """A prebuilt library is for glibc 2.28 and the C++ library of its time, as the wheels are."""
    library = native.load(SOURCE).path.read_bytes()
    asked = {
        name: max([int(number) for number in re.findall(pattern, library)], default=0)
        for name, pattern in (("C", rb"GLIBC_2\.(\d+)"), ("C++", rb"GLIBCXX_3\.4\.(\d+)"))
    }
    assert asked["C"] <= 28
    assert asked["C++"] <= 25
