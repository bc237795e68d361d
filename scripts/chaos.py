"""Mixed load on a real server while its worker, and its process, fail again and again.

`python scripts/chaos.py --seconds 900` prints what happened and fails on a wrong row, an answer
that came after its deadline, or a recovery that took too long. The server runs in exact mode, so
that every row has known bytes; whoever ends it is followed by a keeper that starts it again, as a
container's restart policy does.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

import httpx
import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image

from support.fixtures_vim import DATA
from support.serving import NPY, npy
from vim_embed.weights.load import load_model
from vim_embed_client import Client, VimEmbedError

WEIGHTS = DATA / "vim_micro.pth"
FORWARD_TIMEOUT = 1.0
DEADLINE = 15.0  # seconds that a request gives the service
RECOVERY = 5.0  # seconds within a process
RESTART = 10.0  # of a process that starts anew: it imports torch, beside the load, on two cores
FAULTS = ("exception", "out_of_memory", "hang", "thread", "engine")
PROCESS_FAULTS = ("exit", "kill", "terminate", "stop")
STILL = 3.0  # seconds that a process is stopped; one of HTTP is replaced after 20
SLACK = STILL + 2.0  # that an answer may take beyond its deadline
# drained, lost its device, killed, told to end while it still imported
EXPECTED_CODES = {0, 70, -signal.SIGKILL, -signal.SIGTERM}
_ALLOWED = {200, 429, 500, 503, 504}


@dataclass
class Report:
    """What happened. late and wrong must stay empty."""

    answers: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    wrong: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    recoveries: dict[str, list[float]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, answer: str, rows: int = 0) -> None:
        with self.lock:
            self.answers[answer] += 1
            self.rows += rows

    def summary(self) -> dict[str, object]:
        slowest = {kind: round(max(times), 2) for kind, times in sorted(self.recoveries.items())}
        return {
            "rows": self.rows,
            "answers": dict(sorted(self.answers.items())),
            "faults": dict(sorted(self.faults.items())),
            "wrong": self.wrong,
            "late": self.late,
            "slowest_recovery_s": slowest,
            "slow": self.slow(),
        }

    def slow(self) -> list[str]:
        """Kinds of faults after which a recovery took longer than it may."""
        ends = ("exit", "kill", "terminate")
        return [
            kind
            for kind, times in sorted(self.recoveries.items())
            if max(times) > (RESTART if kind in ends else RECOVERY)
        ]


class Keeper:
    """A server process that is started again whenever it ends."""

    def __init__(self, http_processes: int = 1) -> None:
        self._http_processes = http_processes
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.codes: Counter[int] = Counter()
        self.last_words: list[str] = []  # of a process that ended as nobody made it end
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._stop = threading.Event()
        self.process = self._start()
        self._thread = threading.Thread(target=self._keep)
        self._thread.start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "vim_embed.cli", "serve", "--port", str(self.port)]
        command += ["--model", f"micro={WEIGHTS}", "--device", "cpu", "--exact"]
        command += ["--http-processes", str(self._http_processes)]
        command += ["--fault-injection", "--forward-timeout", str(FORWARD_TIMEOUT)]
        command += ["--worker-restarts", "20", "--drain-timeout", "3", "--log-level", "error"]
        self._log.seek(0)
        self._log.truncate()
        return subprocess.Popen(command, stderr=self._log)

    def _keep(self) -> None:
        while not self._stop.is_set():
            with suppress(subprocess.TimeoutExpired):
                self._ended(self.process.wait(0.1))
                self.process = self._start()

    def _ended(self, code: int) -> None:
        self.codes[code] += 1
        if code not in EXPECTED_CODES:
            self._log.seek(0)
            self.last_words.append(self._log.read()[-2000:].decode(errors="replace"))

    def stop_one(self) -> bool:
        """Stop the model process, or one of HTTP or that decodes images, and let it go on."""
        with suppress(psutil.NoSuchProcess):
            model = psutil.Process(self.process.pid)
            still = random.choice([model, *model.children()])
            still.suspend()
            time.sleep(STILL)
            still.resume()
            return True
        return False

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.process.send_signal(signal.SIGTERM)
        try:
            self._ended(self.process.wait(20))
        finally:
            self.process.kill()
            self._log.close()


class Pool:
    """Images and the bytes of their embeddings, from the same model in this process."""

    def __init__(self, size: int = 200) -> None:
        random_values = np.random.default_rng(11)
        self.pixels = random_values.integers(0, 256, (size, 3, 64, 64), dtype=np.uint8)
        model = load_model("micro", WEIGHTS, device="cpu")
        self.expected = model.embed(self.pixels, exact=True)

    def draw(self, most: int) -> NDArray[np.int64]:
        return np.array(random.choices(range(len(self.pixels)), k=random.randint(1, most)))

    def right(self, rows: NDArray[np.int64], found: NDArray[np.float32]) -> bool:
        return found.tobytes() == self.expected[rows].tobytes()


def png(pixels: NDArray[np.uint8]) -> bytes:
    """One row as a file, of the model's own size: its pixels stay as they are."""
    file = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue()


