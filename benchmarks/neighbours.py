"""How many nearest neighbours each precision keeps: real galaxies, seeded random weights.

    python benchmarks/neighbours.py stamps stamps.npy        # needs the [demo] extra, no GPU
    PYTHONPATH=service python benchmarks/neighbours.py compare stamps.npy --output table.md

`stamps` cuts the 1,000 largest sources out of the Hubble eXtreme Deep Field, 48 × 48 pixels each.
`compare` needs torch, numpy and a CUDA device: it resizes the stamps to 224 (bicubic), embeds them
(the normed class token of full-size models) in every precision, and prints the share of the 10
nearest neighbours by cosine in float64 (the reference operations, on the device) that each keeps,
averaged over the galaxies, and the relative L2 error. float32-ieee: plain products.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vim_embed.bench.cuda_meter import describe_machine, relative
from vim_embed.bench.rivals import reference, seeded
from vim_embed.models.vim_fused import FusedVim
from vim_embed.types.preprocessing import VIM_PREPROCESSING

COUNT, PIXELS, NEIGHBOURS = 1000, 48, 10
PRECISIONS = {
    "float32": (torch.float32, False),
    "float32-ieee": (torch.float32, True),
    "float16": (torch.float16, False),
    "bfloat16": (torch.bfloat16, False),
}


def largest_stamps(count: int = COUNT) -> NDArray[np.uint8]:
    """(count, 48, 48, 3) RGB cut-outs of the sources of the largest area, largest first."""
    from vim_embed_client.demo.stamps import cut_stamps, find_sources, hubble_picture, stamp_boxes

    picture = hubble_picture()
    sources = find_sources(picture, stamp=PIXELS)
    if len(sources) < count:
        raise SystemExit(f"{count} stamps were asked for, the picture has {len(sources)}")
    order = np.argsort(-sources.radius, kind="stable")[:count]
    boxes = stamp_boxes(sources.positions[order], PIXELS)
    return np.ascontiguousarray(cut_stamps(picture, boxes, size=PIXELS).transpose(0, 2, 3, 1))


def prepared(stamps: NDArray[np.uint8], device: torch.device) -> Tensor:
    """(B, 48, 48, 3) uint8 to (B, 3, 224, 224) normalised float32 on the device."""
    spec = VIM_PREPROCESSING
    pixels = torch.from_numpy(stamps).to(device).permute(0, 3, 1, 2).float()
    pixels = F.interpolate(pixels, size=(spec.image_size,) * 2, mode="bicubic", align_corners=False)
    pixels = pixels.round().clamp(0, 255) / 255  # as an image of whole levels would hold it
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (spec.mean, spec.std))
    return (pixels - mean) / std


def embedded(
    forward: Callable[[Tensor], Tensor], stamps: NDArray[np.uint8], device: torch.device, batch: int
) -> Tensor:
    """(N, D) on the CPU."""
    parts = [stamps[i : i + batch] for i in range(0, len(stamps), batch)]
    return torch.cat([forward(prepared(part, device)).float().cpu() for part in parts])


def nearest(embeddings: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """(N, k) indices of each row's nearest others by cosine."""
    directions = F.normalize(embeddings.double(), dim=1)
    similarity = directions @ directions.t()
    similarity.fill_diagonal_(-torch.inf)
    return similarity.topk(k, dim=1).indices


def agreement(found: Tensor, expected: Tensor) -> float:
    """Share of the k neighbours that two (N, k) lists have in common, averaged over the rows."""
    shared = (found[:, :, None] == expected[:, None, :]).any(dim=2)
    return float(shared.double().mean())


def exact(name: str, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The reference operations in float64: images to normed class tokens."""
    model = copy.deepcopy(seeded(name)).to(device, torch.float64)  # the seeded one is shared

    @torch.no_grad()
    def forward(pixels: Tensor) -> Tensor:
        layout = model.layout(*pixels.shape[-2:])
        tokens: Tensor = model(pixels.double())
        return tokens[:, layout.cls or 0]

    return forward


def compare_model(
    name: str, stamps: NDArray[np.uint8], device: torch.device, batch: int
) -> dict[str, tuple[float, float]]:
    """By precision: neighbours kept and relative L2, both against float64."""
    base = embedded(exact(name, device), stamps, device, batch)
    kept = nearest(base)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        label: FusedVim(seeded(name), dtype, device, ieee=ieee).cls
        for label, (dtype, ieee) in PRECISIONS.items()
    }
    ways["reference operations, float32"] = reference(name, device)
    runs = {label: embedded(way, stamps, device, batch) for label, way in ways.items()}
    return {k: (agreement(nearest(v), kept), relative(v, base)) for k, v in runs.items()}


def table(results: dict[str, dict[str, tuple[float, float]]]) -> str:
    """Precisions down, models across: neighbours kept (relative L2)."""
    models = list(results)
    lines = [f"| against float64 | {' | '.join(models)} |", "|---|" + "---|" * len(models)]
    for precision in next(iter(results.values())):
        cells = ("{:.4f} ({:.1e})".format(*results[name][precision]) for name in models)
        lines.append(f"| {precision} | {' | '.join(cells)} |")
    return "\n".join(lines)


def compare(arguments: argparse.Namespace) -> None:
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device is available: run `compare` where there is one")
    stamps = np.load(arguments.stamps, allow_pickle=False)
    if stamps.dtype != np.uint8 or stamps.shape[1:] != (PIXELS, PIXELS, 3):
        raise SystemExit(f"{arguments.stamps} holds {stamps.dtype} {stamps.shape}: make it anew")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    device = torch.device("cuda")
    names = arguments.models.split(",")
    results = {name: compare_model(name, stamps, device, arguments.batch) for name in names}
    machine = "; ".join(f"{key} {value}" for key, value in describe_machine().items())
    text = (
        f"Measured: {machine}. Neighbours kept of k = {NEIGHBOURS} (relative L2), {len(stamps)} "
        f"galaxies, batches of {arguments.batch}.\n\n{table(results)}\n"
    )
    print(text)
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(required=True)
    first = commands.add_parser("stamps", help="write the stamps to an .npy file")
    first.add_argument("stamps", type=Path)
    first.set_defaults(run=lambda given: np.save(given.stamps, largest_stamps()))
    second = commands.add_parser("compare", help="embed them in every precision")
    second.add_argument("stamps", type=Path)
    second.add_argument("--models", default="vim-tiny,vim-small,vim-base")
    second.add_argument("--batch", type=int, default=100)
    second.add_argument("--output", type=Path, help="write the table there (Markdown)")
    second.set_defaults(run=compare)
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
