"""`embed` in process beside the forward alone, in one run: what host memory and Python cost.

    PYTHONPATH=service python benchmarks/in_process.py --models vim-tiny,vim-small --rows 128,256

Per line: images/s of replays of the graphs with uint8 rows already on the device, one behind the
other; of a graph of 128 rows, the same way; and of `load_model(...).embed(array)` from host arrays
(uint8 and float32), with their shares of the first. Rounds alternate. Random weights. Needs a CUDA
device.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from vim_embed import Embedder, load_model
from vim_embed.bench.cuda_meter import describe_machine
from vim_embed.inference.cuda_graphs import GraphCache
from vim_embed.types.model_info import EmbedOptions

ROUNDS = 7


def seconds_of(call: Callable[[], object], repeats: int) -> float:
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / repeats


@torch.inference_mode()
def rates(model: Embedder, rows: int) -> dict[str, float]:
    """Images/s by way: the median of alternating rounds."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (rows, 3, 224, 224), dtype=np.uint8)
    floats = pixels.astype(np.float32) / 127.5 - 1
    on_device = torch.from_numpy(pixels).cuda()
    large = GraphCache(model.compute, [128])
    ways = {
        "graph": lambda: model._forward(on_device, EmbedOptions()),
        "of 128": lambda: large(on_device, EmbedOptions()),
        "uint8": lambda: model.embed(pixels),
        "float32": lambda: model.embed(floats),
    }
    for call in ways.values():
        call()
    repeats = max(2, int(0.2 / seconds_of(ways["graph"], 2)))
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, call in ways.items():
            found[way].append(rows / seconds_of(call, repeats))
    return {way: statistics.median(each) for way, each in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="vim-tiny,vim-small,vim-base,vim-tiny-proxy")
    parser.add_argument("--dtypes", default="float16")
    parser.add_argument("--rows", default="128,256")
    parser.add_argument(
        "--batch-rows", type=int, help="of the largest graph; as loaded, unless set"
    )
    given = parser.parse_args()
    print("; ".join(f"{key} {value}" for key, value in describe_machine().items()), end="\n\n")
    print("| model | dtype | rows | graph, images/s | of 128 | from uint8 | from float32 |")
    print("|---|---|---|---|---|---|---|")
    for name in given.models.split(","):
        for dtype in given.dtypes.split(","):
            model = load_model(name, device="cuda", dtype=dtype, random_weights=True)
            if given.batch_rows:
                model.use_graphs(given.batch_rows)
            for rows in map(int, given.rows.split(",")):
                rate = rates(model, rows)
                share = {way: f"{rate[way]:,.0f} ({rate[way] / rate['graph']:.3f})" for way in rate}
                print(
                    f"| {name} | {dtype} | {rows} | {rate['graph']:,.0f} | {share['of 128']} | "
                    f"{share['uint8']} | "
                    f"{share['float32']} |",
                    flush=True,
                )
            del model
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
