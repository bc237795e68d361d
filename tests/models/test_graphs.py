"""The bucket logic around CUDA graphs, with a capture that records and replays on the CPU."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from vim_embed.models.graphs import Captured, Compute, GraphCache, buckets_up_to
from vim_embed.models.info import EmbedOptions

MEAN = EmbedOptions()
captures: list[tuple[int, ...]] = []


def compute(pixels: Tensor, options: EmbedOptions) -> dict[str, Tensor]:
    weights = torch.linspace(1, 2, pixels[0].numel()).view(pixels.shape[1:])
    return {"embedding": (pixels.float() * weights).flatten(1).cumsum(1) * len(options.pooling)}


def capture(function: Compute, pixels: Tensor, options: EmbedOptions) -> Captured:
    """Like a graph: fixed buffers; nothing is computed before a replay."""
    captures.append(tuple(pixels.shape))
    outputs = {k: torch.full_like(v, torch.nan) for k, v in function(pixels, options).items()}

    def replay() -> None:
        for name, value in function(pixels, options).items():
            outputs[name].copy_(value)

    return Captured(replay, pixels, outputs)


@pytest.mark.parametrize("rows", [1, 2, 7, 16, 24, 64, 100])
def test_buckets(rows: int) -> None:
    buckets = buckets_up_to(rows)
    assert buckets[0] == 1
    assert buckets[-1] == rows
    assert all(b < c <= 2 * b for b, c in pairwise(buckets))


@pytest.mark.parametrize("rows", [1, 3, 8, 9, 31])
def test_rows_are_padded_and_split(rows: int) -> None:
    cache = GraphCache(compute, [1, 4, 8], capture=capture)
    pixels = torch.randint(0, 256, (rows, 3, 4, 4), dtype=torch.uint8)
    for _ in range(2):
        torch.testing.assert_close(cache(pixels, MEAN), compute(pixels, MEAN))


def test_one_graph_for_each_shape_and_option() -> None:
    captures.clear()
    cache = GraphCache(compute, [4], capture=capture)
    small, large = torch.ones(3, 3, 4, 4), torch.ones(2, 3, 5, 4)
    for pixels in (small, large, small, small.half()):
        cache(pixels, MEAN)
    cache(small, EmbedOptions(pooling="cls"))
    assert captures == [(4, 3, 4, 4), (4, 3, 5, 4), (4, 3, 4, 4), (4, 3, 4, 4)]


def test_graphs_are_bounded() -> None:
    captures.clear()
    cache = GraphCache(compute, [1, 2, 4], limit=2, capture=capture)
    for rows in (1, 2, 1, 4, 1, 2):
        cache(torch.ones(rows, 3, 4, 4), MEAN)
    assert len(cache) == 2
    assert [shape[0] for shape in captures] == [1, 2, 4, 2]
