"""Machine code on one device: loads it, describes matrices for copies, launches functions."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vim_embed.kernels.fused.compile import compiled

_MAPS = 1024  # that are kept: one for each matrix's place and shape, and its copies' rows


@dataclass(frozen=True)
class Limits:
    """What a device can do, by which kernels and their variants are chosen, never by its name."""

    capability: tuple[int, int]
    multiprocessors: int
    shared_memory: int  # bytes that one block may have
    clusters: bool = True  # whether blocks may share memory, from compute capability 9.0 on

    @staticmethod
    def of(device: torch.device) -> Limits:
        """Of a CUDA device that is there."""
        from cuda.bindings import driver

        found: Any = torch.cuda.get_device_properties(device)
        memory = int(found.shared_memory_per_block_optin)
        asked = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH
        with torch.cuda.device(device):
            status, clusters = driver.cuDeviceGetAttribute(asked, torch.cuda.current_device())
        has = int(status) == 0 and bool(clusters)
        return Limits((found.major, found.minor), found.multi_processor_count, memory, has)


def too_old(capability: tuple[int, int]) -> str:
    """Why a device of that compute capability has no kernels here, or nothing."""
    major, minor = capability
    return f"compute capability {major}.{minor} is below 8.0" if capability < (8, 0) else ""


def architecture_of(capability: tuple[int, int], *, wgmma: bool) -> str:
    """What NVRTC compiles for; wgmma: with what only that very architecture has."""
    major, minor = capability
    return f"sm_{major}{minor}" + "a" * wgmma


class _Program:
    """A program's functions on one device. It stays for good: graphs hold its kernels, and the next
    model of the same shape takes it again.
    """

    def __init__(self, driver: Any, code: bytes) -> None:
        """Within the device's context."""
        self._driver = driver
        self._module = _checked(driver.cuModuleLoadData(code))
        self._functions: dict[str, Any] = {}
        self._memory: dict[str, int] = {}  # bytes a block that a function may have, beyond 48 KiB
        self._changing = threading.Lock()

    def function(self, name: str, memory: int) -> Any:
        """For launches with so many bytes of shared memory a block; from any thread."""
        driver = self._driver
        with self._changing:
            function = self._functions.get(name)
            if function is None:
                function = _checked(driver.cuModuleGetFunction(self._module, name.encode()))
                self._functions[name] = function
            if memory > self._memory.get(name, 48 * 1024):
                limit = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                _checked(driver.cuFuncSetAttribute(function, limit, memory))
                self._memory[name] = memory
        return function


_PROGRAMS: dict[tuple[int, bytes], _Program] = {}  # by context and code
_LOADING = threading.Lock()


def _program(driver: Any, context: Any, code: bytes) -> _Program:
    key = int(context), code
    with _LOADING:
        if key not in _PROGRAMS:
            _PROGRAMS[key] = _Program(driver, code)
        return _PROGRAMS[key]


def _checked(result: tuple[Any, ...]) -> Any:
    status, *values = result
    if int(status):
        raise RuntimeError(f"CUDA driver: {status}")
    return values[0] if values else None


class DeviceCode:
    """The functions of one CUDA program on one device; they allocate nothing and never wait."""

    def __init__(
        self,
        source: Path,
        macros: Mapping[str, int],
        architecture: str,
        device: torch.device,
        *,
        translated: bool = False,
    ) -> None:
        """translated: the code is another kind of device's, as PTX that the driver translates."""
        self.device = device
        if translated:
            architecture = architecture.replace("sm_", "compute_")
        code = compiled(source, macros, architecture)
        from cuda.bindings import driver

        self._driver: Any = driver
        with torch.cuda.device(device):
            torch.cuda.current_stream(device).synchronize()  # makes the context current
            self._context = _checked(driver.cuCtxGetCurrent())
            self._program = _program(driver, self._context, code)
        self._thread = threading.local()
        self._maps: dict[tuple[int, ...], Any] = {}

    def launch(
        self, name: str, grid: tuple[int, int], threads: int, memory: int, arguments: Sequence[Any]
    ) -> None:
        """Launch a function of that many threads and bytes of shared memory a block.

        arguments: tensors (None: a null pointer), integers, matrices as `map` has them, and numbers
        of ctypes. From any thread whose current device is this one.
        """
        self._enter()
        values: list[Any] = []
        types: list[Any] = []
        for argument in arguments:
            if argument is None or isinstance(argument, Tensor):
                values.append(0 if argument is None else argument.data_ptr())
                types.append(ctypes.c_void_p)
            elif isinstance(argument, self._driver.CUtensorMap):
                values.append(argument)
                types.append(None)
            elif isinstance(argument, int):
                values.append(argument)
                types.append(ctypes.c_int)
            else:
                values.append(argument.value or 0)
                types.append(type(argument))
        stream = torch.cuda.current_stream(self.device).cuda_stream
        function = self._program.function(name, memory)
        sizes = (*grid, 1, threads, 1, 1, memory)
        parameters = (tuple(values), tuple(types))
        _checked(self._driver.cuLaunchKernel(function, *sizes, stream, parameters, 0))

    def _enter(self) -> None:
        """Make the context current where none is: a thread that only ever got memory from torch's
        cache, and streams, has not called CUDA yet.
        """
        if getattr(self._thread, "entered", False):
            return
        if not int(_checked(self._driver.cuCtxGetCurrent())):
            _checked(self._driver.cuCtxSetCurrent(self._context))
        self._thread.entered = True

    def map(self, matrix: Tensor, rows: int) -> Any:
        """A half-precision matrix for copies of `rows` rows and 64 columns, swizzled."""
        key = (matrix.data_ptr(), *matrix.shape, matrix.stride(0), rows)
        known = self._maps.get(key)
        if known is None:
            d = self._driver
            kinds = d.CUtensorMapDataType
            bf16 = matrix.dtype == torch.bfloat16
            known = _checked(
                d.cuTensorMapEncodeTiled(
                    kinds.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                    if bf16
                    else kinds.CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                    2,
                    matrix.data_ptr(),
                    [d.cuuint64_t(matrix.shape[1]), d.cuuint64_t(matrix.shape[0])],
                    [d.cuuint64_t(matrix.stride(0) * 2)],
                    [d.cuuint32_t(64), d.cuuint32_t(rows)],
                    [d.cuuint32_t(1), d.cuuint32_t(1)],
                    d.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
                    d.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
                    d.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                    d.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
                )
            )
            if len(self._maps) >= _MAPS:
                self._maps.clear()
            self._maps[key] = known
        return known
