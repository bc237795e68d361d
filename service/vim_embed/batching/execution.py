"""A batch in the engine: it runs, its rows are handed out, and a bad request is told from a bad
engine.

A failure that is one request's stays that request's: the requests of a failed batch run singly.
Where none of them comes through, the golden sample tells whether the engine still works.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from vim_embed.batching.observer import Observer
from vim_embed.batching.request import Slice, StagedBatch, fail_all, request_ids
from vim_embed.batching.worker_state import WorkerState
from vim_embed.engines.interface import Engine, EngineFailed
from vim_embed.types.model_info import EMBEDDING, CheckReport, EmbedOptions, ModelInfo

_LOG = logging.getLogger(__name__)


class Execution:
    """Runs the batches of one worker; called by its threads, without any lock."""

    def __init__(
        self,
        engine: Engine,
        observer: Observer,
        *,
        succeeded: Callable[[int, float], None],
        checked: Callable[[WorkerState, str, CheckReport], None],
    ) -> None:
        """succeeded: hears of a batch's rows and seconds. checked: hears of each comparison."""
        self._engine = engine
        self._observer = observer
        self._succeeded = succeeded
        self._checked = checked

    def run(self, state: WorkerState, batch: StagedBatch) -> None:
        """Answer the batch's requests, or fail those at fault. Raises EngineFailed."""
        begin = time.monotonic()
        info = self._info(batch.key.model)
        try:
            outputs = self._engine.run(batch.staged)
            end = time.monotonic()
            begin = state.forward_began(begin, end)
            seconds = end - begin
            state.deliver(batch.slices, outputs, begin, seconds, info)
        except EngineFailed:
            raise
        except Exception as error:
            self._run_apart(state, batch, error)
        else:
            rows = sum(part.rows for part in batch.slices)
            self._succeeded(rows, seconds)
            self._observer.batch(batch.key, rows, len(batch.slices), seconds)

    def compare(self, state: WorkerState, model: str) -> CheckReport:
        """Embed the model's golden sample. Raises KeyError, or what the engine failed with."""
        golden = self._engine.golden(model)
        staged = self._engine.stage(model, [golden.pixels], EmbedOptions())
        report = golden.compare(self._engine.run(staged)[EMBEDDING])
        self._checked(state, model, report)
        return report

    def _run_apart(self, state: WorkerState, batch: StagedBatch, error: Exception) -> None:
        model, ids = batch.key.model, request_ids(batch.slices)
        about = {"model": model, "error": repr(error), "request_ids": ids}
        _LOG.error("a batch failed", extra=about)
        failed = [part for part in batch.slices if not self._run_alone(state, batch, part, error)]
        if len(failed) == len(batch.slices) and not state.over:
            self._suspect(state, model, error)

    def _run_alone(
        self, state: WorkerState, batch: StagedBatch, part: Slice, error: Exception
    ) -> bool:
        if state.over:
            return False
        if len(batch.slices) == 1:
            fail_all([part], error)
            return False
        begin = time.monotonic()
        key, info = batch.key, self._info(batch.key.model)
        try:
            outputs = self._engine.run(self._engine.stage(key.model, [part.pixels], key.options))
            state.deliver([part], outputs, begin, time.monotonic() - begin, info)
        except EngineFailed:
            raise
        except Exception as own:
            fail_all([part], own)
            return False
        return True

    def _suspect(self, state: WorkerState, model: str, error: Exception) -> None:
        """Nothing of a batch came out: was it the rows, or is it the engine?"""
        try:
            self.compare(state, model)
        except Exception as own:
            _LOG.error("the golden sample failed too", extra={"model": model, "error": repr(own)})
            raise EngineFailed(f"{type(error).__name__} in the model: {error}") from error

    def _info(self, model: str) -> ModelInfo | None:
        """Of the model as it is here, for the rows' provenance; asked for before they run."""
        status = self._engine.status().get(model)
        return status.info if status is not None else None
