"""What compressing real galaxies costs and saves: ratio, and MB/s of plain bytes per core.

    PYTHONPATH=tests:benchmarks python benchmarks/over_http/compression.py

Sending is the client's own body, receiving the service's own decoder; time is CPU time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vim_embed.http.body.content_coding import Decoder
from vim_embed_client.compression import CODINGS, CompressedBody, Compression
from vim_embed_client.demo.stamps import cut_stamps, find_sources, hubble_picture, stamp_boxes
from vim_embed_client.demo.views import ground_view
from vim_embed_client.formats import NPY, NpyBody

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
_STD = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]


def galaxies(rows: int) -> dict[str, NDArray[Any]]:
    """Stamps of the Hubble deep field at 224 pixels, and the same through a telescope's noise."""
    picture = hubble_picture()
    boxes = stamp_boxes(find_sources(picture).brightest(rows).positions)
    space = cut_stamps(picture, boxes)
    ground = ground_view(picture)
    noisy = cut_stamps(ground, boxes * (len(ground) / len(picture)))
    normalised = ((space.astype(np.float32) / 255 - _MEAN) / _STD).astype(np.float32)
    return {
        "uint8": space,
        "uint8, noisy sky": noisy,
        "float32, normalised": normalised,
        "float16, normalised": normalised.astype(np.float16),
    }


def seconds(work: Callable[[], object], rounds: int) -> float:
    """The median CPU time of a call."""
    taken = []
    for _ in range(rounds):
        begin = time.process_time()
        work()
        taken.append(time.process_time() - begin)
    return statistics.median(taken)


def decompress(parts: list[bytes], coding: str) -> int:
    decoder, size = Decoder(coding), 0
    for part in parts:
        decoder.feed(part)
        while piece := decoder.read():
            size += len(piece)
    decoder.finish()
    return size


def line(name: str, pixels: NDArray[Any], coding: Compression, rounds: int) -> str:
    body = NpyBody(pixels, dtype=pixels.dtype)
    plain = sum(map(len, body))
    coded = CompressedBody(body, coding, media_type=NPY)
    parts = list(coded)
    assert decompress(parts, coding) == plain
    sending = plain / 1e6 / seconds(lambda: list(coded), rounds)
    receiving = plain / 1e6 / seconds(lambda: decompress(parts, coding), rounds)
    ratio = plain / sum(map(len, parts))
    return f"| {name} | {coding} | {ratio:.2f} | {sending:.0f} | {receiving:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print("| pixels | coding | ratio | client, MB/s | service, MB/s |\n|---|---|---|---|---|")
    for name, pixels in galaxies(options.rows).items():
        for coding in CODINGS:
            print(line(name, pixels, coding, options.rounds), flush=True)


if __name__ == "__main__":
    main()
