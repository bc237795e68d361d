"""Forwards of the fused kernels beside Vim's own, on one CUDA device, in one run.

    PYTHONPATH=service python benchmarks/fused_variants.py older --models tiny,small,base
    PYTHONPATH=service python benchmarks/fused_variants.py relatives --dtypes float16,float32

older: the kernels of a card of compute capability 8.0, as PTX that the driver translates, beside
this card's own and the public kernels; it shows what the portable kernels lose, not what such a
card reaches. relatives: Mamba-Reg and VideoMamba of 768 channels beside Vim-base, by tokens.
Images/s of graph replays, as `vim_embed.bench.gpu` takes them. Random weights.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial

import torch

from vim_embed.bench.cuda_meter import CudaMeter, describe_machine, percentile
from vim_embed.bench.rivals import RIVALS, Forward, RivalMissing, seeded
from vim_embed.kernels.fused.device_code import Limits
from vim_embed.models.mamba_reg import MambaReg
from vim_embed.models.vim import Vim, VimConfig, init_random
from vim_embed.models.vim_fused import FusedVim
from vim_embed.types.devices import DTYPES

AMPERE = Limits((8, 0), 108, 163 * 1024)
BASE = {"dim": 768, "depth": 24}
RELATIVES = {
    "Vim": (Vim, VimConfig(**BASE)),
    "Mamba-Reg": (MambaReg, VimConfig(**BASE, cls="none", registers=12)),
    "VideoMamba": (Vim, VimConfig(**BASE, cls="first", averaged=False)),
}


def rate(forward: Forward, batch: int, meter: CudaMeter) -> float:
    """Images/s of replays."""
    pixels = meter.images(batch, 224)
    call = partial(forward, pixels)
    call()
    replay, _ = meter.captured(call)
    return 1e3 * batch / percentile(meter.times(replay, pixels, 0.5), 0.5)


def older(models: list[str], dtypes: list[str], batches: list[int], meter: CudaMeter) -> None:
    print("| model | dtype | B | own kernels | of 8.0 | of own | public kernels | × public |")
    print("|---|---|---|---|---|---|---|---|")
    # With this card's multiprocessors: only the kernels are the older card's.
    limits = replace(AMPERE, multiprocessors=Limits.of(meter.device).multiprocessors)
    for name in models:
        for label in dtypes:
            dtype = DTYPES[label]
            for batch in batches:
                meter.clear()
                model = seeded(f"vim-{name}")
                own = rate(FusedVim(model, dtype, meter.device).cls, batch, meter)
                old = rate(FusedVim(model, dtype, meter.device, limits=limits).cls, batch, meter)
                row = f"| {name} | {label} | {batch} | {own:,.0f} | {old:,.0f} | {old / own:.2f} |"
                try:
                    theirs = RIVALS["hustvl"](f"vim-{name}", dtype, meter.device, 224)
                    public = rate(theirs, batch, meter)
                    print(f"{row} {public:,.0f} | {old / public:.2f} |", flush=True)
                except RivalMissing as error:
                    print(f"{row} {error} | |", flush=True)


def relatives(dtypes: list[str], batches: list[int], meter: CudaMeter) -> None:
    print("| model | dtype | B | tokens | images/s | tokens/s | of Vim's |")
    print("|---|---|---|---|---|---|---|")
    for label in dtypes:
        for batch in batches:
            first = 0.0
            for name, (kind, config) in RELATIVES.items():
                meter.clear()
                model = kind(config)
                init_random(model, seed=1)
                fused = FusedVim(model.requires_grad_(False), DTYPES[label], meter.device)
                tokens = fused.token_count(224, 224)
                images = rate(fused, batch, meter)
                first = first or images * tokens
                share = images * tokens / first
                print(
                    f"| {name} | {label} | {batch} | {tokens} | {images:,.0f} | "
                    f"{images * tokens:,.0f} | {share:.3f} |",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("command", choices=["older", "relatives"])
    parser.add_argument("--models", default="tiny,small,base", help="for `older`")
    parser.add_argument("--dtypes", default="float32,float16")
    parser.add_argument("--batches", default="128")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device is available: run this where there is one")
    print("; ".join(f"{key} {value}" for key, value in describe_machine().items()), end="\n\n")
    meter, dtypes = CudaMeter(), given.dtypes.split(",")
    batches = [int(each) for each in given.batches.split(",")]
    if given.command == "older":
        older(given.models.split(","), dtypes, batches, meter)
    else:
        relatives(dtypes, batches, meter)


if __name__ == "__main__":
    main()
