"""Times and memory of forwards on a CUDA device: CUDA events around replays of a captured graph.

Knows no model. Memory is what torch's allocator holds; code, contexts and libraries are outside it.
"""

from __future__ import annotations

import gc
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

_MIB = 2**20
_PACKAGES = ("torch", "timm", "mamba-ssm", "causal-conv1d", "cuda-bindings")

Call = Callable[[], Tensor]


def relative(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖ in float64."""
    found, expected = found.cpu().double(), expected.cpu().double()
    return float((found - expected).norm() / expected.norm())


def percentile(times: Sequence[float], share: float) -> float:
    """The smallest time that at least `share` of the times do not exceed."""
    place = max(0, -int(-share * len(times) // 1) - 1)
    return sorted(times)[place]


def graph_of(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """`call` as a graph, after two warm-up calls."""
    return _captured(call)[0]


def _captured(call: Callable[[], object]) -> tuple[torch.cuda.CUDAGraph, object]:
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    return graph, out


def replay_times(
    run: Callable[[], object], before: Callable[[int], object], repeats: int
) -> list[float]:
    """Milliseconds of `repeats` runs by CUDA events, after three more; before(i) is not counted."""
    times = []
    for index in range(repeats + 3):
        before(index)
        start, end = _event(), _event()
        start.record()
        run()
        end.record()
        end.synchronize()
        if index >= 3:
            times.append(float(start.elapsed_time(end)))
    return times


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class CudaMeter:
    """Measures on the current CUDA device; for tests of what uses it there may be others."""

    device: torch.device = field(default_factory=lambda: torch.device("cuda"))

    def images(self, batch: int, size: int, seed: int = 0) -> Tensor:
        """(batch, 3, size, size) float32 standard normal."""
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(batch, 3, size, size, device=self.device, generator=generator)

    def clear(self) -> int:
        """Free all that nobody holds, cuBLAS's workspaces too; the bytes that are still held."""
        gc.collect()
        torch.cuda.synchronize()
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
        return int(torch.cuda.memory_allocated())

    def peak_mib(self, call: Call, held: int) -> float:
        """The most that is allocated during a call, less `held` bytes of others."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return (int(torch.cuda.max_memory_allocated()) - held) / _MIB

    def captured(self, call: Call) -> tuple[Callable[[], object], Tensor]:
        """A replay of `call` and the tensor that it fills."""
        graph, out = _captured(call)
        assert isinstance(out, Tensor)
        return graph.replay, out

    def times(self, replay: Callable[[], object], pixels: Tensor, seconds: float) -> list[float]:
        """Milliseconds of replays, 20 to 300 in about `seconds`; the pixels rotate over three."""
        sets = [torch.randn_like(pixels) for _ in range(3)]

        def rotate(index: int) -> None:
            pixels.copy_(sets[index % 3])

        estimate = percentile(replay_times(replay, rotate, 3), 0.5)
        return replay_times(replay, rotate, max(20, min(300, int(1e3 * seconds / estimate))))


def describe_machine() -> dict[str, str]:
    """Date, device, driver and versions, for the heading of a table."""
    cuda = torch.cuda.is_available()
    found = {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "driver": _driver(),
        "CUDA": str(torch.version.cuda),
    }
    return found | {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.split("\n")[0].strip()
