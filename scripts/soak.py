"""A server at saturation for minutes: the resident memory of its processes stays flat.

    PYTHONPATH=tests python scripts/soak.py --minutes 30 --output soak.json

Requests of mixed sizes, dtypes, formats and codings keep more rows waiting than the model computes,
and more bytes than the bodies' memory holds; now and then one leaves early, or is refused. After
the warm-up a line is fitted through the memory of each process, and its rise over the rest is
compared with --most. Every answer is compared with the first of the same body.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import io
import json
import random
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save

from support.fixtures_vim import DATA
from support.server_memory import Watched, watching
from support.server_process import server_process
from support.serving import from_npy, npy
from vim_embed_client.compression import CompressedBody

CHUNK = 1 << 20


@dataclass(frozen=True)
class Body:
    """A prebuilt request. chunked: sent without a length."""

    content: bytes
    headers: dict[str, str]
    chunked: bool


def bodies(seed: int, largest: int) -> list[Body]:
    """One of each size and dtype in each format, the codings among them."""
    generator = np.random.default_rng(seed)
    made = []
    for rows in (1, 3, 16, 64, largest):
        pixels = generator.integers(0, 200, (rows, 3, 64, 64), dtype=np.uint8)
        for dtype in ("uint8", "float32", "float16"):
            values = pixels if dtype == "uint8" else ((pixels - 100.0) / 50.0).astype(dtype)
            made += [_body(values, kind) for kind in _FORMATS if rows <= 64 or kind != "json"]
        made.append(_form(pixels[:16]))
    return made


def _npy(values: NDArray[Any]) -> tuple[bytes, dict[str, str]]:
    return npy(values), {"Content-Type": "application/x-npy"}


def _json(values: NDArray[Any]) -> tuple[bytes, dict[str, str]]:
    inputs = {
        "base64": base64.b64encode(values.tobytes()).decode(),
        "shape": values.shape,
        "dtype": values.dtype.name,
    }
    return json.dumps({"inputs": inputs}).encode(), {"Content-Type": "application/json"}


def _safetensors(values: NDArray[Any]) -> tuple[bytes, dict[str, str]]:
    return save({"pixel_values": values}), {"Content-Type": "application/vnd.safetensors"}


def _coded(name: str, coded: Callable[[bytes], bytes]) -> Callable[[NDArray[Any]], Any]:
    def made(values: NDArray[Any]) -> tuple[bytes, dict[str, str]]:
        content, headers = _npy(values)
        return coded(content), headers | {"Content-Encoding": name}

    return made


def _zstd(content: bytes) -> bytes:
    return b"".join(CompressedBody([content], "zstd", media_type=""))


_FORMATS: dict[str, Callable[[NDArray[Any]], tuple[bytes, dict[str, str]]]] = {
    "npy": _npy,
    "chunked": _npy,
    "json": _json,
    "safetensors": _safetensors,
    "zstd": _coded("zstd", _zstd),
    "gzip": _coded("gzip", lambda content: gzip.compress(content, 1)),
    "deflate": _coded("deflate", lambda content: zlib.compress(content, 1)),
}


def _body(values: NDArray[Any], kind: str) -> Body:
    content, headers = _FORMATS[kind](values)
    return Body(content, headers | {"Accept": "application/x-npy"}, kind == "chunked")


def _form(pixels: NDArray[np.uint8]) -> Body:
    files = []
    for row, image in enumerate(pixels):
        file = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(file, "PNG")
        files.append(("images", (f"{row}.png", file.getvalue(), "image/png")))
    request = httpx.Request("POST", "http://x", files=files)
    return Body(request.read(), {"Content-Type": request.headers["Content-Type"]}, False)


@dataclass
class Load:
    """What the requests of all threads came to."""

    answers: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    wrong: int = 0
    known: dict[int, NDArray[Any]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answered(self, number: int, answer: httpx.Response) -> None:
        with self.lock:
            self.answers[str(answer.status_code)] += 1
            if answer.status_code != 200:
                return
            found = from_npy(answer.content)
            first = self.known.setdefault(number, found)
            self.rows += len(found)
            self.wrong += not np.allclose(found, first, rtol=1e-2, atol=1e-3)

    def left(self) -> None:
        with self.lock:
            self.answers["left early"] += 1


def _send(url: str, listed: Sequence[Body], load: Load, stop: threading.Event, seed: int) -> None:
    chance = random.Random(seed)
    with httpx.Client(timeout=120) as client:
        while not stop.is_set():
            number = chance.randrange(len(listed))
            body = listed[number]
            content: Any = _chunks(body.content) if body.chunked else io.BytesIO(body.content)
            leaves = chance.random() < 0.02
            try:
                answer = client.post(
                    f"{url}/embed",
                    content=content,
                    headers=body.headers,
                    timeout=httpx.Timeout(120, read=0.05) if leaves else 120,
                )
            except httpx.ReadTimeout:
                load.left()
                continue
            load.answered(number, answer)
            if answer.status_code == 429:
                time.sleep(0.05)


def _chunks(content: bytes) -> Iterator[bytes]:
    for start in range(0, len(content), CHUNK):
        yield content[start : start + CHUNK]


@dataclass(frozen=True)
class Drift:
    """Of one process: resident MB where the fitted line begins and ends, after the warm-up."""

    begin_mb: float
    end_mb: float
    least_mb: float
    most_mb: float

    @property
    def share(self) -> float:
        """The rise, as a share of the begin; negative where it fell."""
        return self.end_mb / self.begin_mb - 1


def drifts(watched: Watched, warm_up: float) -> list[Drift]:
    """Of each process, from `warm_up` seconds on."""
    seconds = np.array(watched.seconds)
    resident = np.array(watched.resident)[seconds >= warm_up] / 1e6
    seconds = seconds[seconds >= warm_up]
    found = []
    for column in resident.T:
        slope, start = np.polyfit(seconds, column, 1)
        begin, end = start + slope * seconds[[0, -1]]
        found.append(Drift(float(begin), float(end), float(column.min()), float(column.max())))
    return found


def soak(
    *, minutes: float, http_processes: int, threads: int, warm_up: float, every: float, largest: int
) -> tuple[Load, Watched, list[Drift]]:
    """Load a server of its own. warm_up: share of the time that is not judged."""
    listed, load, stop = bodies(5, largest), Load(), threading.Event()
    flags = ["--model", f"micro={DATA / 'vim_micro.pth'}", "--log-level", "warning"]
    flags += ["--http-processes", str(http_processes), "--queue-rows", str(4 * largest)]
    limits = ["--max-body-bytes", "50000000", "--inflight-bytes", "120000000"]
    with server_process(*flags, *limits, "--client-share", "1") as started:
        senders = [
            threading.Thread(target=_send, args=(started.url, listed, load, stop, seed))
            for seed in range(threads)
        ]
        with watching(started.process.pid, every) as watched:
            for sender in senders:
                sender.start()
            time.sleep(60 * minutes)
            stop.set()
            for sender in senders:
                sender.join(180)
    return load, watched, drifts(watched, 60 * minutes * warm_up)


def sound(load: Load, found: Sequence[Drift], most: float) -> bool:
    """Whether no process rose by more than `most`, and every answer was right or a refusal."""
    flat = all(each.share <= most for each in found)
    known = set(load.answers) <= {"200", "429", "left early"}
    return flat and known and load.rows > 0 and not load.wrong


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--http-processes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=12)
    parser.add_argument("--warm-up", type=float, default=0.2, help="share of the time")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between samples")
    parser.add_argument("--largest", type=int, default=512, help="rows of the largest request")
    parser.add_argument("--most", type=float, default=0.02, help="rise that is still flat")
    parser.add_argument("--output", type=Path, help="file for the samples")
    options = vars(parser.parse_args(arguments))
    most, output = options.pop("most"), options.pop("output")
    load, watched, found = soak(**options)
    report = {
        **options,
        "rows": load.rows,
        "answers": dict(load.answers),
        "wrong": load.wrong,
        "processes": [vars(each) | {"drift": round(each.share, 5)} for each in found],
        "sound": sound(load, found, most),
    }
    print(json.dumps(report, indent=2))
    if output is not None:
        samples = {"seconds": watched.seconds, "resident": watched.resident}
        output.write_text(json.dumps(report | samples))
    return 0 if report["sound"] else 1


if __name__ == "__main__":
    sys.exit(main())
