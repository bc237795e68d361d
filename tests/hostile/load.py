"""Requests that go on while something happens to the service; every row is compared."""

from __future__ import annotations

import io
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from support.serving import NPY, from_npy, npy
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.types.model_info import EMBEDDING, EmbedOptions

PATIENCE = 120.0


def expected(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the stub service gives for these pixels."""
    engine = ArithmeticEngine()
    return engine.run(engine.stage("arithmetic", [pixels], EmbedOptions()))[EMBEDDING]


def png(pixels: NDArray[np.uint8]) -> bytes:
    """One row as a file."""
    file = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue()


def wait(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Until the condition holds; fails with `what` it is about if it does not."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


class Load:
    """Threads that send arrays, every third an encoded image, one request after the other.

    answers: how many of each kind came, "200" or "429 queue_full" or the client's error.
    wrong: must stay empty.
    """

    def __init__(self, url: str, *, threads: int = 4, timeout: float = 60) -> None:
        self.answers: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._url = url
        self._timeout = timeout
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._send, args=(seed,)) for seed in range(threads)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.more()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in self._threads)
        if error is None:
            assert not self.wrong, self.wrong[:5]

    def more(self, answers: int = 20) -> None:
        """Wait until so many more right answers came."""
        before = self.answers["200"]
        wait(lambda: self.answers["200"] >= before + answers, f"no answers: {self.answers}")

    def only(self, *answers: str) -> None:
        """Fail if there was another answer than a right one and these."""
        assert set(self.answers) <= {"200", *answers}, self.answers

    def _send(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        with httpx.Client(timeout=self._timeout) as http:
            while not self._stop.is_set():
                image = random.random() < 0.3
                shape = (1 if image else random.integers(1, 6), 3, 8, 8)
                pixels = random.integers(0, 256, shape, dtype=np.uint8)
                self._one(http, pixels, image=image)

    def _one(self, http: httpx.Client, pixels: NDArray[np.uint8], *, image: bool) -> None:
        content = png(pixels[0]) if image else npy(pixels)
        headers = {"Content-Type": "image/png"} if image else NPY
        try:
            answer = http.post(f"{self._url}/embed", content=content, headers=headers)
        except httpx.TransportError as error:
            self._count(type(error).__name__)
            time.sleep(0.05)
            return
        if answer.status_code != 200:
            self._count(f"{answer.status_code} {_code(answer)}")
            time.sleep(0.05)
            return
        if not np.array_equal(from_npy(answer.content), expected(pixels)):
            self.wrong.append(f"{len(pixels)} rows, image: {image}")
        self._count("200")

    def _count(self, answer: str) -> None:
        with self._lock:
            self.answers[answer] += 1


def _code(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["code"])
    except (ValueError, KeyError, TypeError):  # a proxy's own
        return "?"
