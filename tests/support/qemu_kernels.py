"""A plugin of pytest that runs the CPU kernels of another processor's code through qemu-user.

    PYTHONPATH=tests pytest -p support.qemu_kernels tests/service/kernels/test_ops.py -k cpu

The sources are compiled for 64-bit ARM together with qemu_driver.cpp; each call of a kernel becomes
one run of it. Needs a cross compiler and qemu-aarch64 (`make neon-tools`).
"""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

from vim_embed.kernels.cpu import ops
from vim_embed.kernels.cpu.compile import Loaded

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


class QemuLibrary:
    """The functions of the library: arguments go to the emulated process, outputs come back."""

    def __init__(self, driver: Path) -> None:
        self._driver = driver

    def vim_set_fork_join(self, function: object) -> None:
        """Nothing: the emulated process has threads of its own."""

    def vim_scan(self, reference: Any) -> None:
        s = reference._obj
        message = _integers(0) + _direction(s.forward, s) + _direction(s.backward, s)
        message += _array(s.z, _reach(s.z_batch, s.z_token, s.channels, s))
        message += _integers(s.z_batch, s.z_token, s.batch, s.length, s.channels, s.states, s.rank)
        count = s.batch * s.length * s.channels
        self._run(message + _integers(s.threads), (s.out, count))

    def vim_conv_silu(self, reference: Any) -> None:
        c = reference._obj
        message = _integers(1) + _array(c.x, _reach(c.x_batch, c.x_token, c.channels, c))
        message += _array(c.weight, c.channels * c.taps) + _array(c.bias, c.channels)
        message += _integers(c.x_batch, c.x_token, c.batch, c.length, c.channels, c.taps)
        count = c.batch * c.length * c.channels
        self._run(message + _integers(c.reverse, c.threads), (c.out, count))

    def vim_add_norm(self, reference: Any) -> None:
        n = reference._obj
        count = n.rows * n.channels
        message = _integers(2) + _array(n.hidden, count) + _array(n.residual, count)
        message += _array(n.weight, n.channels) + _integers(n.rows, n.channels)
        message += _integers(1) + struct.pack("f", n.eps) + _integers(n.threads)
        self._run(message, (n.normed, count), (n.stream, count))

    def _run(self, message: bytes, *outputs: tuple[int, int]) -> None:
        command = [EMULATOR, str(self._driver)]
        found = subprocess.run(command, input=message, capture_output=True, check=True).stdout
        assert len(found) == 4 * sum(count for _, count in outputs)
        for pointer, count in outputs:
            ctypes.memmove(pointer, found[: 4 * count], 4 * count)
            found = found[4 * count :]


def _integers(*values: int) -> bytes:
    return struct.pack(f"{len(values)}q", *values)


def _array(pointer: int | None, count: int) -> bytes:
    if pointer is None:
        return _integers(-1)
    return _integers(count) + ctypes.string_at(pointer, 4 * count)


def _reach(batch: int, token: int, width: int, sizes: Any) -> int:
    """Numbers from the first to the last one of a strided (B, L, width) array."""
    return int((sizes.batch - 1) * batch + (sizes.length - 1) * token + width)


def _direction(d: Any, s: Any) -> bytes:
    return b"".join(
        (
            _array(d.u, _reach(d.u_batch, d.u_token, s.channels, s)),
            _array(d.step, _reach(d.step_batch, d.step_token, s.rank or s.channels, s)),
            _array(d.step_weight, s.channels * s.rank),
            _array(d.delta_bias, s.channels),
            _array(d.A_log, s.channels * s.states),
            _array(d.B, _reach(d.b_batch, d.b_token, s.states, s)),
            _array(d.C, _reach(d.c_batch, d.c_token, s.states, s)),
            _array(d.D, s.channels),
            _integers(d.u_batch, d.u_token, d.step_batch, d.step_token),
            _integers(d.b_batch, d.b_token, d.c_batch, d.c_token),
        )
    )


@cache
def library() -> Loaded:
    """The driver, compiled for ARM with the flags of the service."""
    for tool in (COMPILER, EMULATOR):
        assert shutil.which(tool), f"{tool} is missing: make neon-tools"
    driver = Path(tempfile.mkdtemp(prefix="vim-embed-neon-")) / "driver"
    include = Path(torch.__file__).parent / "include"
    flags = ["-std=c++20", "-O3", "-static", "-pthread", "-fno-math-errno", "-w"]
    defines = ["-DCPU_CAPABILITY=DEFAULT", "-DCPU_CAPABILITY_DEFAULT"]
    source = Path(__file__).with_name("qemu_driver.cpp")
    where = [f"-I{include}", f"-I{ops.SOURCE.parent}", str(source), "-o", str(driver)]
    subprocess.run([COMPILER, *flags, *defines, *where], check=True)
    loaded: Any = QemuLibrary(driver)
    return Loaded(loaded, driver, "emulated")


def pytest_configure() -> None:
    """From now on CpuOps calls the emulated library."""
    ops._library = library
