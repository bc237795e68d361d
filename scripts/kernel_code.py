"""Digests of the GPU kernels' machine code, to compare two revisions: no GPU is needed.

    python scripts/kernel_code.py > after.txt
    git worktree add /elsewhere BEFORE
    PYTHONPATH=/elsewhere/service python scripts/kernel_code.py > before.txt
    diff before.txt after.txt

A change that is only a change of the source's form leaves every line as it was. Needs cuda-bindings
and NVRTC (pip install cuda-bindings nvidia-cuda-nvrtc).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile

import torch

from vim_embed.kernels.fused.compile import cubin
from vim_embed.kernels.fused.launch import SOURCE, Shape

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
DIMS = {192: 12, 384: 24, 768: 48, 32: 2}  # width -> step-size rank
ARCHITECTURES = ("sm_90a", "sm_90", "sm_100", "sm_120")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--architectures", default=",".join(ARCHITECTURES))
    architectures = parser.parse_args().architectures.split(",")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["VIM_EMBED_CACHE_DIR"] = cache  # compile anew
        for name, dtype in DTYPES.items():
            for dim, rank in DIMS.items():
                shape = Shape(dim, 2 * dim, rank, dtype)
                for architecture in architectures:
                    fuses = architecture.endswith("a")
                    if fuses and not shape.fuses_out:
                        continue
                    code = cubin(SOURCE, shape.macros | {"OUT_NORM": int(fuses)}, architecture)
                    digest = hashlib.sha256(code).hexdigest()[:16]
                    print(f"{name} {dim} {architecture} {len(code)} bytes {digest}", flush=True)


if __name__ == "__main__":
    main()
