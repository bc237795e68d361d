"""The bucket logic around CUDA graphs, with a capture that records and replays on the CPU."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from support.fake_graphs import RecordedCapture
from vim_embed.inference.cuda_graphs import GraphCache, buckets_up_to
from vim_embed.types.model_info import EmbedOptions

MEAN = EmbedOptions()


def compute(pixels: Tensor, options: EmbedOptions) -> dict[str, Tensor]:
    weights = torch.linspace(1, 2, pixels[0].numel()).view(pixels.shape[1:])
    return {"embedding": (pixels.float() * weights).flatten(1).cumsum(1) * len(options.pooling)}


@pytest.mark.parametrize("rows", [1, 2, 7, 16, 24, 64, 100])
def test_buckets(rows: int) -> None:
    buckets = buckets_up_to(rows)
    assert buckets[0] == 1
    assert buckets[-1] == rows
    assert all(b < c <= 2 * b for b, c in pairwise(buckets))


@pytest.mark.parametrize("rows", [1, 3, 8, 9, 31])
def test_rows_are_padded_and_split(rows: int) -> None:
    cache = GraphCache(compute, [1, 4, 8], capture=RecordedCapture())
    pixels = torch.randint(0, 256, (rows, 3, 4, 4), dtype=torch.uint8)
    for _ in range(2):
        torch.testing.assert_close(cache(pixels, MEAN), compute(pixels, MEAN))


def test_one_graph_for_each_shape_and_option() -> None:
    capture = RecordedCapture()
    cache = GraphCache(compute, [4], capture=capture)
    small, large = torch.ones(3, 3, 4, 4), torch.ones(2, 3, 5, 4)
    for pixels in (small, large, small, small.half()):
        cache(pixels, MEAN)
    cache(small, EmbedOptions(pooling="cls"))
    assert capture.shapes == [(4, 3, 4, 4), (4, 3, 5, 4), (4, 3, 4, 4), (4, 3, 4, 4)]


def test_graphs_are_bounded() -> None:
    capture = RecordedCapture()
    cache = GraphCache(compute, [1, 2, 4], limit=2, capture=capture)
    for rows in (1, 2, 1, 4, 1, 2):
        cache(torch.ones(rows, 3, 4, 4), MEAN)
    assert len(cache) == 2
    assert [shape[0] for shape in capture.shapes] == [1, 2, 4, 2]


def test_a_bucket_of_one_s_own() -> None:
    capture = RecordedCapture()
    cache = GraphCache(compute, [1, 4], capture=capture)
    pixels = torch.rand(3, 3, 4, 4)
    torch.testing.assert_close(cache(pixels, MEAN, 7), compute(pixels, MEAN))
    assert capture.shapes == [(7, 3, 4, 4)]
