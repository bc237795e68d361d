"""Memory that is too short has one kind of error, whoever lacked it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# What CUDA says where it lacks memory itself: for a graph, a buffer of the host, cuBLAS.
_SHORT = re.compile(r"CUDA (error|driver): .*(out[ _]of[ _]memory|ALLOC_FAILED)", re.IGNORECASE)


@contextmanager
def one_short_memory() -> Iterator[None]:
    """Raise torch.OutOfMemoryError for it, as torch's own allocator does: it is no lost device."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if not _SHORT.match(str(error)):
            raise
        raise torch.OutOfMemoryError(str(error).splitlines()[0]) from error
