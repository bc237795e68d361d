"""Client side of verify.sh: compares values, and loads the service until it stops.

values: embeddings over HTTP equal those in process. load FILE: writes what became of the requests.
fixture FILE: embeddings over HTTP equal those of the original code in FILE (needs the client only).
"""

from __future__ import annotations

import io
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray

from vim_embed_client import Client


def pixels(rows: int, seed: int = 0) -> NDArray[np.uint8]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (rows, 3, 224, 224), dtype=np.uint8)


def npy(array: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def values() -> None:
    from vim_embed.weights.load import load_model

    images = pixels(11)
    with Client() as client:
        (entry,) = client.models()["models"]
        if entry["backend"] != "cpu":
            raise SystemExit(f"the image has no CPU kernels: {entry['backend_reason']}")
        served = client.embed(images, pooling="mean").embeddings
    model = load_model("vim-tiny", None, random_weights=True)
    expected = model.embed(images, pooling="mean")
    error = np.linalg.norm(served - expected) / np.linalg.norm(expected)
    if not (served.shape == expected.shape and error < 1e-5):
        raise SystemExit(f"served values differ: relative error {error:.2e}")


def fixture(path: Path) -> None:
    with np.load(path) as arrays, Client() as client:
        served = client.embed(arrays["pixel_values"], pooling="mean")
        error = np.linalg.norm(served.embeddings - arrays["mean"]) / np.linalg.norm(arrays["mean"])
    if not error < 1e-5:
        raise SystemExit(f"served values differ from the original code's: {error:.2e}")
    print(f"relative error {error:.1e}, weights {served.provenance.weights_digest}")


def load(report: Path) -> None:
    """Four clients until the service is gone: what it took before the first 503 it must answer.

    Later a connection may be cut: a published port outlives the service behind it.
    """
    body, lock = npy(pixels(8)), threading.Lock()
    outcomes: list[tuple[float, str]] = []  # when it was sent, what came

    def send(http: httpx.Client) -> str:
        try:
            answer = http.post(
                "/embed", content=body, headers={"Content-Type": "application/x-npy"}
            )
        except httpx.HTTPError as error:
            return type(error).__name__
        short = answer.status_code == 200 and len(answer.content) < 8 * 192 * 4
        return "short answer" if short else str(answer.status_code)

    def work() -> None:
        with httpx.Client(base_url=Client().base_url, timeout=60.0) as http:
            outcome = ""
            while not outcome.endswith("Error"):
                begin = time.monotonic()
                outcome = send(http)
                with lock:
                    outcomes.append((begin, outcome))
                time.sleep(0.05 if outcome == "503" else 0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = Counter(outcome for _, outcome in outcomes)
    report.write_text(", ".join(f"{count} x {outcome}" for outcome, count in counts.items()) + "\n")
    refused = min((begin for begin, outcome in outcomes if outcome == "503"), default=0.0)
    lost = [o for begin, o in outcomes if begin < refused and o not in ("200", "503")]
    if lost or not counts["200"] or not counts["503"]:
        raise SystemExit(f"requests were lost: {lost} of {dict(counts)}")


if __name__ == "__main__":
    command, *paths = sys.argv[1:]
    commands: dict[str, Callable[..., None]] = {
        "values": values, "load": load, "fixture": fixture
    }  # fmt: skip
    commands[command](*map(Path, paths))
