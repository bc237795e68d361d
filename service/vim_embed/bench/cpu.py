"""How fast the CPU kernels are, and how much memory a forward takes.

Everything that is compared is timed in turn within one run, so that a slow moment of the machine
hits all of it; the smallest and the median time of each are kept. Random weights and inputs.
`vim-embed-server bench` prints it all.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from vim_embed.kernels import chunked
from vim_embed.kernels.cpu.compile import cpu_capability
from vim_embed.kernels.ops import Direction, MixerOps
from vim_embed.kernels.select import Backend, BackendUnavailable, select_backend
from vim_embed.models.vim import VIM_CONFIGS, BiMamba, Vim, VimConfig, init_random

CPU_BACKENDS = ("cpu", "torch")


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call."""

    best: float
    median: float


@dataclass(frozen=True)
class ForwardResult:
    """A whole forward per backend, beside its matrix products alone at the same shapes."""

    model: str
    batch: int
    threads: int
    capability: str
    matmuls: Timing
    forwards: Mapping[str, Timing]

    def ratio(self, backend: str) -> float:
        """Forward over its matrix products, of the smallest times: 1 is as good as it gets."""
        return self.forwards[backend].best / self.matmuls.best


@dataclass(frozen=True)
class ScanResult:
    """One direction of one layer's scan: "cpu", "torch" and "plain" (see `plain_scan`)."""

    model: str
    batch: int
    threads: int
    directions: Mapping[str, Timing]

    def speedup(self, backend: str) -> float:
        """Times faster than the plain algorithm, of the smallest times."""
        return self.directions["plain"].best / self.directions[backend].best


@dataclass(frozen=True)
class MemoryResult:
    """Growth of the resident set from before a process's first forward to its peak, in MB."""

    model: str
    batch: int
    backend: str
    extra_mb: float


def bench_forward(
    model: str,
    *,
    batch: int,
    threads: int,
    backends: Iterable[str] = CPU_BACKENDS,
    repeats: int = 7,
) -> ForwardResult:
    """Time the whole forward and its matrix products. Raises BackendUnavailable."""
    chosen = {name: _backend(name) for name in backends}
    with _threads(threads), torch.inference_mode():
        vim = _random_model(model)
        pixels = torch.randn(batch, 3, vim.config.image_size, vim.config.image_size)
        cases: dict[str, Callable[[], object]] = {"matmuls": _matmuls(vim, batch)}
        for name, backend in chosen.items():
            cases[name] = partial(_forward, vim, backend.ops, pixels)
        timings = _interleaved(cases, repeats)
    matmuls = timings.pop("matmuls")
    return ForwardResult(model, batch, threads, cpu_capability(), matmuls, timings)


def bench_scan(
    model: str,
    *,
    batch: int,
    threads: int,
    backends: Iterable[str] = CPU_BACKENDS,
    repeats: int = 7,
) -> ScanResult:
    """Time one layer's scan, per direction. Raises BackendUnavailable.

    The cpu kernels do both directions, gate and average in one call: half of that is counted.
    """
    config = VIM_CONFIGS[model]
    with _threads(threads), torch.inference_mode():
        forward, backward = (_random_direction(config, batch) for _ in range(2))
        z = torch.randn_like(forward.u)
        cases: dict[str, Callable[[], object]] = {
            "plain": partial(plain_scan, channels_first(forward))
        }
        for name in backends:
            ops = _backend(name).ops
            if name == "torch":
                cases[name] = partial(chunked.scan_direction, forward, reverse=False)
            else:
                cases[name] = partial(ops.scan, forward, backward, z)
        timings = _interleaved(cases, repeats)
    for name in set(timings) - {"plain", "torch"}:
        timings[name] = Timing(timings[name].best / 2, timings[name].median / 2)
    return ScanResult(model, batch, threads, timings)


