"""Machine code on a device; the driver is a stand-in."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from vim_embed.kernels.fused import device_code
from vim_embed.kernels.fused.device_code import DeviceCode

CONTEXT = 77


class Driver(SimpleNamespace):
    """As CUDA's: each thread has its current context, 0 before it called anything."""

    CUtensorMap = type("CUtensorMap", (), {})

    def __init__(self) -> None:
        super().__init__(current=threading.local(), made_current=0, launched_in=[])
        self.loaded: list[bytes] = []
        self.limits: list[int] = []

    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8)

    def cuCtxGetCurrent(self) -> tuple[int, int]:
        return 0, getattr(self.current, "context", 0)

    def cuCtxSetCurrent(self, context: int) -> tuple[int]:
        self.current.context = context
        self.made_current += 1
        return (0,)

    def cuModuleLoadData(self, code: bytes) -> tuple[int, str]:
        self.loaded.append(code)
        return 0, "a module"

    def cuModuleGetFunction(self, module: str, name: bytes) -> tuple[int, str]:
        return 0, "a function"

    def cuFuncSetAttribute(self, function: str, attribute: int, value: int) -> tuple[int]:
        self.limits.append(value)
        return (0,)

    def cuLaunchKernel(self, *_: Any) -> tuple[int]:
        context = self.cuCtxGetCurrent()[1]
        self.launched_in.append(context)
        return (0 if context else 201,)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made, bindings = Driver(), ModuleType("cuda.bindings")
    bindings.driver = made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setattr(device_code, "compiled", lambda *given: repr(given).encode())
    monkeypatch.setattr(device_code, "_PROGRAMS", {})

    def synchronize() -> None:
        made.current.context = CONTEXT

    stream = SimpleNamespace(synchronize=synchronize, cuda_stream=5)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    return made


def test_a_thread_that_has_not_called_cuda_launches(driver: Driver) -> None:
    code = DeviceCode(Path("vim.cu"), {}, "sm_90", torch.device("cuda:0"))

    def launch() -> None:
        for _ in range(3):
            code.launch("norm", (1, 1), 32, 0, [1, None])

    launch()
    assert driver.made_current == 0
    with ThreadPoolExecutor(1) as pool:
        pool.submit(launch).result()
    assert driver.launched_in == [CONTEXT] * 6
    assert driver.made_current == 1


def test_a_context_of_another_s_is_left(driver: Driver) -> None:
    """That of another device is current only where the caller has chosen it."""
    code = DeviceCode(Path("vim.cu"), {}, "sm_90", torch.device("cuda:0"))

    def launch() -> None:
        driver.current.context = 78
        code.launch("norm", (1, 1), 32, 0, [])

    with ThreadPoolExecutor(1) as pool:
        pool.submit(launch).result()
    assert driver.launched_in == [78]


def test_models_that_come_and_go_load_their_code_once(driver: Driver) -> None:
    """Nobody unloads it, and what one of them may have of a multiprocessor, the others keep."""
    for memory in (200_000, 100_000, 1000, 210_000):
        code = DeviceCode(Path("vim.cu"), {}, "sm_90", torch.device("cuda:0"))
        code.launch("norm", (1, 1), 32, memory, [])
        del code
    assert len(driver.loaded) == 1
    assert driver.limits == [200_000, 210_000]
    DeviceCode(Path("vim.cu"), {}, "sm_80", torch.device("cuda:0"))
    DeviceCode(Path("vim.cu"), {"DIM": 192}, "sm_90", torch.device("cuda:0"))
    assert len(driver.loaded) == 3
