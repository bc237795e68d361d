"""Two source trees of the service beside each other: the same requests, in turn, several rounds.

    git worktree add ../before COMMIT
    PYTHONPATH=tests:benchmarks python benchmarks/over_http/two_trees.py --before ../before

The engine does no work, so that what is compared is the way there: HTTP, bodies, decoding. Rounds
alternate between the trees. For each kind of request: requests a second, and CPU time of the
server with its children for one request.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from server_process import server_process

ROOT = Path(__file__).parents[2]
Request = tuple[dict[str, str], bytes]


def galaxy(side: int) -> Image.Image:
    """A smooth picture with some noise, as honest ones are."""
    y, x = np.mgrid[:side, :side] / side - 0.5
    light = 255 * np.exp(-20 * (x**2 + 2 * y**2))[..., None] * np.array([1.0, 0.8, 0.6])
    noise = np.random.default_rng(0).normal(0, 6, (side, side, 3))
    return Image.fromarray(np.clip(light + noise, 0, 255).astype(np.uint8))


def saved(form: str, side: int) -> bytes:
    file = io.BytesIO()
    galaxy(side).save(file, form)
    return file.getvalue()


def array() -> Request:
    file = io.BytesIO()
    np.save(file, np.zeros((1, 3, 8, 8), np.uint8))
    return {"Content-Type": "application/x-npy"}, file.getvalue()


def image(form: str, side: int) -> Callable[[], Request]:
    return lambda: ({"Content-Type": f"image/{form.lower()}"}, saved(form, side))


def form_of_images() -> Request:
    part = b'--b\r\nContent-Disposition: form-data; name="i"; filename="i"\r\n\r\n'
    parts = (part + saved("JPEG", 256) + b"\r\n") * 16 + b"--b--\r\n"
    return {"Content-Type": "multipart/form-data; boundary=b"}, parts


def nested() -> Request:
    pixels = np.random.default_rng(0).random((8, 3, 64, 64)).astype(np.float32)
    text = json.dumps({"inputs": pixels.tolist()})
    return {"Content-Type": "application/json"}, text.encode()


KINDS: Mapping[str, Callable[[], Request]] = {
    "one small array": array,
    "JSON of 8 float32 rows at 64": nested,
    "PNG of 256": image("PNG", 256),
    "JPEG of 256": image("JPEG", 256),
    "PNG of 1500": image("PNG", 1500),
    "JPEG of 1500": image("JPEG", 1500),
    "form of 16 JPEG of 256": form_of_images,
}


@contextmanager
def server(tree: Path) -> Iterator[tuple[int, psutil.Process]]:
    path = os.pathsep.join(str(tree / folder) for folder in ("service", "client", "tests"))
    command = [sys.executable, str(tree / "tests/security/stub_service.py"), "serve"]
    with server_process(
        lambda port: [*command, "--port", str(port), "--log-level", "error"],
        env={**os.environ, "PYTHONPATH": path},
    ) as process:
        process.wait_ready()
        yield process.port, psutil.Process(process.pid)


def drive(port: int, request: Request, seconds: float, connections: int) -> float:
    """Requests a second."""
    headers, body = request

    def work(_: int) -> int:
        connection, done = http.client.HTTPConnection("127.0.0.1", port, timeout=60), 0
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            connection.request("POST", "/embed", body, headers)
            answer = connection.getresponse()
            text = answer.read()
            assert answer.status == 200, text[:500]
            done += 1
        connection.close()
        return done

    begin = time.monotonic()
    with ThreadPoolExecutor(connections) as threads:
        total = sum(threads.map(work, range(connections)))
    return total / (time.monotonic() - begin)


def cpu_seconds(process: psutil.Process) -> float:
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--after", type=Path, default=ROOT)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--kind", action="append", choices=KINDS)
    given = parser.parse_args()
    print("| request | before, 1/s | after, 1/s | after over before | CPU ms before | after |")
    print("|---|---|---|---|---|---|")
    with server(given.before) as before, server(given.after) as after:
        for kind in given.kind or KINDS:
            rates: dict[int, list[float]] = {0: [], 1: []}
            spent: dict[int, list[float]] = {0: [], 1: []}
            request = KINDS[kind]()
            for turn in range(2 * given.rounds + 2):
                port, process = (before, after)[turn % 2]
                used = cpu_seconds(process)
                rate = drive(port, request, given.seconds, given.connections)
                if turn > 1:  # the first round of each warms it up
                    rates[turn % 2].append(rate)
                    spent[turn % 2].append((cpu_seconds(process) - used) / rate / given.seconds)
            old, new = (statistics.median(rates[side]) for side in (0, 1))
            ratios = [b / a for a, b in zip(rates[0], rates[1], strict=True)]
            cpu = [1000 * statistics.median(spent[side]) for side in (0, 1)]
            print(
                f"| {kind} | {old:.1f} | {new:.1f} | {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f}) | {cpu[0]:.2f} | {cpu[1]:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
