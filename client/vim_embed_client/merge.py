"""Puts the answers of one batch together, and refuses those that do not belong together."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import reduce

import numpy as np

from vim_embed_client.errors import BadAnswerError, ProvenanceChangedError
from vim_embed_client.formats import Array
from vim_embed_client.requests import Answer, Chunk, ChunkPlan
from vim_embed_client.results import Embeddings, LayerEmbeddings, Provenance
from vim_embed_pixels.sizes import ImageSizeWarning, size_warning

Progress = Callable[[int, int], None]


class Merge:
    """The answers to a plan, in any order; each is written once, into its rows of the result."""

    def __init__(self, plan: ChunkPlan, on_progress: Progress | None = None) -> None:
        self._plan = plan
        self._on_progress = on_progress
        self._answers: dict[int, Answer] = {}
        self._arrays: dict[str, Array] = {}
        self._done = 0

    def add(self, chunk: Chunk, answer: Answer) -> None:
        """Raises BadAnswerError where the answer does not fit its rows or the other answers."""
        rows = chunk.stop - chunk.start
        _check_shapes(answer, rows)
        if self._answers:
            self._check_like_first(answer)
        else:
            self._allocate(answer)
        for name, array in answer.arrays.items():
            self._arrays[name][chunk.start : chunk.stop] = array
        self._answers[chunk.start] = answer
        self._done += rows
        if self._on_progress:
            self._on_progress(self._done, self._plan.rows)

    def _allocate(self, answer: Answer) -> None:
        self._first = answer
        for name, array in answer.arrays.items():
            self._arrays[name] = np.empty((self._plan.rows, *array.shape[1:]), self._plan.dtype)

    def _check_like_first(self, answer: Answer) -> None:
        changed = self._first.provenance.differences(answer.provenance)
        if changed:
            raise ProvenanceChangedError(
                f"the service changed during the batch ({', '.join(changed)}): was it restarted "
                "with other weights or settings? Nothing was mixed; embed the batch again",
                request_id=answer.request_id,
            )
        if _widths(answer) != _widths(self._first):
            raise BadAnswerError(
                "the requests of one batch were answered with different layers or widths",
                request_id=answer.request_id,
            )

    def _in_order(self) -> list[Answer]:
        return [self._answers[start] for start in sorted(self._answers)]

    def _provenance(self) -> Provenance:
        """The answers' common one; only their devices may differ."""
        each = (answer.provenance for answer in self._in_order())
        return reduce(Provenance.with_devices_of, each)

    def embeddings(self) -> Embeddings:
        """The result of a plan without layers. Warns the caller's caller of another image size."""
        self._remark_on_size()
        return Embeddings(
            embeddings=self._arrays["embedding"],
            provenance=self._provenance(),
            request_ids=tuple(answer.request_id for answer in self._in_order()),
            server_timing=tuple(answer.timing for answer in self._in_order()),
        )

    def _remark_on_size(self) -> None:
        native, size = self._first.native_size, self._plan.unasked_size
        if native and size and (remark := size_warning(*size, native)):
            warnings.warn(remark, ImageSizeWarning, stacklevel=4)

    def layers(self) -> LayerEmbeddings:
        """The result of a plan with layers. Warns the caller's caller of another image size."""
        self._remark_on_size()
        return LayerEmbeddings(
            layers=self._arrays,
            provenance=self._provenance(),
            request_ids=tuple(answer.request_id for answer in self._in_order()),
            server_timing=tuple(answer.timing for answer in self._in_order()),
        )


def _widths(answer: Answer) -> dict[str, tuple[int, ...]]:
    return {name: array.shape[1:] for name, array in answer.arrays.items()}


def _check_shapes(answer: Answer, rows: int) -> None:
    for name, array in answer.arrays.items():
        dimensions = 3 if answer.provenance.pooling == "tokens" else 2
        if array.ndim != dimensions or len(array) != rows:
            raise BadAnswerError(
                f"{rows} rows were sent, but {name} came back with shape {array.shape}",
                request_id=answer.request_id,
            )
