"""Rows per second of CPU time of vim-embed beside other servers: what the HTTP path costs.

    PYTHONPATH=tests:benchmarks python benchmarks/over_http/rivals.py --output rivals.md

Every server has the same engine, which does no work. One client process keeps several connections
busy and compares every row that comes back. Rounds alternate between the servers; counted is the
CPU time of a server's processes (not the client's), so that a busy machine disturbs little.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray
from over_http.load import Body, Connection, Rows, WrongAnswer, drive
from over_http.marks import IMAGE_SIZE, marks

from vim_embed.types.model_info import EMBEDDING

START_S = 60.0
_NPY = "application/x-npy"
_JSON = "application/json"
_BYTES = "application/octet-stream"
_VERSIONS = ("vim-embed", "litserve", "fastapi", "starlette", "uvicorn", "uvloop", "numpy")


def npy(pixels: NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    np.save(file, pixels)
    return file.getvalue()


def raw(pixels: NDArray[np.uint8]) -> bytes:
    return pixels.tobytes()


def nested(pixels: NDArray[np.uint8]) -> bytes:
    return json.dumps({"inputs": pixels.tolist()}).encode()


def in_base64(pixels: NDArray[np.uint8]) -> bytes:
    content = {"base64": base64.b64encode(pixels.tobytes()).decode(), "shape": pixels.shape}
    return json.dumps(content).encode()


def rows_of_npy(content: bytes) -> Rows:
    rows: Rows = np.load(io.BytesIO(content), allow_pickle=False)
    return rows


def rows_of_json(content: bytes) -> Rows:
    return np.array(json.loads(content)[EMBEDDING], dtype=np.float32)


@dataclass(frozen=True)
class Rival:
    """A server to compare: `bench.servers.<module>`, and how it is spoken to. target: how many
    times its rows vim-embed should give.
    """

    module: str
    name: str
    kind: str
    encode: Callable[[NDArray[np.uint8]], bytes]
    decode: Callable[[bytes], Rows]
    target: float | None = None
    needs: str = "fastapi"

    def bodies(self, rows: int, count: int = 2) -> list[Body]:
        """Prebuilt requests of different random images."""
        random = np.random.default_rng(0)
        shape = (count, rows, 3, IMAGE_SIZE, IMAGE_SIZE)
        images = random.integers(0, 256, shape, dtype=np.uint8)
        return [Body(self.encode(pixels), marks(pixels)) for pixels in images]

    def connect(self, port: int) -> Connection:
        return Connection(port, {"Content-Type": self.kind}, self.decode)


OURS = Rival("ours", "vim-embed", _NPY, npy, rows_of_npy)
RIVALS = (
    OURS,
    Rival("fastapi_raw", "plain FastAPI, raw npy body", _NPY, npy, rows_of_npy, 1.5),
    Rival("fastapi_buffer", "plain FastAPI, raw bytes", _BYTES, raw, rows_of_npy, 1.5),
    Rival("litserve_raw", "LitServe, raw npy body", _NPY, npy, rows_of_npy, 4.0, "litserve"),
    Rival(
        "litserve_base64", "LitServe, base64 in JSON", _JSON, in_base64, rows_of_json, 4.0,
        "litserve",
    ),
    Rival("fastapi_json", "plain FastAPI, nested JSON lists", _JSON, nested, rows_of_json, 4.0),
)  # fmt: skip


class Server:
    """A rival's processes while they run."""

    def __init__(self, rival: Rival, port: int, process: psutil.Popen) -> None:
        self.rival = rival
        self._port = port
        self._process = process

    def round(self, bodies: Sequence[Body], *, seconds: float, connections: int) -> float:
        """Rows per second of CPU time, over connections that are open and warm."""
        with ExitStack() as stack:
            opened = [
                stack.enter_context(closing(self.rival.connect(self._port)))
                for _ in range(connections)
            ]
            drive(opened, bodies, 0)
            before = cpu_seconds(self._process)
            rows = drive(opened, bodies, seconds)
            return rows / (cpu_seconds(self._process) - before)

    def wait(self, body: Body) -> None:
        """Until the server answers. Raises RuntimeError if it ends, or does not in time."""
        end = time.monotonic() + START_S
        while True:
            with closing(self.rival.connect(self._port)) as connection:
                try:
                    return connection.send(body)
                except (WrongAnswer, OSError) as error:
                    if self._process.poll() is not None or time.monotonic() > end:
                        raise RuntimeError(f"{self.rival.name} does not answer: {error}") from error
            time.sleep(0.2)