def plain_requests(url: str, pool: Pool, report: Report, stop: threading.Event) -> None:
    """One request after the other, without retries: each is answered or refused in time. Every
    fifth is an encoded image.
    """
    with httpx.Client(timeout=DEADLINE + 5) as http:
        while not stop.is_set():
            image = random.random() < 0.2
            rows = pool.draw(1 if image else 40)
            content = png(pool.pixels[rows[0]]) if image else npy(pool.pixels[rows])
            headers = {"Content-Type": "image/png"} if image else NPY
            begin = time.monotonic()
            try:
                answer = http.post(
                    f"{url}/embed?timeout={DEADLINE}", content=content, headers=headers
                )
            except httpx.TransportError as error:  # the process was ended
                report.count(type(error).__name__)
                _check_time(report, begin, type(error).__name__)
                time.sleep(0.05)
                continue
            _check_time(report, begin, str(answer.status_code))
            report.count(_name(answer), len(rows) if answer.status_code == 200 else 0)
            if answer.status_code == 200:
                found = np.frombuffer(answer.content[128:], np.float32).reshape(len(rows), -1)
                if not pool.right(rows, found):
                    report.wrong.append(f"plain request of {len(rows)} rows")
            elif answer.status_code not in _ALLOWED:
                report.wrong.append(f"status {answer.status_code}: {answer.text[:200]}")
            else:
                time.sleep(0.05)


def patient_clients(url: str, pool: Pool, report: Report, stop: threading.Event) -> None:
    """The real client with retries: the right rows, or a clear error at its deadline."""
    with Client(url, max_retries=50, backoff=0.1, deadline=60, rows_per_request=16) as client:
        while not stop.is_set():
            rows = pool.draw(80)
            begin = time.monotonic()
            try:
                found = client.embed(pool.pixels[rows]).embeddings
            except VimEmbedError as error:
                report.count(f"client {type(error).__name__}")
                if time.monotonic() - begin > 60 + SLACK:
                    report.late.append(f"client gave up after {time.monotonic() - begin:.1f} s")
                continue
            report.count("client ok", len(rows))
            if not pool.right(rows, found):
                report.wrong.append(f"client's batch of {len(rows)} rows")


def rude_clients(port: int, pool: Pool, report: Report, stop: threading.Event) -> None:
    """Clients that leave in the middle of their body, or of the answer."""
    body = npy(pool.pixels[:8])
    head = "POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-npy\r\n"
    start = f"{head}Content-Length: {len(body)}\r\n\r\n".encode()
    while not stop.is_set():
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2) as out:
            if random.random() < 0.5:
                out.sendall(start + body[: random.randrange(len(body))])
                report.count("left in its body")
            else:
                out.sendall(start + body)
                out.recv(random.choice([1, 100]))
                report.count("left in the answer")
        time.sleep(0.2)


