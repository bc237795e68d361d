"""Figures of docs/measurements/: parity first, then throughput, memory and a breakdown by kernel.

    PYTHONPATH=service python benchmarks/gpu_bench.py parity
    PYTHONPATH=service python benchmarks/gpu_bench.py table --models tiny,small --batches 128,256
    PYTHONPATH=service python benchmarks/gpu_bench.py breakdown --models small --batches 128
    PYTHONPATH=service python benchmarks/gpu_bench.py large

Times are medians of CUDA-event timings of graph replays over rotated random inputs. `table` runs
the fused kernels, the public kernels (vim_embed/bench/hustvl.py) and timm's DeiT side by side.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vim_embed.bench.cuda_meter import CudaMeter, graph_of, relative, replay_times
from vim_embed.kernels.fused.program import SCANS
from vim_embed.kernels.reference import ReferenceOps
from vim_embed.models.vim import VIM_CONFIGS, Vim, init_random
from vim_embed.models.vim_fused import FusedVim

DEVICE = torch.device("cuda")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BARS = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 2e-2}
Forward = Callable[[Tensor], Tensor]


def seeded(name: str) -> Vim:
    model = Vim(VIM_CONFIGS[f"vim-{name}"], ReferenceOps())
    init_random(model, seed=1)
    return model.requires_grad_(False).eval()


def images(batch: int, size: int, seed: int = 0) -> Tensor:
    return CudaMeter(DEVICE).images(batch, size, seed)


def median_ms(run: Callable[[], object], before: Callable[[int], object], repeats: int) -> float:
    return float(statistics.median(replay_times(run, before, repeats)))


def time_forward(forward: Forward, batch: int, size: int, *, graph: bool = True) -> float:
    """Median milliseconds of one forward; the inputs rotate over three sets."""
    inputs = [images(batch, size, seed) for seed in range(3)]
    pixels = inputs[0].clone()
    call = partial(forward, pixels)
    run: Callable[[], object] = graph_of(call).replay if graph else call
    estimate = median_ms(run, lambda i: pixels.copy_(inputs[i % 3]), 3)
    repeats = max(10, min(100, int(600 / estimate)))
    return median_ms(run, lambda i: pixels.copy_(inputs[i % 3]), repeats)


def peak_mib(forward: Forward, batch: int, size: int) -> float:
    """Peak of allocated memory over a forward, weights and input counted."""
    return CudaMeter(DEVICE).peak_mib(partial(forward, images(batch, size)), held=0)


# ------------------------------------------------------------------ commands
def parity(arguments: argparse.Namespace) -> None:
    for name in arguments.models:
        model = seeded(name).to(DEVICE)
        for size in (224, 208) if name == "tiny" else (224,):
            pixels = images(3, size)
            expected = model(pixels)
            for label, dtype in DTYPES.items():
                fused = FusedVim(model, dtype, DEVICE)
                blocks: list[Tensor] = []
                keep = lambda i, stream, to=blocks: to.append(stream.clone())  # noqa: E731
                found = fused(pixels, on_block=keep)
                error = relative(found, expected)
                cls = relative(found[:, found.shape[1] // 2], expected[:, expected.shape[1] // 2])
                verdict = "ok" if error < BARS[label] else "FAILED"
                print(f"parity {name} {size} {label}: {error:.2e} cls {cls:.2e} {verdict}")
                for channels in SCANS if dtype != torch.float32 else ():
                    fused.scan_channels = channels
                    again = fused(pixels)
                    other = relative(again, expected)
                    same = torch.equal(again, fused(pixels))
                    if other > BARS[label] or not same:
                        print(f"  FAILED scan_{channels}: {other:.2e}, repeatable {same}")


def rows_are_independent(fused: FusedVim, batch: int) -> bool:
    """Whether an image gives the same bytes at every position, whatever its mates."""
    pixels = images(batch, 224)
    whole = fused(pixels)
    rolled = fused(pixels.roll(1, 0)).roll(-1, 0)
    mates = images(batch, 224, seed=9)
    mates[batch // 2] = pixels[batch // 2]
    other = fused(mates)[batch // 2]
    return torch.equal(whole, rolled) and torch.equal(whole[batch // 2], other)


def deit(name: str, dtype: torch.dtype, size: int) -> Forward:
    import timm

    model = timm.create_model(f"deit_{name}_patch16_224", img_size=size, num_classes=0)
    model = model.to(DEVICE, dtype).eval()

    @torch.no_grad()
    def forward(pixels: Tensor) -> Tensor:
        result: Tensor = model(pixels.to(dtype))
        return result

    return forward


def table(arguments: argparse.Namespace) -> None:
    from vim_embed.bench.hustvl import Reference

    for label in arguments.dtypes:
        dtype = DTYPES[label]
        for name in arguments.models:
            model = seeded(name)
            fused = FusedVim(model, dtype, DEVICE)
            memory = peak_mib(fused.cls, 256, 224)  # nothing else is on the device yet
            print(f"peak {name} {label} B=256: {memory:.0f} MiB", flush=True)
            reference = Reference(model.to(DEVICE), dtype, fused.kernels)
            rival = deit(name, dtype, 224)
            pixels = images(2, 224)
            expected = model(pixels)
            errors = [relative(f(pixels), expected) for f in (fused, reference)]
            print(f"{name} {label}: error {errors[0]:.2e}, reference's {errors[1]:.2e}")
            if not errors[0] < BARS[label]:
                print("FAILED parity: not timed")
                continue
            for batch in arguments.batches:
                ours = time_forward(fused.cls, batch, 224)
                theirs = time_forward(reference, batch, 224)
                other = time_forward(rival, batch, 224)
                rate = [batch / t * 1e3 for t in (ours, theirs, other)]
                independent = rows_are_independent(fused, batch)
                print(
                    f"| {name} | {label} | {batch} | {rate[0]:.0f} ({ours:.3f} ms) |"
                    f" {rate[1]:.0f} | {rate[0] / rate[1]:.2f} | {rate[2]:.0f} |"
                    f" {rate[0] / rate[2]:.2f} | independent rows: {independent} |",
                    flush=True,
                )
            del model, reference, rival, expected
            del fused
            torch.cuda.empty_cache()


def large(arguments: argparse.Namespace) -> None:
    """1248 × 1248, B = 16."""
    from vim_embed.bench.hustvl import Reference

    for name in arguments.models:
        model = seeded(name)
        fused = FusedVim(model, torch.float16, DEVICE)
        exact = FusedVim(model, torch.float32, DEVICE)
        pixels = images(1, 1248)
        error = relative(fused(pixels), exact(pixels))
        del exact
        torch.cuda.empty_cache()
        ours = time_forward(fused.cls, 16, 1248)
        memory = peak_mib(fused.cls, 16, 1248)
        rival = deit(name, torch.float16, 1248)
        other = time_forward(rival, 16, 1248)
        rival_memory = peak_mib(rival, 16, 1248)
        del rival
        reference = Reference(model.to(DEVICE), torch.float16, fused.kernels)
        theirs = time_forward(reference, 16, 1248, graph=False)
        print(
            f"| {name} | 16 | {16e3 / ours:.0f} ({memory:.0f} MiB) | {16e3 / theirs:.0f} |"
            f" {16e3 / other:.0f} ({rival_memory:.0f} MiB) | {other / ours:.2f} x DeiT |"
            f" to fp32 {error:.1e} |",
            flush=True,
        )


def breakdown(arguments: argparse.Namespace) -> None:
    """Microseconds of each kernel, averaged over the blocks, and of every scan variant."""
    for name in arguments.models:
        model = seeded(name)
        for batch in arguments.batches:
            for label in arguments.dtypes:
                _breakdown(name, FusedVim(model, DTYPES[label], DEVICE), batch, arguments.size)


def _breakdown(name: str, fused: FusedVim, batch: int, size: int) -> None:
    captured: list[Any] = []
    buffers = fused._buffers
    fused._buffers = lambda n, **more: captured.append(buffers(n, **more)) or captured[-1]  # type: ignore
    rows = fused._rows_at_once(batch, fused.token_count(size, size))
    fused(images(rows, size))
    kept, length, layers = captured[-1], fused.token_count(size, size), fused._layers
    kernels, plain = fused.kernels, not (fused.shape.half or fused.shape.split)

    def over_layers(call: Callable[[int], object]) -> float:
        replay = graph_of(lambda: [call(i) for i in range(len(layers))]).replay
        return median_ms(replay, lambda i: None, 12) / len(layers) * 1e3

    tokens = rows * length
    results = {
        "in_proj": lambda i: fused._project(kept.hidden, layers[i], kept.xz, length, -1),
        "out_proj, add, norm": lambda i: fused._add(
            kept.mixed, layers[i], kept.residual, layers[i], kept.hidden
        ),
        "mix": lambda i: (
            fused._mix_plain(i, kept, length, tokens)
            if plain
            else fused._mix(i, kept, length, tokens, -1)
        ),
    }
    if not plain:
        own = kept

        def xproj(i: int) -> None:
            kernels.xproj(
                xz=own.xz,
                x_proj=layers[i].x_proj,
                dt_proj=layers[i].dt_proj,
                bc=own.bc,
                steps=own.steps,
                length=length,
                x_scale=layers[i].x_scale,
                dt_scale=layers[i].dt_scale,
            )

        def operands(i: int) -> dict[str, Any]:
            return {
                "xz": own.xz,
                "bc": own.bc,
                "steps": own.steps,
                "decay": layers[i].decay,
                "taps": layers[i].taps,
                "vectors": layers[i].vectors,
                "length": length,
                "mixed": own.mixed if fused.shape.split else None,
            }

        def scan(channels: int, i: int) -> None:
            kernels.scan(channels=channels, **operands(i))

        def segments(channels: int, count: int, i: int) -> None:
            kernels.segment_scan(channels=channels, segments=count, **operands(i))

        results["xproj"] = xproj
        few = kernels.program.segment_variant(rows, length, kernels.limits)
        if few is not None:
            results[f"scan in {few[1]} segments"] = partial(segments, *few)
        for channels in SCANS if not own.in_place else (32,):
            results[f"scan{channels}"] = partial(scan, channels)
    times = {key: over_layers(call) for key, call in results.items()}
    shown = "  ".join(f"{key} {value:.1f}" for key, value in times.items())
    print(f"breakdown {name} {fused.dtype} B={rows} L={length}: {shown}", flush=True)


def names(text: str) -> list[str]:
    return text.split(",")


def main(argv: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    commands = {"parity": parity, "table": table, "large": large, "breakdown": breakdown}
    parser.add_argument("command", choices=commands)
    parser.add_argument("--models", type=names, default=["tiny", "small", "base"])
    parser.add_argument("--dtypes", type=names, default=["fp16"])
    parser.add_argument(
        "--batches", type=lambda t: [int(b) for b in t.split(",")], default=[1, 32, 128, 256]
    )
    parser.add_argument("--size", type=int, default=224)
    arguments = parser.parse_args(None if argv is None else list(argv))
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    commands[arguments.command](arguments)


if __name__ == "__main__":
    main()