def cpu_seconds(process: psutil.Process) -> float:
    """CPU time of a process and of its descendants that are alive, user and system."""
    times = [p.cpu_times() for p in (process, *process.children(recursive=True))]
    return float(sum(t.user + t.system for t in times))


@contextmanager
def started(rival: Rival) -> Iterator[Server]:
    """The rival's server on a free port; ended with all its processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", f"over_http.servers.{rival.module}", str(port)]
    with tempfile.TemporaryFile() as log:
        process = psutil.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)
        try:
            server = Server(rival, port, process)
            try:
                server.wait(rival.bodies(1, 1)[0])
            except RuntimeError as error:
                log.seek(0)
                error.add_note(f"Its log:\n{log.read()[-2000:].decode(errors='replace')}")
                raise
            yield server
        finally:
            end(process)


def end(process: psutil.Popen) -> None:
    """End a process and its descendants."""
    family = [process]
    with suppress(psutil.NoSuchProcess):
        family += process.children(recursive=True)
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.terminate()
    _, left = psutil.wait_procs(family, timeout=10)
    for other in left:
        with suppress(psutil.NoSuchProcess):
            other.kill()
    psutil.wait_procs(left, timeout=10)


def available(rivals: Sequence[Rival] = RIVALS) -> list[Rival]:
    """Those whose libraries are installed."""
    return [rival for rival in rivals if find_spec(rival.needs) is not None]


def compare(
    rivals: Sequence[Rival], *, rows: int, rounds: int, seconds: float, connections: int
) -> dict[Rival, list[float]]:
    """Rows per second of CPU time in each round, all servers running, one after the other."""
    with ExitStack() as stack:
        servers = [stack.enter_context(started(rival)) for rival in rivals]
        bodies = {rival: rival.bodies(rows) for rival in rivals}
        found: dict[Rival, list[float]] = {rival: [] for rival in rivals}
        for number in range(rounds):
            for server in servers:
                rate = server.round(bodies[server.rival], seconds=seconds, connections=connections)
                found[server.rival].append(rate)
                print(f"round {number + 1}: {server.rival.name}: {rate:,.0f}", file=sys.stderr)
    return found


def table(found: dict[Rival, list[float]]) -> str:
    """Medians in Markdown; the spread is that of the rounds."""
    ours = found[OURS]
    lines = [
        "| server | rows per CPU second | lowest to highest | vim-embed gives | target |",
        "|---|---|---|---|---|",
    ]
    for rival, rates in found.items():
        # neighbours in time are compared, so that a drift of the machine hits both
        ratio = statistics.median(a / b for a, b in zip(ours, rates, strict=True))
        target = f"{rival.target:g}×" if rival.target else "–"
        lines.append(
            f"| {rival.name} | {statistics.median(rates):,.0f} "
            f"| {min(rates):,.0f} to {max(rates):,.0f} | {ratio:.2f}× | {target} |"
        )
    return "\n".join(lines)


def machine() -> str:
    """Where and when this ran, and with what."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), "?")
    load = os.getloadavg()[0]
    parts = [f"python {platform.python_version()}"]
    for name in _VERSIONS:
        try:
            parts.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            parts.append(f"no {name}")
    when = datetime.now(UTC).isoformat(timespec="seconds")
    cores = len(os.sched_getaffinity(0))
    return f"{when}; {cpu}, {cores} cores, load {load:.1f} at the start; {', '.join(parts)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=32, help="of a request")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each round")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--only", nargs="*", default=[], help="modules of over_http/servers")
    parser.add_argument("--output", type=Path, help="Markdown file")
    args = parser.parse_args()
    head = machine()
    chosen = [r for r in available() if not args.only or r is OURS or r.module in args.only]
    found = compare(
        chosen, rows=args.rows, rounds=args.rounds, seconds=args.seconds,
        connections=args.connections,
    )  # fmt: skip
    what = (
        f"{args.rows} uint8 rows 3×{IMAGE_SIZE}×{IMAGE_SIZE} a request, {args.connections} "
        f"connections, {args.rounds} alternating rounds of {args.seconds:g} s, medians. Every row "
        "that came back was compared."
    )
    text = f"{head}\n\n{what}\n\n{table(found)}\n"
    print(text)
    if args.output:
        args.output.write_text(text)


if __name__ == "__main__":
    main()
