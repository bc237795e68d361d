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

from vim_embed.kernels.fused.compile import compiled
from vim_embed.kernels.fused.program import SOURCE, Program, Shape

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
DIMS = {192: 12, 384: 24, 768: 48, 32: 2}  # width -> step-size rank
CAPABILITIES = ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["VIM_EMBED_CACHE_DIR"] = cache  # compile anew
        for name, dtype in DTYPES.items():
            for dim, rank in DIMS.items():
                for split in (False, True) if dtype == torch.float32 else (False,):
                    shape = Shape(dim, 2 * dim, rank, dtype, split)
                    _print(name + " split" * split, shape)


def _print(name: str, shape: Shape) -> None:
    for capability in CAPABILITIES:
        program = Program(shape, capability)
        code = compiled(SOURCE, program.macros, program.architecture)
        digest = hashlib.sha256(code).hexdigest()[:16]
        print(f"{name} {shape.dim} {program.architecture} {len(code)} bytes {digest}", flush=True)


if __name__ == "__main__":
    main()
