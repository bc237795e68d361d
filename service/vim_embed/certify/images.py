"""The images of a certificate, read as `vim-embed embed` reads them, at the model's size."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import cast

import numpy as np

from vim_embed.errors import ServiceError
from vim_embed.http.formats.images import decode_image
from vim_embed.types.model_info import EmbedOptions, ModelInfo
from vim_embed.types.pixels import PixelArray, PixelError, check_bytes, check_pixels
from vim_embed_client.bulk.pipeline import Cursor, read_from
from vim_embed_client.bulk.sender import BatchSender
from vim_embed_client.bulk.sources.faults import NoSource
from vim_embed_client.bulk.sources.options import ReadOptions
from vim_embed_client.bulk.sources.reader import Item, Skipped
from vim_embed_client.bulk.sources.registry import find_sources, open_reader
from vim_embed_client.errors import InputError
from vim_embed_client.results import Embeddings, PreprocessingEntry

_MOST_PIXELS = 64_000_000  # of one encoded image, as by the service's default
_PLAIN = EmbedOptions()
SAMPLE = "the largest sources of the Hubble eXtreme Deep Field"


@dataclass(frozen=True)
class ImageSet:
    """Rows (3, S, S) of the model's size, with their ids.

    of: how many there were to choose from, where that is known. left_out: rows that could not be
    embedded, and why. source: in words.
    """

    pixels: list[PixelArray]
    ids: list[str]
    source: str
    of: int | None = None
    left_out: list[Skipped] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def digest(self) -> str:
        """sha256 over the rows as the model gets them, in their order."""
        found = hashlib.sha256()
        for row in self.pixels:
            found.update(f"{row.dtype.str}{row.shape}".encode())
            found.update(np.ascontiguousarray(row).data)
        return f"sha256:{found.hexdigest()}"

    def batches(self, rows: int) -> Iterator[tuple[int, PixelArray]]:
        """The number of the first row, and rows of one dtype, at most so many."""
        start = 0
        for _, alike in groupby(self.pixels, key=lambda row: row.dtype):
            block = list(alike)
            for first in range(0, len(block), rows):
                yield start + first, np.stack(block[first : first + rows])
            start += len(block)


def read_images(
    paths: Sequence[str],
    read_options: ReadOptions,
    info: ModelInfo,
    most: int,
    *,
    leave_out: Sequence[Path] = (),
) -> ImageSet:
    """Up to `most` rows of files, evenly chosen where their number is cheap to say.

    leave_out: outputs, as of find_files. Raises InputError for paths that lead to nothing, and
    where no row can be embedded.
    """
    passed_over: list[Skipped] = []
    sources = find_sources(
        paths, options=read_options, leave_out=leave_out, pass_over=passed_over.append
    )
    counts = [open_reader(source, read_options).count() for source in sources]
    total = sum(n for n in counts if n is not None) if None not in counts else None
    wanted = None if total is None or total <= most else _evenly(total, most)
    found = ImageSet([], [], ", ".join(paths), total, passed_over)
    sender = BatchSender(
        _NoService(), cast(PreprocessingEntry, info.preprocessing.as_entry()), resize=True
    )
    entries = read_from(sources, lambda path: open_reader(path, read_options), Cursor())
    for number, (_, entry) in enumerate(entries):
        if len(found) == most:
            break
        if wanted is not None and number not in wanted:
            continue
        if isinstance(entry, Skipped):
            found.left_out.append(entry)
            continue
        try:
            found.pixels.append(_row(sender, entry, info))
            found.ids.append(entry.id)
        except (InputError, NoSource, PixelError, ServiceError) as error:
            found.left_out.append(Skipped(id=entry.id, reason=str(error)))
    if not found.pixels:
        why = f": {found.left_out[0].id}: {found.left_out[0].reason}" if found.left_out else ""
        raise InputError(f"no image can be embedded{why}")
    return found


def sample_images(info: ModelInfo, most: int) -> ImageSet:
    """The largest sources of the packaged Hubble picture, as `vim-embed demo` cuts them.

    Raises InputError where scikit-image is missing, or for a model of other bands than RGB.
    """
    try:
        from vim_embed_client.demo.stamps import (
            STAMP_PIXELS,
            cut_stamps,
            find_sources,
            hubble_picture,
            stamp_boxes,
        )
    except ModuleNotFoundError as error:
        raise InputError(
            f'--sample needs {error.name}: pip install "vim-embed[demo]", or give --images'
        ) from error
    if info.channels != 3:
        raise InputError(f"--sample is RGB, {info.name} takes {info.channels} bands: give --images")
    picture = hubble_picture()
    sources = find_sources(picture)
    order = np.argsort(-sources.radius, kind="stable")[:most]
    boxes = stamp_boxes(sources.positions[order], STAMP_PIXELS)
    spec = info.preprocessing
    stamps = cut_stamps(picture, boxes, size=spec.image_size, interpolation=spec.interpolation)
    ids = [
        f"source {row} at {x:.0f},{y:.0f}"
        for row, (x, y) in zip(order, sources.positions[order], strict=True)
    ]
    return ImageSet(list(stamps), ids, SAMPLE, len(sources))


def _evenly(total: int, most: int) -> set[int]:
    return set(np.linspace(0, total - 1, most).round().astype(int).tolist())


def _row(sender: BatchSender, item: Item, info: ModelInfo) -> PixelArray:
    data = sender.ready(item).data
    if isinstance(data, bytes):
        return decode_image(data, info.preprocessing, max_pixels=_MOST_PIXELS, place="it")
    row = check_pixels(np.asarray(data), info, max_size=4096)
    check_bytes(row, _PLAIN, info)
    side = info.preprocessing.image_size
    if row.shape[-2:] != (side, side):
        height, width = row.shape[-2:]
        raise InputError(f"it has {height}×{width} pixels: give it at the model's {side}×{side}")
    only: PixelArray = row[0]
    return only


class _NoService:
    """In the place of a service: rows are made ready, and never sent."""

    def embed(self, pixels: object) -> Embeddings:
        raise NotImplementedError

    def embed_images(self, images: object) -> Embeddings:
        raise NotImplementedError

    def giving_up_on(self, errors: object) -> _NoService:
        return self
