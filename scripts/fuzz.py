"""A structure-aware fuzzer of the HTTP interface.

`python scripts/fuzz.py --inputs 100000` sends mutations of valid requests to a real server
and fails on an answer that is neither in the error shape nor a right 200, a 5xx that is not
documented, a crash, growing memory, or an input that takes too much: of CPU time (the decoder
processes' included), or of memory for its size. Input number N of a seed is always the same, so
`--seed S --first N --inputs 1` repeats a finding.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from security.oracle import check_answer
from security.processes import MIB, ServerProcess, server_process
from security.requests import MAX_BODY, Request, decompressed_bytes, make

GROWTH = 24 * MIB  # that the server may gain between a tenth of the inputs and all of them
MULTIPLE, SLACK = 32, 24 * MIB  # of memory for an input: so many times its bytes, and this
CPU_SECONDS = 2.0  # for an input of a MiB or less, and for each MiB of a larger one
_TOGETHER, _SMALL = 100, 64 * 1024  # inputs; bytes of one
FLAGS = (
    "--max-body-bytes", str(MAX_BODY), "--max-rows", "64", "--max-image-pixels", "1000000",
    "--max-image-size", "64", "--body-timeout", "5", "--log-level", "error",
)  # fmt: skip


@dataclass
class Report:
    """What happened; `faults` must stay empty."""

    inputs: int = 0
    seconds: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    rss: dict[str, int] = field(default_factory=dict)
    most_cpu: tuple[float, str] = (0.0, "")
    most_memory: tuple[float, str] = (0.0, "")

    @property
    def growth(self) -> int:
        """Bytes that the server gained after the first tenth."""
        return self.rss["100%"] - self.rss["10%"] if "100%" in self.rss else 0

    def progress(self, inputs: int, seconds: float) -> str:
        """A line while it runs."""
        return (
            f"{self.inputs:,} of {inputs:,} inputs, {self.inputs / seconds:.0f} a second; "
            f"most CPU {self.most_cpu[0]:.2f} s, most memory {self.most_memory[0]:.1f} MiB, "
            f"{len(self.faults)} faults"
        )

    def summary(self) -> dict[str, object]:
        return {
            "inputs": self.inputs,
            "seconds": round(self.seconds, 1),
            "statuses": dict(sorted(self.statuses.items())),
            "kinds": dict(sorted(self.kinds.items())),
            "rss_mib": {at: round(size / MIB, 1) for at, size in self.rss.items()},
            "most_cpu_seconds": self.most_cpu,
            "most_memory_mib": self.most_memory,
            "faults": self.faults,
        }


class Meter:
    """What an input takes. Asking costs more than most inputs do, so that the memory of small ones
    is read for a hundred together, and which decoder processes there are only as often.
    """

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._inputs = 0
        self._decoders: list[psutil.Process] = []
        self._cpu = 0.0
        self._memory = 0

    def begin(self, request: Request) -> None:
        if self._inputs % _TOGETHER == 0:
            self._decoders = self._server.process.children()
        if self._inputs % _TOGETHER == 0 or _size(request) > _SMALL:
            self._server.forget_peak()
            self._memory = self._server.rss
        self._inputs += 1
        self._cpu = self._seconds()

    def end(self, name: str, request: Request, report: Report) -> str | None:
        """What is too much of what it took, or None."""
        size, seconds = _size(request), self._seconds() - self._cpu
        report.most_cpu = max(report.most_cpu, (round(seconds, 2), name))
        if seconds > CPU_SECONDS * max(1, size / MIB):
            return f"{seconds:.1f} s of CPU time for {size} bytes"
        if self._inputs % _TOGETHER and size <= _SMALL:
            return None
        memory = self._server.peak - self._memory
        report.most_memory = max(report.most_memory, (round(memory / MIB, 1), name))
        if memory > MULTIPLE * size + SLACK:
            return f"{memory / MIB:.0f} MiB of memory for {size} bytes"
        return None

    def _seconds(self) -> float:
        """Of CPU time that the server and its decoders have used, the ended ones included."""
        times = self._server.process.cpu_times()
        used = times.user + times.system + times.children_user + times.children_system
        for decoder in self._decoders:
            with suppress(psutil.NoSuchProcess):
                own = decoder.cpu_times()
                used += own.user + own.system
        return float(used)


def _size(request: Request) -> int:
    return max(len(request.content), decompressed_bytes(request))


def fuzz(server: ServerProcess, *, inputs: int, seed: int = 0, first: int = 0) -> Report:
    """Send so many inputs, one after the other over kept connections, and check each answer."""
    report = Report()
    begin = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    meter = Meter(server)
    for number in range(first, first + inputs):
        request = make(seed, number)
        report.kinds[request.kind] += 1
        name = f"input {number} of seed {seed} ({request.kind})"
        meter.begin(request)
        problem = _send(connection, request, report)
        problem = problem or meter.end(name, request, report)
        if problem:
            report.faults.append(f"{name}: {problem}")
            connection.close()
            if not server.alive or len(report.faults) >= 20:
                break
        report.inputs += 1
        if report.inputs % max(1000, inputs // 50) == 0:
            print(report.progress(inputs, time.monotonic() - begin), file=sys.stderr, flush=True)
        if report.inputs in (max(1, inputs // 10), inputs):
            report.rss["10%" if report.inputs < inputs else "100%"] = server.rss
    connection.close()
    report.seconds = time.monotonic() - begin
    return report


def _send(connection: http.client.HTTPConnection, request: Request, report: Report) -> str | None:
    """What is wrong with the answer, or None."""
    headers = {name: value.encode("utf-8") for name, value in request.headers.items()}
    try:
        connection.request(request.method, request.path, request.content or None, headers)
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        return f"no answer: {type(error).__name__}: {error}"
    report.statuses[str(answer.status)] += 1
    return check_answer(request, answer.status, answer.headers, body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, server_process(Path(folder), *FLAGS) as server:
        report = fuzz(server, inputs=given.inputs, seed=given.seed, first=given.first)
        tracebacks = server.log.read_text().count("Traceback")
    print(json.dumps({**report.summary(), "tracebacks_in_the_log": tracebacks}, indent=2))
    grown = report.inputs >= 100 and report.growth > GROWTH
    sys.exit(bool(report.faults or tracebacks or grown))


if __name__ == "__main__":
    main()
