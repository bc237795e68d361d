"""Compiles CUDA sources with NVRTC at run time and keeps the machine code on disk."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from vim_embed.kernels.build_cache import cache_dir, digest, intact, publish

_FLAGS = ("-std=c++17", "-default-device")
_INCLUDE = re.compile(r'^#include "(\S+)"$', re.MULTILINE)


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


def sources(main: Path) -> dict[str, str]:
    """The text of a CUDA source and of all that it includes, by name; itself first."""
    found = {main.name: main.read_text(encoding="utf-8")}
    waiting = [main.name]
    while waiting:
        for name in _INCLUDE.findall(found[waiting.pop()]):
            if name not in found:
                found[name] = main.with_name(name).read_text(encoding="utf-8")
                waiting.append(name)
    return found


def compiled(source: Path, macros: Mapping[str, int], architecture: str) -> bytes:
    """The machine code of `source` for an architecture such as "sm_90", or its PTX for a virtual
    one such as "compute_80". Raises CompileError."""
    flags = [*_FLAGS, f"--gpu-architecture={architecture}"]
    flags += [f"-D{name}={value}" for name, value in sorted(macros.items())]
    texts = sources(source)
    key = digest(*(part for text in texts.items() for part in text), *flags, compiler_version())
    stem, suffix = f"{source.stem}-{architecture}-{key}", f".{_kind(flags)}"
    with suppress(OSError):
        for path in intact(cache_dir(), stem, suffix):
            return path.read_bytes()
    code = compile_source(texts, flags)
    with suppress(OSError):  # a read-only cache costs a compilation, no more
        publish(code, cache_dir(), stem, suffix)
    return code


def _kind(flags: list[str]) -> str:
    virtual = any(flag.startswith("--gpu-architecture=compute_") for flag in flags)
    return "ptx" if virtual else "cubin"


def compile_source(texts: Mapping[str, str], flags: list[str]) -> bytes:
    """Compile CUDA C++ to a cubin or PTX. Raises CompileError with the compiler's first complaint.

    texts: the program, then what it includes, by name.
    """
    from cuda.bindings import nvrtc

    (name, text), *headers = ((n.encode(), t.encode()) for n, t in texts.items())
    given = [t for _, t in headers], [n for n, _ in headers]
    status, program = nvrtc.nvrtcCreateProgram(text, name, len(headers), *given)
    _check(status)
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(flags), [f.encode() for f in flags])
        if int(status):
            raise CompileError(f"{name.decode()} does not compile: {_first_error(program)}")
        kind = _kind(flags).upper()
        status, size = getattr(nvrtc, f"nvrtcGet{kind}Size")(program)
        _check(status)
        code = b" " * size
        _check(getattr(nvrtc, f"nvrtcGet{kind}")(program, code)[0])
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