def bench_memory(model: str, *, batch: int, backend: str, threads: int) -> MemoryResult:
    """Memory of one forward, in a fresh process. Raises RuntimeError if that fails."""
    child = [
        sys.executable,
        "-m",
        __name__ if __name__ != "__main__" else "vim_embed.bench.cpu",
    ]
    command = [*child, "--model", model, "--batch", str(batch), "--threads", str(threads)]
    done = subprocess.run(
        [*command, "--peak-of", backend], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the memory measurement failed: {done.stderr.strip()[-500:]}")
    return MemoryResult(model, batch, backend, float(done.stdout))


def channels_first(inputs: Direction) -> Direction:
    """The layout of mamba's selective_scan_ref: u (B, E, L) and B, C (B, N, L)."""
    turned = {name: getattr(inputs, name) for name in ("u", "B", "C")}
    return replace(inputs, **{k: v.transpose(1, 2).contiguous() for k, v in turned.items()})


def plain_scan(inputs: Direction) -> Tensor:
    """The plain algorithm, as in mamba's selective_scan_ref, on `channels_first` inputs.

    Materialises the decays and the inputs as (B, E, L, N), then loops over L; y (B, E, L). The
    measure of speed, not of correctness.
    """
    u = inputs.u
    delta = F.softplus(inputs.step_weight @ inputs.step.mT + inputs.delta_bias[:, None])
    decays = torch.exp(torch.einsum("bel,en->beln", delta, inputs.A))
    driven = torch.einsum("bel,bnl,bel->beln", delta, inputs.B, u)
    state = u.new_zeros(u.shape[0], u.shape[1], inputs.A.shape[1])
    outputs = []
    for t in range(u.shape[2]):
        state = decays[:, :, t] * state + driven[:, :, t]
        outputs.append(torch.einsum("ben,bn->be", state, inputs.C[:, :, t]))
    return torch.stack(outputs, dim=2) + u * inputs.D[:, None]


def format_table(rows: Iterable[tuple[str, ...]]) -> str:
    """Left-aligned columns, two spaces apart."""
    cells = list(rows)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)
    return "\n".join(lines)


def forward_table(result: ForwardResult) -> str:
    """One line per backend, and one for the matrix products."""
    rows = [("forward", "best ms", "median ms", "images/s", "times its matmuls")]
    for name, timing in {"matmuls alone": result.matmuls, **result.forwards}.items():
        ratio = "" if name == "matmuls alone" else f"{result.ratio(name):.2f}"
        rows.append((name, *_times(timing), f"{1e3 * result.batch / timing.best:.1f}", ratio))
    return format_table(rows)


def scan_table(result: ScanResult) -> str:
    """One line per implementation."""
    rows = [("scan, per direction and layer", "best ms", "median ms", "times faster than plain")]
    for name, timing in result.directions.items():
        rows.append((name, *_times(timing), f"{result.speedup(name):.1f}"))
    return format_table(rows)


def memory_table(results: Iterable[MemoryResult]) -> str:
    """One line per measurement."""
    rows = [("memory of a forward", "batch", "backend", "extra MB")]
    rows += [(r.model, str(r.batch), r.backend, f"{r.extra_mb:.0f}") for r in results]
    return format_table(rows)


def report(
    model: str, *, batch: int, threads: int, repeats: int = 7, memory_batch: int = 32
) -> str:
    """Every measurement for one model of the catalogue, as tables."""
    backends = [name for name in CPU_BACKENDS if _available(name)]
    forward = bench_forward(model, batch=batch, threads=threads, backends=backends, repeats=repeats)
    scan = bench_scan(model, batch=batch, threads=threads, backends=backends, repeats=repeats)
    memory = [
        bench_memory(model, batch=memory_batch, backend=name, threads=threads) for name in backends
    ]
    heading = f"{model}, batch {batch}, {threads} threads, {cpu_capability()}, random weights"
    return "\n\n".join([heading, forward_table(forward), scan_table(scan), memory_table(memory)])


