"""How far a download from the Hub is: huggingface_hub's progress bars, told instead of drawn."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

Tell = Callable[[int, int], None]  # bytes that are here, bytes in all as far as is known


def telling_bars(tell: Tell) -> type[Any]:
    """A `tqdm_class` that draws nothing. Several bars may count the same bytes: the furthest."""
    from tqdm.auto import tqdm  # type: ignore[import-untyped, unused-ignore]

    counting: list[Any] = []

    class Bar(tqdm):  # type: ignore[misc, type-arg, unused-ignore]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})
            self.counts_bytes = kwargs.get("unit") == "B"
            if self.counts_bytes:
                counting.append(self)

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            if self.counts_bytes:
                done, of = (max(getattr(bar, at) or 0 for bar in counting) for at in ("n", "total"))
                tell(int(done), int(of))

    return Bar


def told_in_words(say: Callable[[str], None], every: float = 5.0) -> Tell:
    """Says it at most so often, in seconds, with an estimate of what is left; and when all is here.

    More files may become known after one is here.
    """
    begin = last = time.monotonic()
    finished = False

    def tell(done: int, of: int) -> None:
        nonlocal last, finished
        now, was_finished, finished = time.monotonic(), finished, done >= of
        if finished and not was_finished:
            say("loading its weights")
        elif not finished and now - last >= every:
            last = now
            left = (now - begin) / max(done, 1) * (of - done)
            here = f"{done / 1e6:.0f} of {of / 1e6:.0f} MB"
            say(f"downloading its weights, {here}, about {left:.0f} s left")

    return tell
