"""A ViT proxy as it is served, beside transformers eager and timm's ViT of its shape in a graph.

    PYTHONPATH=service python benchmarks/vit_bench.py --dtypes float16,bfloat16 --output table.md

Random weights. Each way is compared with float32 before it is timed (timm has weights of its own:
it is timed alone). Times are CUDA events around a whole forward of float32 images on the device,
as in `vim_embed.bench.gpu`. Needs torch, transformers and a CUDA device; timm where it is there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vim_embed.bench.cuda_meter import CudaMeter, describe_machine, percentile, relative
from vim_embed.inference.self_check import SELF_CHECK_TOLERANCE
from vim_embed.kernels.fused.linear import split_products
from vim_embed.models.vit import random_vit
from vim_embed.types.devices import DTYPES

Forward = Callable[[Tensor], Tensor]
WAYS = ("transformers, eager", "served, graph", "timm, graph")
TIMM = {
    "vim-tiny-proxy": "vit_base_patch16_224",
    "vim-small-proxy": "vit_large_patch16_224",
    "vim-base-proxy": "vit_huge_patch14_224",
}


def forward_of(model: Any, dtype: torch.dtype) -> Forward:
    """Images to the mean of the final tokens."""

    @torch.no_grad()
    def forward(pixels: Tensor) -> Tensor:
        out: Tensor = model(pixels.to(dtype)).float().mean(dim=1)
        return out

    return forward


def built(way: str, name: str, label: str, device: torch.device) -> Forward:
    dtype = DTYPES[label]
    if way.startswith("timm"):
        import timm

        module = timm.create_model(TIMM[name]).eval().requires_grad_(False).to(device, dtype)
        return forward_of(module.forward_features, dtype)
    model: Any = random_vit(name, seed=0).to(device, dtype)
    if way.startswith("transformers"):
        model.model.set_attn_implementation("sdpa")
    else:
        if label == "float32":
            model.use_products(split_products(device))
        model.prepare_for_graphs()
    return forward_of(model, dtype)


def measure(way: str, name: str, label: str, batch: int, meter: CudaMeter, expected: Tensor) -> str:
    """One row of the table; a way that gives other numbers, or fails, says so instead."""
    dtype = DTYPES[label]
    held, begin = meter.clear(), time.perf_counter()
    forward = built(way, name, label, meter.device)
    pixels = meter.images(batch, 224)
    call = partial(forward, pixels)
    for _ in range(3):
        call()
    peak = meter.peak_mib(call, held)
    replay, out = meter.captured(call) if way.endswith("graph") else (call, call())
    replay()
    error = 0.0 if way.startswith("timm") else relative(out[: len(expected)], expected)
    ready = time.perf_counter() - begin
    if not error <= SELF_CHECK_TOLERANCE[dtype]:
        return f"| {label} | {batch} | {way} | error {error:.1e}: not timed | | | | |"
    p50 = percentile(meter.times(replay, pixels, 1.0), 0.5)
    figures = f"{1e3 * batch / p50:.0f} | {p50:.3f} | {peak:.0f} | {error:.1e} | {ready:.0f}"
    return f"| {label} | {batch} | {way} | {figures} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="vim-tiny-proxy", help="the proxy whose shape is taken")
    parser.add_argument("--dtypes", default="float16,bfloat16")
    parser.add_argument("--batches", default="1,32,128")
    parser.add_argument("--ways", default=";".join(WAYS), help="with semicolons between")
    parser.add_argument("--output", type=Path, help="write the table there (Markdown)")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device is available: run this where there is one")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    meter = CudaMeter()
    machine = "; ".join(f"{key} {value}" for key, value in describe_machine().items())
    lines = [f"Measured: {machine}. {given.model}, random weights, 224×224.", ""]
    lines.append("| dtype | batch | way | images/s | p50 ms | peak MiB | error | s to be ready |")
    lines.append("|---|---|---|---|---|---|---|---|")
    print("\n".join(lines), flush=True)
    for batch in map(int, given.batches.split(",")):
        rows = min(batch, 2)
        exact = built(WAYS[0], given.model, "float32", meter.device)
        expected = exact(meter.images(batch, 224)[:rows]).cpu()
        del exact
        for label in given.dtypes.split(","):
            for way in given.ways.split(";"):
                try:
                    line = measure(way, given.model, label, batch, meter, expected)
                except (RuntimeError, ImportError) as error:  # memory that is short, no timm
                    line = f"| {label} | {batch} | {way} | {str(error).splitlines()[0]} | | | | |"
                lines.append(line)
                print(line, flush=True)
    if given.output:
        given.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
