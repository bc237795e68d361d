"""Encoders of transformers as they are served, beside transformers itself, in one run.

    PYTHONPATH=service python benchmarks/encoders_bench.py --batches 1,32,128

A model of each kind at the size of transformers' own default configuration (random weights) is
saved, loaded by the ordinary loader, and compared with transformers' forward in float32. Per line:
images/s of whole forwards of float32 images on the device, as `embed` runs them (CUDA graphs) and
as transformers does (eager, torch's fused attention where it has it), medians of alternating
rounds. Needs transformers and a CUDA device.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import warnings
from pathlib import Path

import torch
import transformers
from torch import Tensor

from vim_embed import Embedder, load_model
from vim_embed.bench.cuda_meter import CudaMeter, describe_machine, percentile, relative
from vim_embed.inference.self_check import SELF_CHECK_TOLERANCE
from vim_embed.models.encoder import ENCODERS, Encoder, EncoderFamily
from vim_embed.types.devices import DTYPES
from vim_embed.types.model_info import EMBEDDING, EmbedOptions

ROUNDS = 5
SIZE = 224
TEXT = ("clip", "siglip")  # rows of whole models: their vision towers have rows of their own


def save(family: EncoderFamily, folder: Path) -> int:
    """A seeded model of the default size, in the folder; the side of its images."""
    torch.manual_seed(0)
    model_class = family.model_class
    config = model_class.config_class()
    model_class(config).save_pretrained(folder)
    size = getattr(config, "image_size", SIZE) or SIZE
    side = int(size[0] if isinstance(size, list | tuple) else size)
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": side}))
    return side


def transformers_own(family: EncoderFamily, folder: Path, dtype: torch.dtype) -> Encoder:
    """Its modules as they are: nothing is joined or replaced until `prepare_for_graphs`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = family.model_class.from_pretrained(folder, dtype=dtype, **family.options)
    module = module.eval().cuda()
    return Encoder(module, family)


def mean_token(module: Encoder, pixels: Tensor, dtype: torch.dtype) -> Tensor:
    tokens: Tensor = module(pixels.to(dtype))
    return tokens.float().mean(1)


@torch.inference_mode()
def lines_of(
    kind: str, label: str, batches: list[int], batch_rows: int, seconds: float
) -> list[str]:
    family, dtype = ENCODERS[kind], DTYPES[label]
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        side = save(family, folder)
        exact = transformers_own(family, folder, torch.float32)
        own = transformers_own(family, folder, dtype)
        served: Embedder = load_model("mine", f"hf:{folder}", device="cuda", dtype=label)
    if batch_rows:
        served.use_graphs(batch_rows)
    meter, found = CudaMeter(), []
    for batch in batches:
        pixels = torch.randn(batch, 3, side, side, device="cuda")

        def replay(pixels: Tensor = pixels) -> Tensor:
            return served._forward(pixels, EmbedOptions())[EMBEDDING]

        def eager(pixels: Tensor = pixels) -> Tensor:
            return mean_token(own, pixels, dtype)

        expected = mean_token(exact, pixels[:2], torch.float32)
        error, its = (relative(way()[:2], expected) for way in (replay, eager))
        if not error <= max(SELF_CHECK_TOLERANCE[dtype], 2 * its):
            found.append(f"| {kind} | {side} | {batch} | error {error:.1e}: not timed | | | |")
            continue
        rounds = [
            [percentile(meter.times(way, pixels, seconds), 0.5) for way in (eager, replay)]
            for _ in range(ROUNDS)
        ]
        theirs, ours = (statistics.median(column) for column in zip(*rounds, strict=True))
        found.append(
            f"| {kind} | {side} | {batch} | {1e3 * batch / theirs:,.0f} | "
            f"{1e3 * batch / ours:,.0f} | {theirs / ours:.2f} | {error:.1e} ({its:.1e}) |"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kinds", default=",".join(k for k in ENCODERS if k not in TEXT))
    parser.add_argument("--dtype", default="float16", choices=DTYPES)
    parser.add_argument("--batches", default="1,32,128")
    parser.add_argument(
        "--batch-rows", type=int, default=0, help="of the largest graph; 0: as loaded"
    )
    parser.add_argument("--seconds", type=float, default=0.05, help="of a way in a round")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device is available: run this where there is one")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    machine = "; ".join(f"{key} {value}" for key, value in describe_machine().items())
    print(f"Measured: {machine}; transformers {transformers.__version__}. {given.dtype}.\n")
    print("| model_type | side | batch | transformers | as served | ratio | error (theirs) |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for kind in given.kinds.split(","):
        batches = [int(batch) for batch in given.batches.split(",")]
        lines = lines_of(kind, given.dtype, batches, given.batch_rows, given.seconds)
        print("\n".join(lines), flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