def main() -> None:
    """Print the extra MB of one forward in this process: bench_memory runs it in a fresh one."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", default="vim-tiny", choices=VIM_CONFIGS)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peak-of", metavar="BACKEND", default="cpu")
    chosen = parser.parse_args()
    print(_peak_mb(chosen.model, chosen.batch, chosen.threads, chosen.peak_of))


def _backend(name: str) -> Backend:
    return select_backend(name, torch.device("cpu"), torch.float32)


def _available(name: str) -> bool:
    try:
        _backend(name)
    except BackendUnavailable as error:
        print(f"without {name}: {error}", file=sys.stderr)
        return False
    return True


def _forward(vim: Vim, ops: MixerOps, pixels: Tensor) -> None:
    vim.use_ops(ops)
    vim(pixels)


def _random_model(name: str) -> Vim:
    vim = Vim(VIM_CONFIGS[name])
    init_random(vim)
    return vim.requires_grad_(False).eval()


def _random_direction(config: VimConfig, batch: int) -> Direction:
    rows, columns = config.grid(config.image_size, config.image_size)
    tokens, inner, rank, states = rows * columns + 1, config.inner, config.rank, config.d_state
    projected = torch.randn(batch, tokens, rank + 2 * states)
    return Direction(
        u=torch.randn(batch, tokens, inner),
        step=projected[..., :rank],
        step_weight=torch.randn(inner, rank) / rank**0.5,
        delta_bias=torch.randn(inner) - 4,
        A_log=torch.arange(1.0, states + 1).log().repeat(inner, 1),
        B=projected[..., rank : rank + states],
        C=projected[..., rank + states :],
        D=torch.ones(inner),
    )


def _matmuls(vim: Vim, batch: int) -> Callable[[], None]:
    """The matrix products of a forward, with the model's weights: patches, then every layer's."""
    config = vim.config
    rows, columns = config.grid(config.image_size, config.image_size)
    patches = torch.randn(batch * rows * columns, 3 * config.patch_size**2)
    hidden = torch.randn(batch, rows * columns + 1, config.dim)
    inner = torch.randn(batch, rows * columns + 1, config.inner)
    steps = torch.randn(batch, rows * columns + 1, config.rank + 2 * config.d_state)
    steps = steps[..., : config.rank]
    embedding = vim.patch_embed.proj.weight.flatten(1)
    mixers = [module for module in vim.modules() if isinstance(module, BiMamba)]

    def run() -> None:
        F.linear(patches, embedding)
        for mixer in mixers:
            F.linear(hidden, mixer.in_proj.weight)
            for x_proj, dt_proj in (
                (mixer.x_proj, mixer.dt_proj),
                (mixer.x_proj_b, mixer.dt_proj_b),
            ):
                F.linear(inner, x_proj.weight)
                F.linear(steps, dt_proj.weight)
            F.linear(inner, mixer.out_proj.weight)

    return run


def _interleaved(cases: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Timing]:
    """Each case once to warm up, then all of them in turn, `repeats` times."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for repeat in range(repeats + 1):
        for name, case in cases.items():
            begin = time.perf_counter()
            case()
            if repeat:
                times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: Timing(min(taken), statistics.median(taken)) for name, taken in times.items()}


def _times(timing: Timing) -> tuple[str, str]:
    return f"{timing.best:.2f}", f"{timing.median:.2f}"


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _peak_mb(model: str, batch: int, threads: int, backend: str) -> float:
    """Of this process, which should be fresh: Linux's resident set before, and its peak after."""
    torch.set_num_threads(threads)
    vim = _random_model(model)
    vim.use_ops(_backend(backend).ops)
    pixels = torch.randn(batch, 3, vim.config.image_size, vim.config.image_size)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _resident_mb("VmRSS")
    with torch.inference_mode():
        vim(pixels)
    return _resident_mb("VmHWM") - before


def _resident_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