def cause_faults(keeper: Keeper, pool: Pool, report: Report, end: float, least: int) -> None:
    """One fault after the other, each with the time until a request succeeds again.

    least: kinds that are caused in any case, however slow the machine is.
    """
    kinds = [*FAULTS, *PROCESS_FAULTS]

    def enough() -> bool:
        return time.monotonic() >= end and len(report.faults) >= least

    while not enough():
        for kind in random.sample(kinds, len(kinds)):
            if enough():
                return
            if _cause(kind, keeper):
                report.faults[kind] += 1
                seconds = _recover(keeper.url, pool)
                report.recoveries.setdefault(kind, []).append(seconds)
            time.sleep(random.uniform(0.2, 1.0))


def _cause(kind: str, keeper: Keeper) -> bool:
    if kind == "kill":
        keeper.process.send_signal(signal.SIGKILL)
        keeper.process.wait(10)
        return True
    if kind == "terminate":
        keeper.process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            keeper.process.wait(10)
        return True
    if kind == "stop":
        return keeper.stop_one()
    fault = {"kind": kind, "forwards": random.randint(1, 3), "seconds": 3.0}
    fault["forwards"] = 1 if kind in ("hang", "exit") else fault["forwards"]
    with suppress(httpx.TransportError):
        return httpx.post(f"{keeper.url}/faults", json=fault, timeout=5).status_code == 200
    return False


def _recover(url: str, pool: Pool) -> float:
    """Seconds until the service has met its faults and answers a request."""
    begin = time.monotonic()
    while time.monotonic() - begin < 60:
        with suppress(httpx.TransportError):
            armed = httpx.get(f"{url}/faults", timeout=5).json().get("armed", 1)
            answer = httpx.post(
                f"{url}/embed?timeout=5", content=npy(pool.pixels[:1]), headers=NPY, timeout=10
            )
            if answer.status_code == 200 and not armed:
                break
        time.sleep(0.05)
    return time.monotonic() - begin


def _check_time(report: Report, begin: float, what: str) -> None:
    seconds = time.monotonic() - begin
    if seconds > DEADLINE + SLACK:
        report.late.append(f"{what} after {seconds:.1f} s")


def _name(answer: httpx.Response) -> str:
    if answer.status_code == 200:
        return "ok"
    return f"{answer.status_code} {answer.json()['error']['code']}"


def run(seconds: float, least_faults: int = 0, http_processes: int = 1) -> tuple[Report, Keeper]:
    """The report of so many seconds and at least so many kinds of faults, and the keeper, who knows
    how the server ended.
    """
    pool, report, stop = Pool(), Report(), threading.Event()
    keeper = Keeper(http_processes)
    try:
        _recover(keeper.url, pool)
        jobs = [(plain_requests, keeper.url)] * 3 + [(patient_clients, keeper.url)] * 2
        threads = [
            threading.Thread(target=job, args=(where, pool, report, stop)) for job, where in jobs
        ]
        threads.append(
            threading.Thread(target=rude_clients, args=(keeper.port, pool, report, stop))
        )
        for thread in threads:
            thread.start()
        cause_faults(keeper, pool, report, time.monotonic() + seconds, least_faults)
        stop.set()
        for thread in threads:
            thread.join(90)
    finally:
        stop.set()
        keeper.close()
    return report, keeper


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--http-processes", type=int, default=2)
    parser.add_argument(
        "--busy", action="store_true", help="the machine does other work: slow recoveries are told"
    )
    given = parser.parse_args()
    report, keeper = run(given.seconds, http_processes=given.http_processes)
    ends = {"exit_codes": dict(keeper.codes), "last_words": keeper.last_words}
    print(json.dumps({**report.summary(), **ends}, indent=2))
    slow = [] if given.busy else report.slow()
    sys.exit(bool(report.wrong or report.late or keeper.last_words or slow))


if __name__ == "__main__":
    main()
