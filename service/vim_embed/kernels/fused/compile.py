"""Compiles CUDA sources with NVRTC at run time and keeps the cubins on disk.

A cubin's name carries a digest of all that determines it (source, macros, architecture, compiler
version) and one of its content: a stale or damaged file is never loaded. Files appear by an
atomic rename, so processes that compile at once do not disturb each other.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from vim_embed.kernels.cpu.compile import CACHE_VARIABLE, cache_dir

_FLAGS = ("-std=c++17", "-default-device")


class CompileError(RuntimeError):
    """A CUDA source cannot be compiled here; the message says why."""


def compiler_version() -> str:
    """NVRTC's version. Raises CompileError if it cannot be loaded."""
    try:
        from cuda.bindings import nvrtc

        status, major, minor = nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError, OSError) as error:
        raise CompileError(f"NVRTC is missing: {error}; pip install cuda-bindings") from error
    if int(status):
        raise CompileError(f"NVRTC does not answer: {status}")
    return f"{major}.{minor}"


def cubin(source: Path, macros: Mapping[str, int], arch: str) -> bytes:
    """The machine code of `source` for `arch` (such as "sm_90"). Raises CompileError."""
    flags = [*_FLAGS, f"--gpu-architecture={arch}"]
    flags += [f"-D{name}={value}" for name, value in sorted(macros.items())]
    text = source.read_bytes()
    key = _digest(text + "\0".join([*flags, compiler_version()]).encode())
    stem = f"{source.stem}-{arch}-{key}"
    cached = _read(cache_dir(), stem)
    if cached is None:
        cached = compile_source(text, source.name, flags)
        _publish(cached, cache_dir(), stem)
    return cached


def compile_source(text: bytes, name: str, flags: list[str]) -> bytes:
    """Compile CUDA C++ to a cubin. Raises CompileError with the compiler's first complaint."""
    from cuda.bindings import nvrtc

    status, program = nvrtc.nvrtcCreateProgram(text, name.encode(), 0, [], [])
    _check(status)
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(flags), [f.encode() for f in flags])
        if int(status):
            raise CompileError(f"{name} does not compile: {_first_error(program)}")
        status, size = nvrtc.nvrtcGetCUBINSize(program)
        _check(status)
        code = b" " * size
        _check(nvrtc.nvrtcGetCUBIN(program, code)[0])
        return bytes(code)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _first_error(program: object) -> str:
    from cuda.bindings import nvrtc

    status, size = nvrtc.nvrtcGetProgramLogSize(program)
    _check(status)
    log = b" " * size
    _check(nvrtc.nvrtcGetProgramLog(program, log)[0])
    lines = log.decode(errors="replace").strip("\0 \n").splitlines()
    return next((line for line in lines if "error" in line), lines[0] if lines else "no message")


def _check(status: object) -> None:
    if int(status):  # type: ignore[call-overload]
        raise CompileError(f"NVRTC failed: {status}")


def _read(directory: Path, stem: str) -> bytes | None:
    with suppress(OSError):
        for path in sorted(directory.glob(f"{stem}-*.cubin")):
            code = path.read_bytes()
            if path.stem.rpartition("-")[2] == _digest(code):
                return code
            path.unlink()
    return None


def _publish(code: bytes, directory: Path, stem: str) -> None:
    """Keep a cubin for the next process; a read-only cache costs a compilation, no more."""
    with suppress(OSError):
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, partial = tempfile.mkstemp(dir=directory, prefix=f".{stem}-")
        with os.fdopen(handle, "wb") as file:
            file.write(code)
        Path(partial).replace(directory / f"{stem}-{_digest(code)}.cubin")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


__all__ = ["CACHE_VARIABLE", "CompileError", "compile_source", "compiler_version", "cubin"]
